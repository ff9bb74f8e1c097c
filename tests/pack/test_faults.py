"""A damaged release is never served, and says what is damaged; the next pack mends it."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from erless.dlrm.queries import QueryFile
from erless.errors import ArtifactError, ErlessError, StorageError, StoreError
from erless.pack import inventory
from erless.pack.inputs import PackInputs
from erless.pack.packer import Packer
from erless.serve.files import Source, open_gateway, open_shard, open_tower
from erless.specs.release import ReleaseManifest
from erless.storage.digests import digest_json
from erless.storage.stores import open_store
from tests.buckets import S3
from tests.conftest import Cli
from tests.releases import Made, default_model, make_release
from tests.sharded import sharded_pool

OFFSETS = 4  # bytes flipped per file, besides its first and last


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_release(tmp_path_factory.mktemp("sound"), model=default_model(300, 4))


@pytest.fixture
def made(sound: Made, tmp_path: Path) -> Made:
    """A release of one's own to damage."""
    shutil.copytree(sound.store, tmp_path / "store")
    return sound._replace(store=str(tmp_path / "store"))


def files_of(store: str) -> list[Path]:
    return [p for p in sorted(Path(store).rglob("*")) if p.is_file() and p.name != ".lock"]


def write(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def serve_all(made: Made) -> list[np.ndarray]:
    """Everything that functions would serve, or the error that keeps them from it."""
    source = Source(made.store)
    with open_tower(source, made.release.digest) as tower:
        served: list[np.ndarray] = [np.frombuffer(tower.path.read_bytes(), np.uint8)]
    with open_gateway(source, made.release.digest) as gateway:
        served += [vector for vectors in gateway.defaults for vector in vectors]
        assert gateway.release == made.release
    return [*served, sharded_pool(source, made.release, QueryFile(made.queries)[0])]


def mend(made: Made) -> None:
    store = open_store(made.store)
    packed = Packer(PackInputs(made.bundle, made.profile, made.plan), store, verify=True).pack()
    assert packed.release == made.release


def damages(data: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    generator = np.random.default_rng(seed)
    inside = generator.integers(0, len(data), OFFSETS).tolist() if data else []
    for at in sorted({0, len(data) - 1, *inside}):
        yield f"byte {at}", data[:at] + bytes([data[at] ^ (1 << seed % 8)]) + data[at + 1 :]
    yield "truncated by one", data[:-1]
    yield "truncated to nothing", b""
    yield "one byte more", data + b"\0"


def test_no_damage_of_any_file_is_served(made: Made) -> None:
    sound = serve_all(made)
    refused = served = 0
    for number, path in enumerate(files_of(made.store)):
        whole = path.read_bytes()
        for what, data in damages(whole, number):
            write(path, data)
            try:
                found = serve_all(made)
            except ErlessError as error:
                assert isinstance(error, ArtifactError | StoreError), (
                    f"{path.name}, {what}: {error!r}"
                )
                refused += 1
            else:
                served += 1  # a file that no function reads, or a space between JSON's words
                for before, after in zip(sound, found, strict=True):
                    np.testing.assert_array_equal(before, after, f"{path.name}, {what}")
        write(path, whole)
    assert refused > 150
    assert served < refused


def test_verify_finds_what_no_function_reads(made: Made) -> None:
    store = open_store(made.store)
    assert inventory.verify(store, made.release.digest) == []
    for number, entry in enumerate(made.release.files()):
        path = Path(made.store) / entry.path
        whole = path.read_bytes()
        for what, data in damages(whole, number):
            write(path, data)
            (damage,) = inventory.verify(store, made.release.digest)
            assert damage.name == entry.path, what
        path.unlink()
        (damage,) = inventory.verify(store, made.release.digest)
        assert damage.fact.endswith("does not exist")
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", ["blobs", "shards", "releases", "keys"])
@pytest.mark.parametrize("how", ["flip", "remove", "truncate"])
def test_the_next_pack_mends_it(made: Made, kind: str, how: str) -> None:
    expected = {path: path.read_bytes() for path in files_of(made.store)}
    for path in (each for each in files_of(made.store) if each.parent.name == kind):
        if how == "remove":
            path.unlink()
        elif how == "truncate":
            write(path, path.read_bytes()[:-3])
        else:
            write(path, expected[path][:-2] + b"?" + expected[path][-1:])
    mend(made)
    assert {path: path.read_bytes() for path in files_of(made.store)} == expected


def test_a_missing_file_is_named(made: Made) -> None:
    for path in files_of(made.store):
        whole = path.read_bytes()
        path.unlink()
        try:
            serve_all(made)
        except ErlessError as error:
            assert path.name in str(error)
        else:
            assert path.parent.name in ("keys", "blobs", "order")
        path.write_bytes(whole)


def rewrite(path: Path, **changes: object) -> str:
    """A manifest with other content and the digest that fits it; the name it now should have."""
    document = json.loads(path.read_bytes()) | changes
    content = {key: value for key, value in document.items() if key != "digest"}
    digest = digest_json(content)
    (path.parent / f"{digest}.json").write_text(json.dumps(content | {"digest": digest}))
    return digest


def test_a_newer_schema_is_told(made: Made) -> None:
    folder = Path(made.store)
    release = rewrite(folder / "releases" / f"{made.release.digest}.json", schema_version=2)
    with pytest.raises(ArtifactError, match="erless release schema 2; this erless reads up to 1"):
        open_gateway(Source(made.store), release)
    (damage,) = inventory.verify(open_store(made.store), release)
    assert "schema 2" in damage.fact
    shard = rewrite(folder / "shards" / f"{made.release.shards[0].digest}.json", schema_version=2)
    with pytest.raises(ArtifactError, match="erless shard schema 2; this erless reads up to 1"):
        open_shard(Source(made.store), shard)
    (folder / "store.json").write_text(json.dumps({"kind": "erless store", "schema_version": 2}))
    with pytest.raises(ArtifactError, match="store schema 2; this erless reads up to 1"):
        open_shard(Source(made.store), shard)


def test_a_manifest_under_another_name_is_altered(made: Made) -> None:
    folder = Path(made.store) / "shards"
    first, second = (each.digest for each in made.release.shards[:2])
    shutil.copyfile(folder / f"{second}.json", folder / f"{first}.json")
    with pytest.raises(ArtifactError, match=f"altered: its digest is {second}"):
        open_shard(Source(made.store), first)


def test_fields_that_contradict_the_files_are_told(made: Made) -> None:
    """Digests fit, and still the manifest does not: a writer with a mistake."""
    path = Path(made.store) / "shards" / f"{made.release.shards[1].digest}.json"
    slices = json.loads(path.read_bytes())["slices"]
    slices[0]["table_rows"] += 1000
    with pytest.raises(ArtifactError, match="row index has shape"):
        open_shard(Source(made.store), rewrite(path, slices=slices))
    with pytest.raises(ArtifactError, match="stored rows have shape"):
        open_shard(Source(made.store), rewrite(path, precision="int8"))
    path = Path(made.store) / "releases" / f"{made.release.digest}.json"
    shards = json.loads(path.read_bytes())["shards"]
    shards[0]["tables"][0] = "nobody"
    with pytest.raises(ArtifactError, match="the model has no table nobody"):
        open_gateway(Source(made.store), rewrite(path, shards=shards))
    assert ReleaseManifest.load(path) == made.release


def test_a_store_that_is_full_is_told_and_completed_later(
    made: Made, tmp_path: Path, cli: Cli
) -> None:
    store = tmp_path / "full"
    arguments = (
        "pack",
        "--model",
        made.bundle,
        "--profile",
        made.profile,
        "--plan",
        made.plan,
        "--store",
        store,
    )

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    full = cli(*arguments, preexec_fn=small_files)
    assert full.returncode == 1
    assert "error: cannot write " in full.stderr
    assert "no space left" in full.stderr
    assert "Traceback" not in full.stderr
    assert list(store.glob("tmp/*")) == []
    assert list(store.glob("releases/*")) == []
    assert cli(*arguments).returncode == 0
    assert inventory.verify(open_store(str(store)), made.release.digest) == []


def obey_permissions() -> None:
    """Root writes anywhere unless it gives that up (CAP_DAC_OVERRIDE, for what it starts)."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP


def test_a_store_that_is_read_only_is_told(made: Made, cli: Cli, tmp_path: Path) -> None:
    folders = [Path(made.store), *(p for p in Path(made.store).rglob("*") if p.is_dir())]
    for each in folders:
        each.chmod(0o555)
    (Path(made.store) / ".lock").chmod(0o444)
    try:
        refused = cli(
            "pack",
            "--model",
            made.bundle,
            "--profile",
            made.profile,
            "--plan",
            made.plan,
            "--store",
            made.store,
            preexec_fn=obey_permissions,
        )
        assert refused.returncode == 1
        assert "error: cannot write " in refused.stderr
        assert "Permission denied" in refused.stderr
        # but it can be looked at and verified
        for verb in ("list", "show", "verify"):
            shown = cli("releases", verb, "--store", made.store, preexec_fn=obey_permissions)
            assert shown.returncode == 0, shown.stderr
            assert made.release.digest[:12] in shown.stdout
        absent = cli(
            "pack",
            "--model",
            made.bundle,
            "--profile",
            made.profile,
            "--plan",
            made.plan,
            "--store",
            Path(made.store) / "new",
            preexec_fn=obey_permissions,
        )
        assert absent.returncode == 1
        assert "Permission denied" in absent.stderr
    finally:
        for each in folders:
            each.chmod(0o755)


def test_a_cache_that_is_full_is_told(made: Made, s3: S3, tmp_path: Path) -> None:
    there = make_release(
        tmp_path / "m", model=default_model(300, 4), store=s3.url, endpoint_url=s3.endpoint_url
    )
    source = Source(there.store, s3.endpoint_url, tmp_path / "cache", 1000)
    with pytest.raises(StorageError, match="may hold 1,000 bytes"):
        open_shard(source, there.release.shards[1].digest)
    with pytest.raises(StorageError, match="a cache folder is needed"):
        open_shard(Source(there.store, s3.endpoint_url), there.release.shards[1].digest)


def test_a_bucket_serves_what_a_directory_does(made: Made, s3: S3, tmp_path: Path) -> None:
    there = make_release(
        tmp_path, model=default_model(300, 4), store=s3.url, endpoint_url=s3.endpoint_url
    )
    assert there.release == made.release
    source = Source(there.store, s3.endpoint_url, tmp_path / "cache")
    for query in QueryFile(there.queries):
        np.testing.assert_array_equal(
            sharded_pool(source, there.release, query),
            sharded_pool(Source(made.store), made.release, query),
        )
    blob = there.release.gateway.routing
    s3.client().put_object(
        Bucket=s3.bucket, Key=f"releases/{blob.path}", Body=b"x" * blob.size_bytes
    )
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ArtifactError, match="altered: sha256"):
        open_gateway(source, there.release.digest)
    store = open_store(there.store, endpoint_url=s3.endpoint_url)
    (damage,) = inventory.verify(store, there.release.digest)
    assert damage.name == blob.path
    Packer(PackInputs(there.bundle, there.profile, there.plan), store, verify=True).pack()
    assert inventory.verify(store, there.release.digest) == []
