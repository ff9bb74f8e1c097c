from pathlib import Path

import numpy as np
import pytest

from erless.dlrm.workload import WORKLOADS
from erless.errors import PlanError
from erless.plan.planner import Planner
from erless.plan.request import PlanRequest
from erless.plan.source import profile_tables
from erless.specs.artifact import FileEntry
from erless.specs.bundle import BundleManifest
from erless.specs.model import ModelSpec, TableSpec
from erless.specs.profile import MANIFEST, Profile, TableAccess
from erless.storage.tensors import write_tensors
from tests.plan.instances import assert_covers


def make(folder: Path, digest: str = "", rows: int = 1000, samples: int = 8020) -> BundleManifest:
    entries = [
        FileEntry(path=path, size_bytes=1, sha256="0" * 64)
        for path in ("tables/seen.safetensors", "tables/absent.safetensors", "tower.safetensors")
    ]
    model = ModelSpec(
        dense_features=256,
        tables=(
            TableSpec(name="seen", rows=1000, dim=32),
            TableSpec(name="absent", rows=50, dim=32),
        ),
        tower=WORKLOADS["rm1"].model().tower,
    )
    bundle = BundleManifest.create(model=model, tables=tuple(entries[:2]), tower=entries[2])
    counts = np.arange(400, 0, -1, dtype=np.int64)
    (folder / "counts").mkdir()
    found = write_tensors(
        folder / "counts/seen.safetensors",
        {"ids": np.arange(400, dtype=np.int64), "counts": counts},
    )
    file = FileEntry(
        path="counts/seen.safetensors", size_bytes=found.size_bytes, sha256=found.sha256
    )
    Profile.create(
        model_digest=digest or bundle.digest,
        sources=("log",),
        tables=(
            TableAccess(
                table="seen", rows=rows, samples=samples, accesses=80200, touched=400, counts=file
            ),
        ),
    ).save(folder / MANIFEST)
    return bundle


def test_a_table_absent_from_the_log_is_cold(tmp_path: Path) -> None:
    bundle = make(tmp_path)
    _, tables, notes = profile_tables(bundle, tmp_path, 32)
    assert tables[0].gathers == pytest.approx(320)
    assert tables[1].gathers == 0
    assert notes == ["table absent is not in the log: all its rows are cold"]
    found = Planner(bundle.model, tables, PlanRequest(equal_containers=True)).outcome(
        ["elasticrec"]
    )
    for each in found.best.values():
        assert_covers(each.layout)


def test_a_profile_of_another_bundle_is_refused(tmp_path: Path) -> None:
    bundle = make(tmp_path, digest="1" * 64)
    with pytest.raises(PlanError, match="profiled for bundle 111111111111"):
        profile_tables(bundle, tmp_path, 32)
    assert profile_tables(bundle, tmp_path, 32, stale=True)[1][0].rows == 1000


def test_tables_of_another_size_are_refused(tmp_path: Path) -> None:
    bundle = make(tmp_path, rows=999)
    with pytest.raises(PlanError, match="999 rows in the profile, 1,000 in the model"):
        profile_tables(bundle, tmp_path, 32)


def test_a_log_of_unknown_samples_gives_no_traffic(tmp_path: Path) -> None:
    bundle = make(tmp_path, samples=0)
    with pytest.raises(PlanError, match="table seen: the log did not say how many samples"):
        profile_tables(bundle, tmp_path, 32)


def test_a_profile_of_speed_alone_has_no_hotness(tmp_path: Path) -> None:
    bundle = make(tmp_path)
    Profile.create(model_digest=bundle.digest, sources=(), tables=()).save(tmp_path / MANIFEST)
    with pytest.raises(PlanError, match="no accesses, only measurements of speed"):
        profile_tables(bundle, tmp_path, 32)


def test_all_tables_cold_is_still_a_plan(tmp_path: Path) -> None:
    """A model whose log touches one table only, in so few rows that almost all is cold."""
    bundle = make(tmp_path)
    _, tables, _ = profile_tables(bundle, tmp_path, 32)
    idle = [tables[1]]
    model = bundle.model.model_copy(update={"tables": (idle[0].spec,)})
    found = Planner(model, idle, PlanRequest(qps=10, shards=1)).outcome()
    assert_covers(found.best["joint"].layout)
