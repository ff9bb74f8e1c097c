import json
from pathlib import Path

import pytest

from erless.errors import ArtifactError
from erless.specs.bundle import BundleManifest
from erless.specs.model import DlrmTower, ModelSpec, TableSpec
from erless.specs.plan import Plan
from tests.bundles import write_bundle
from tests.observe.simulator.plans import plan, shard


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    model = ModelSpec(
        dense_features=3,
        tables=(TableSpec(name="a", rows=10, dim=4), TableSpec(name="b", rows=5, dim=4)),
        tower=DlrmTower(bottom_mlp=(4,), top_mlp=(1,)),
    )
    write_bundle(tmp_path / "m", model)
    return tmp_path / "m"


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_bundle_opens_and_verifies(bundle: Path) -> None:
    manifest = BundleManifest.open(bundle)
    manifest.verify(bundle)
    assert len(manifest.digest) == 64
    assert manifest.table_file(bundle, manifest.model.tables[1]).name == "b.safetensors"


def test_same_content_same_digest(bundle: Path, tmp_path: Path) -> None:
    again = write_bundle(tmp_path / "n", BundleManifest.open(bundle).model)
    assert again.digest == BundleManifest.open(bundle).digest
    other = write_bundle(tmp_path / "o", again.model, seed=1)
    assert other.digest != again.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "recipe"}, "not a erless model bundle"),
        ({"schema_version": 99}, "schema 99; this erless reads up to 2"),
        ({"model": {}}, "altered: its content does not match its digest"),
    ],
)
def test_a_changed_manifest_is_refused(
    bundle: Path, changes: dict[str, object], message: str
) -> None:
    rewrite(bundle / "model.json", **changes)
    with pytest.raises(ArtifactError, match=message):
        BundleManifest.open(bundle)


def test_an_amended_artifact_is_stamped_anew(tmp_path: Path) -> None:
    whole = plan(shard())
    assert whole.amended() == whole
    other = whole.amended(qps=7.0)
    assert (other.qps, other.shards) == (7.0, whole.shards)
    assert other.digest != whole.digest
    other.save(tmp_path / "other.json")
    assert Plan.load(tmp_path / "other.json") == other


def test_unreadable_manifests(bundle: Path, tmp_path: Path) -> None:
    (bundle / "model.json").write_text("{")
    with pytest.raises(ArtifactError, match="not JSON"):
        BundleManifest.open(bundle)
    (bundle / "model.json").unlink()
    with pytest.raises(ArtifactError, match=r"model\.json does not exist"):
        BundleManifest.open(bundle)
    with pytest.raises(ArtifactError, match="no such directory"):
        BundleManifest.open(tmp_path / "nowhere")


def test_missing_truncated_and_altered_files(bundle: Path) -> None:
    path = bundle / "tables" / "a.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.raises(ArtifactError, match=r"a\.safetensors: .* bytes, expected .*: truncated"):
        BundleManifest.open(bundle)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    manifest = BundleManifest.open(bundle)
    with pytest.raises(ArtifactError, match=r"a\.safetensors: altered: sha256 does not match"):
        manifest.verify(bundle)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"a\.safetensors does not exist"):
        BundleManifest.open(bundle)
