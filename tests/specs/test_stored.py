"""Releases in a store stand in the order in which they were packed, whatever clocks say."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from erless.errors import ArtifactError
from erless.pack import inventory
from erless.pack.inputs import PackInputs
from erless.pack.packer import Packer
from erless.specs.plan import Precision
from erless.specs.stored import find_release, list_releases, record_release
from erless.storage.store import Store
from erless.storage.stores import open_store
from tests.buckets import S3
from tests.releases import TIERS, default_model, make_plan, make_release

SMALL = default_model(300, 4)

Where = tuple[str, str | None]  # a store and its endpoint


@pytest.fixture(params=["folder", "bucket"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Where:
    if request.param == "folder":
        return str(tmp_path / "releases"), None
    s3: S3 = request.getfixturevalue("s3")
    return s3.url, s3.endpoint_url


def two_releases(tmp_path: Path, where: Where) -> tuple[Store, str, str]:
    """A store with two releases: the digest of the first, and of the second."""
    location, endpoint = where
    made = make_release(tmp_path, model=SMALL, store=location, endpoint_url=endpoint)
    store = open_store(location, endpoint_url=endpoint)
    tiers = [*TIERS[:2], TIERS[2]._replace(precision=Precision.INT4), TIERS[3]]
    make_plan(made.bundle, made.profile, tiers).save(tmp_path / "second.json")
    packed = Packer(PackInputs(made.bundle, made.profile, tmp_path / "second.json"), store).pack()
    assert packed.release is not None
    return store, made.release.digest, packed.release.digest


def test_the_newest_is_the_last_packed_though_its_file_is_older(
    tmp_path: Path, where: Where
) -> None:
    store, first, second = two_releases(tmp_path, where)
    name = f"releases/{first}.json"
    text = store.read(name)
    store.delete(name)
    store.create(name, text)  # its file is now the youngest, as after a clock was set back
    assert [digest for digest, _ in list_releases(store)] == [second, first]
    assert find_release(store, "").digest == second
    inventory.prune(store, keep={first}, grace_s=-60)
    assert find_release(store, "").digest == first
    assert [each.name for each in store.list("order/")] == ["order/00000001.json"]


def test_packing_again_changes_no_order(tmp_path: Path, where: Where) -> None:
    store, first, second = two_releases(tmp_path, where)
    record_release(store, first)
    assert [digest for digest, _ in list_releases(store)] == [second, first]
    assert len(store.list("order/")) == 2


def test_releases_from_before_the_order_come_last(tmp_path: Path, where: Where) -> None:
    store, first, second = two_releases(tmp_path, where)
    store.delete("order/00000002.json")
    assert [digest for digest, _ in list_releases(store)] == [first, second]
    assert find_release(store, "").digest == first
    record_release(store, second)
    assert find_release(store, "").digest == second


def test_packers_at_once_each_get_a_number_of_their_own(tmp_path: Path, where: Where) -> None:
    location, endpoint = where
    open_store(location, endpoint_url=endpoint, create=True)
    digests = [hashlib.sha256(bytes([number])).hexdigest() for number in range(8)]

    def record(digest: str) -> None:
        record_release(open_store(location, endpoint_url=endpoint), digest)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(record, digests * 2))
    store = open_store(location, endpoint_url=endpoint)
    recorded = {store.read(each.name) for each in store.list("order/")}
    assert len(recorded) == len(store.list("order/")) == len(digests)


@pytest.mark.parametrize("text", [b"{}", b"[" * 10_000, b'{"release": "../../x"}', b"\xff"])
def test_a_damaged_record_is_named(tmp_path: Path, where: Where, text: bytes) -> None:
    store, _, _ = two_releases(tmp_path, where)
    store.replace("order/00000002.json", text)
    with pytest.raises(ArtifactError, match=r"order/00000002\.json"):
        find_release(store, "")
