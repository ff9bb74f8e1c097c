"""What a function opens of a release: complete, exact, verified, and light to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from erless.dlrm.queries import QueryFile
from erless.dlrm.reference import Monolith
from erless.dlrm.tower import load_tower_file
from erless.plan.costs.cost import DEFAULT_TERMS
from erless.serve.files import Source, open_gateway, open_shard, open_tower
from erless.specs.artifact import FileEntry
from erless.specs.placement import routes_of
from erless.specs.plan import Tier
from erless.specs.release import ReleaseManifest, release_name
from erless.specs.stored import keep_by_digest
from erless.storage.store import Blob, Ignore
from erless.storage.stores import open_store
from erless.storage.tensors import write_tensors
from tests.conftest import ROOT
from tests.releases import TIERS, Cut, Made, make_release
from tests.sharded import sharded_pool


def test_a_release_predicts_what_its_bundle_does(packed_release: Made) -> None:
    source = Source(packed_release.store)
    monolith = Monolith.load(packed_release.bundle)
    with open_tower(source, packed_release.release.digest) as opened:
        tower = load_tower_file(opened.path, opened.model)
        for query in QueryFile(packed_release.queries):
            pooled = sharded_pool(source, packed_release.release, query)
            found = tower(torch.from_numpy(query.dense), list(torch.from_numpy(pooled).unbind(1)))
            np.testing.assert_allclose(found, monolith.predict(query), rtol=1e-5)


def test_the_gateway_holds_residents_and_a_default_per_slice(packed_release: Made) -> None:
    release = packed_release.release
    with open_gateway(Source(packed_release.store), release.digest) as opened:
        assert [release.shards[number].name for number in opened.resident] == ["resident"]
        for number, shard in enumerate(release.shards):
            assert len(opened.defaults[number]) == len(shard.tables)
            assert all(np.isfinite(each).all() for each in opened.defaults[number])


CUTS = (
    (Cut("cold", Tier.COLD, 1.0),),
    (Cut("resident", Tier.RESIDENT, 1.0),),
    (Cut("resident", Tier.RESIDENT, 0.1), Cut("cold", Tier.COLD, 1.0)),
    (Cut("hot", Tier.HOT, 0.1), Cut("cold", Tier.COLD, 1.0)),
    TIERS,
)


def as_before(made: Made, folder: Path) -> ReleaseManifest:
    """The release with its routing in the layout before: a byte for every row."""
    store = open_store(made.store)
    path = folder / "routing"
    size, sha256 = write_tensors(path, routes_of(store, made.release))
    entry = FileEntry(path=f"blobs/{sha256}.safetensors", size_bytes=size, sha256=sha256)
    store.adopt(path, Blob(entry.path, size, sha256), Ignore())
    gateway = made.release.gateway.model_copy(update={"routing": entry})
    release = made.release.amended(gateway=gateway)
    keep_by_digest(store, release_name(release.digest), release.text)
    return release


@pytest.mark.parametrize("cuts", CUTS)
def test_every_cut_is_routed_and_so_are_earlier_releases(
    tmp_path: Path, cuts: tuple[Cut, ...]
) -> None:
    made = make_release(tmp_path, tiers=cuts)
    monolith, source = Monolith.load(made.bundle), Source(made.store)
    before = as_before(made, tmp_path)
    assert before.gateway.routing.size_bytes > made.release.gateway.routing.size_bytes
    for query in QueryFile(made.queries):
        found = sharded_pool(source, made.release, query)
        pooled = np.stack([each.numpy() for each in monolith.pool(query)], axis=1)
        np.testing.assert_allclose(found, pooled, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(sharded_pool(source, before, query), found)


@pytest.mark.parametrize("cuts", CUTS)
def test_routing_takes_the_memory_that_plans_say(tmp_path: Path, cuts: tuple[Cut, ...]) -> None:
    made = make_release(tmp_path, tiers=cuts)
    release = made.release
    with open_gateway(Source(made.store), release.digest) as opened:
        home = next(iter(opened.resident), None)
        resident = opened.resident.values()
        index = sum(part.index.array.nbytes for shard in resident for part in shard.slices)
        taken = index + index * 48 / 32  # unpacked, 192 rows take 48 bytes
        taken += sum(route.elsewhere(home).codes.nbytes for route in opened.routes)
    said = sum(
        table.rows * DEFAULT_TERMS.routing_bytes(len(release.remote), home is not None)
        for table in release.model.tables
    )
    rounding = len(release.model.tables) * (32 + 48 + 1)  # a block of the index, a byte of codes
    assert said <= taken <= said + rounding


def test_opening_twice_shares_pages_and_outlives_the_first(packed_release: Made) -> None:
    digest = packed_release.release.shards[1].digest
    source = Source(packed_release.store)
    with open_shard(source, digest) as first, open_shard(source, digest) as second:
        rows = first.shard.slices[0].rows.copy()
    np.testing.assert_array_equal(second.shard.slices[0].rows, rows)


def test_a_sparse_function_imports_nothing_heavy() -> None:
    program = (
        "import sys, erless.serve.files\n"
        "heavy = {'torch', 'boto3', 'botocore', 'pyarrow', 'scipy', 'typer', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize("which", [1, 2])
def test_a_digest_that_is_not_there_is_told(packed_release: Made, which: int) -> None:
    from erless.errors import ArtifactError

    opener = open_shard if which == 1 else open_gateway
    with pytest.raises(ArtifactError, match="does not exist"):
        opener(Source(packed_release.store), "0" * 64)
    with pytest.raises(ArtifactError, match="is not a digest"):
        opener(Source(packed_release.store), "../../etc/passwd")


def test_a_store_that_is_not_there_is_told(tmp_path: Path) -> None:
    from erless.errors import StoreError

    with pytest.raises(StoreError, match="no such directory"):
        open_shard(Source(str(tmp_path / "nope")), "0" * 64)
