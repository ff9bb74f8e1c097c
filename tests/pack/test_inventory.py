"""What a store holds, and what pruning leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from erless.errors import ArtifactError, StoreError
from erless.pack import inventory
from erless.pack.inputs import PackInputs
from erless.pack.packer import Packer
from erless.specs.plan import Precision
from erless.specs.stored import find_release, list_releases
from erless.storage.store import Store
from erless.storage.stores import open_store
from tests.releases import TIERS, Made, default_model, make_plan, make_release

SMALL = default_model(300, 4)


@pytest.fixture(params=["directory", "bucket"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Store, Made, str]:
    """A store with two releases that share all shards but one; the older one's digest last."""
    where = {}
    if request.param == "bucket":
        s3 = request.getfixturevalue("s3")
        where = {"store": s3.url, "endpoint_url": s3.endpoint_url}
    made = make_release(tmp_path, model=SMALL, **where)
    store = open_store(made.store, endpoint_url=where.get("endpoint_url"))
    tiers = [*TIERS[:2], TIERS[2]._replace(precision=Precision.INT4), TIERS[3]]
    make_plan(made.bundle, made.profile, tiers).save(tmp_path / "second.json")
    packed = Packer(PackInputs(made.bundle, made.profile, tmp_path / "second.json"), store).pack()
    assert packed.release is not None
    return store, made, packed.release.digest


def test_releases_are_listed_and_found(two: tuple[Store, Made, str]) -> None:
    store, made, second = two
    assert {digest for digest, _ in list_releases(store)} == {made.release.digest, second}
    assert find_release(store, second[:20]).digest == second
    with pytest.raises(StoreError, match="holds no release ffff"):
        find_release(store, "f" * 64)


def test_pruning_leaves_what_is_kept_whole(two: tuple[Store, Made, str]) -> None:
    store, made, second = two
    young = inventory.prune(store, keep={second})  # all of it is younger than the grace period
    assert (young.releases, young.objects) == ((), 0)
    would = inventory.prune(store, keep={second}, grace_s=-60, dry_run=True)
    assert len(list_releases(store)) == 2
    done = inventory.prune(store, keep={second}, grace_s=-60)
    assert would == done
    assert done.releases == (made.release.digest,)
    assert [digest for digest, _ in list_releases(store)] == [second]
    assert inventory.verify(store, second) == []
    # the old release's one shard went, with its manifest, keys and files
    cold = len(made.release.shard("cold").tables)
    assert done.objects == 1 + 1 + 1 + cold + cold + 1  # its place in the order, the old plan
    again = inventory.prune(store, keep={second}, grace_s=-60)
    assert again.objects == 0
    packed = Packer(PackInputs(made.bundle, made.profile, made.plan), store).pack()
    assert packed.slices_written == cold
    assert inventory.verify(store, made.release.digest) == []


def test_pruning_nothing_that_is_not_there(two: tuple[Store, Made, str]) -> None:
    store, _, second = two
    with pytest.raises(StoreError, match="holds no release 0000"):
        inventory.prune(store, keep={"0" * 64})
    assert len(list_releases(store)) == 2
    store.replace(f"releases/{second}.json", b"{}")
    with pytest.raises(ArtifactError, match="not a erless release"):
        inventory.prune(store, keep={second}, grace_s=-60)
    assert len(list_releases(store)) == 2
