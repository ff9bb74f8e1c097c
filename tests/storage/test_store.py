"""One contract for every store: a folder and a bucket answer alike."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from erless.errors import ArtifactError, StoreError
from erless.storage.store import Blob, Ignore, Store
from erless.storage.stores import open_store
from tests.buckets import S3


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"), create=True)
    s3: S3 = request.getfixturevalue("s3")
    return open_store(s3.url, endpoint_url=s3.endpoint_url, create=True)


def adopt(store: Store, data: bytes) -> Blob:
    digest = hashlib.sha256(data).hexdigest()
    blob = Blob(f"blobs/{digest}.bin", len(data), digest)
    with store.staging() as stage:
        (stage / "x").write_bytes(data)
        store.adopt(stage / "x", blob, Ignore())
    return blob


def names(store: Store, prefix: str) -> list[str]:
    return [each.name for each in store.list(prefix)]


def test_documents_are_created_once(store: Store) -> None:
    store.create("a/x.json", b"1")
    store.create("a/x.json", b"1")
    with pytest.raises(StoreError, match="exists already with other content"):
        store.create("a/x.json", b"2")
    store.replace("a/x.json", b"2")
    assert store.read("a/x.json") == b"2"
    store.delete("a/x.json")
    store.delete("a/x.json")
    with pytest.raises(ArtifactError, match="does not exist"):
        store.read("a/x.json")


def test_a_list_goes_as_deep_as_the_names_do(store: Store) -> None:
    blob = adopt(store, b"hello")
    for name in ("releases/b.json", "releases/a.json", "deep/er/still.json"):
        store.create(name, b"{}")
    everything = [blob.name, "deep/er/still.json", "releases/a.json", "releases/b.json"]
    assert names(store, "") == [*everything, "store.json"]
    assert names(store, "releases/") == ["releases/a.json", "releases/b.json"]
    assert names(store, "releases/a") == ["releases/a.json"]
    assert names(store, "deep/") == ["deep/er/still.json"]
    assert names(store, "nothing/") == []
    assert [each.size_bytes for each in store.list("blobs/")] == [5]


def test_what_is_being_made_is_not_listed(store: Store) -> None:
    with store.staging() as stage:
        (stage / "half").write_bytes(b"x")
        assert names(store, "") == ["store.json"]


def test_blobs_are_adopted_checked_and_fetched(store: Store, tmp_path: Path) -> None:
    blob = adopt(store, b"hello")
    store.check(blob, Ignore())
    store.fetch(blob, tmp_path / "copy", Ignore())
    assert (tmp_path / "copy").read_bytes() == b"hello"
    absent = Blob("blobs/absent.bin", 5, blob.sha256)
    with pytest.raises(ArtifactError, match="does not exist"):
        store.check(absent, Ignore())


@pytest.mark.parametrize("wrong", ["content", "size"])
def test_a_file_is_replaced_only_by_what_was_verified(
    store: Store, tmp_path: Path, wrong: str
) -> None:
    blob = adopt(store, b"hello")
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    size, digest = (5, "0" * 64) if wrong == "content" else (6, blob.sha256)
    with pytest.raises(ArtifactError, match=r"altered|truncated"):
        store.fetch(Blob(blob.name, size, digest), target, Ignore())
    assert target.read_bytes() == b"precious"
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["target"]


def test_links_do_not_lead_out_of_a_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"hello")
    store = open_store(str(tmp_path / "store"), create=True)
    blob = adopt(store, b"hello")
    path = tmp_path / "store" / blob.name
    path.unlink()
    path.symlink_to(secret)
    (tmp_path / "store" / "up").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="leads out of"):
        store.check(blob, Ignore())
    with pytest.raises(ArtifactError, match="leads out of"):
        store.fetch(blob, tmp_path / "copy", Ignore())
    for name in ("up/secret", "../secret", "/etc/hostname"):
        with pytest.raises(ArtifactError, match="leads out of"):
            store.read(name)
        with pytest.raises(ArtifactError, match="leads out of"):
            store.replace(name, b"x")
    assert names(store, "") == ["store.json"]
    assert secret.read_bytes() == b"hello"
