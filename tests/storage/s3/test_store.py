"""The S3 store against a real S3 API, through a network that fails."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest

from erless.errors import ArtifactError, StorageError, StoreError
from erless.storage.s3.bucket import PART_BYTES
from erless.storage.s3.store import S3Store
from erless.storage.store import Blob, Ignore
from erless.storage.stores import open_store
from tests.buckets import S3
from tests.faulty import Fault, FaultyProxy

SIZE = 2 * PART_BYTES + 12_345  # three parts


@pytest.fixture(scope="module")
def data() -> bytes:
    return os.urandom(SIZE)


@pytest.fixture
def proxy(s3: S3) -> Iterator[FaultyProxy]:
    with FaultyProxy(s3.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def store(s3: S3, proxy: FaultyProxy) -> S3Store:
    return S3Store(s3.url, proxy.url, read_timeout_s=2)


def blob_of(data: bytes) -> Blob:
    digest = hashlib.sha256(data).hexdigest()
    return Blob(f"blobs/{digest}.safetensors", len(data), digest)


def put(store: S3Store, tmp_path: Path, data: bytes) -> Blob:
    blob = blob_of(data)
    staged = tmp_path / "staged"
    staged.write_bytes(data)
    store.adopt(staged, blob, Ignore())
    assert not staged.exists()
    return blob


def get(store: S3Store, tmp_path: Path, blob: Blob) -> bytes:
    target = tmp_path / "fetched"
    store.fetch(blob, target, Ignore())
    return target.read_bytes()


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, SIZE])
def test_what_is_put_is_got(store: S3Store, tmp_path: Path, data: bytes, size: int) -> None:
    blob = put(store, tmp_path, data[:size])
    assert get(store, tmp_path, blob) == data[:size]
    store.check(blob, Ignore())
    assert [each.name for each in store.list("blobs/")] == [blob.name]


def test_what_is_there_is_not_sent_again(
    store: S3Store, proxy: FaultyProxy, tmp_path: Path, data: bytes
) -> None:
    put(store, tmp_path, data)
    proxy.seen.clear()
    put(store, tmp_path, data)
    assert [method for method, _ in proxy.seen] == ["HEAD"]


UPLOADS = {
    "500": Fault(status=500),
    "503 slow down": Fault(status=503, code="SlowDown"),
    "cut before the answer": Fault(drop_request=True),
    "silence": Fault(stall_s=3),
}


@pytest.mark.parametrize("fault", UPLOADS.values(), ids=UPLOADS)
def test_uploads_survive(
    store: S3Store, proxy: FaultyProxy, tmp_path: Path, data: bytes, fault: Fault
) -> None:
    proxy.fail(fault, times=3, method="PUT", part="partNumber")
    blob = put(store, tmp_path, data)
    assert get(store, tmp_path, blob) == data


DOWNLOADS = {
    **UPLOADS,
    "cut at once": Fault(drop_after=0),
    "cut in the middle": Fault(drop_after=3_000_000),
}


@pytest.mark.parametrize("fault", DOWNLOADS.values(), ids=DOWNLOADS)
def test_downloads_survive(
    store: S3Store, proxy: FaultyProxy, tmp_path: Path, data: bytes, fault: Fault
) -> None:
    blob = put(store, tmp_path, data)
    proxy.fail(fault, times=3, method="GET")
    assert get(store, tmp_path, blob) == data


def test_a_download_goes_on_where_it_was_cut(
    store: S3Store, proxy: FaultyProxy, s3: S3, tmp_path: Path, data: bytes
) -> None:
    blob = put(store, tmp_path, data)
    proxy.seen.clear()
    proxy.fail(Fault(drop_after=PART_BYTES // 2), times=6, method="GET")
    assert get(store, tmp_path, blob) == data
    # six cuts at half a part: at most one more request for each, not one more part for each
    assert len(proxy.seen) <= 3 + 6


def test_a_byte_altered_on_the_way_is_found(
    store: S3Store, proxy: FaultyProxy, tmp_path: Path, data: bytes
) -> None:
    blob = put(store, tmp_path, data)
    proxy.fail(Fault(flip=77), method="GET")
    with pytest.raises(ArtifactError, match="altered: sha256"):
        get(store, tmp_path, blob)
    assert get(store, tmp_path, blob) == data


def test_an_upload_that_was_cut_off_is_taken_up(
    s3: S3, proxy: FaultyProxy, tmp_path: Path, data: bytes
) -> None:
    impatient = S3Store(s3.url, proxy.url, read_timeout_s=2, attempts=1)
    proxy.fail(Fault(status=500), times=9, method="PUT", part="partNumber=3")
    with pytest.raises(StorageError, match="S3 answered 500"):
        put(impatient, tmp_path, data)
    assert s3.client().list_objects_v2(Bucket=s3.bucket)["KeyCount"] == 0  # nothing is visible
    proxy.clear()
    proxy.seen.clear()
    blob = put(impatient, tmp_path, data)
    sent = [path for method, path in proxy.seen if method == "PUT"]
    assert 1 <= len(sent) < 3, sent  # part 3, and what had not arrived when the first run ended
    assert get(impatient, tmp_path, blob) == data


def test_a_part_that_changed_is_sent_again(
    s3: S3, store: S3Store, tmp_path: Path, data: bytes
) -> None:
    """An upload of another run, whose part does not hold our bytes."""
    blob = blob_of(data)
    key = f"releases/{blob.name}"
    there = s3.client()
    upload = there.create_multipart_upload(Bucket=s3.bucket, Key=key, ChecksumAlgorithm="CRC32")
    there.upload_part(
        Bucket=s3.bucket, Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"x" * PART_BYTES
    )
    put(store, tmp_path, data)
    assert get(store, tmp_path, blob) == data


def test_when_it_never_answers_that_is_told(s3: S3, proxy: FaultyProxy, tmp_path: Path) -> None:
    store = S3Store(s3.url, proxy.url, read_timeout_s=1, attempts=2)
    blob = put(store, tmp_path, b"x" * 100)
    proxy.fail(Fault(status=503, code="SlowDown"), times=99)
    with pytest.raises(StorageError, match="S3 answered 503 SlowDown 2 times"):
        store.read("store.json")
    with pytest.raises(StorageError, match="S3 answered 503"):
        store.list("blobs/")
    proxy.clear()
    proxy.fail(Fault(drop_after=0), times=99)
    with pytest.raises(StorageError, match="no bytes at offset 0 in 2 attempts|cannot read"):
        get(store, tmp_path, blob)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    with pytest.raises(StorageError, match="cannot read"):
        S3Store(s3.url, f"http://127.0.0.1:{port}", attempts=1).read("store.json")


def test_a_bucket_that_is_not_there_is_told(s3: S3, tmp_path: Path) -> None:
    for create in (False, True):
        with pytest.raises(StoreError, match="there is no bucket nowhere"):
            open_store("s3://nowhere/x", endpoint_url=s3.endpoint_url, create=create)
    with pytest.raises(StoreError, match="there is no bucket nowhere"):
        put(S3Store("s3://nowhere/x", s3.endpoint_url), tmp_path, b"x")
    with pytest.raises(StoreError, match="names no bucket"):
        open_store("s3:///x", endpoint_url=s3.endpoint_url)
    with pytest.raises(StorageError, match="Invalid bucket name"):
        open_store("s3://not a bucket/x", endpoint_url=s3.endpoint_url)


def test_an_empty_prefix_is_no_store(s3: S3) -> None:
    with pytest.raises(StoreError, match="is not a release store: it has no store.json"):
        open_store(s3.url, endpoint_url=s3.endpoint_url)
    open_store(s3.url, endpoint_url=s3.endpoint_url, create=True)
    open_store(s3.url, endpoint_url=s3.endpoint_url)


def test_wrong_credentials_are_told(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    def authenticate(after: bytes) -> None:
        server = http.client.HTTPConnection(urlsplit(s3.endpoint_url).netloc, timeout=10)
        with closing(server):
            server.request("POST", "/moto-api/reset-auth", after, {"Content-Type": "text/plain"})
            assert server.getresponse().status == 200

    authenticate(b"0")  # from now on the server checks who asks
    try:
        with pytest.raises(StorageError, match=r"cannot read .*: access refused \(InvalidAccess"):
            open_store(s3.url, endpoint_url=s3.endpoint_url)
    finally:
        authenticate(b"inf")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers credentials
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(StorageError, match="no AWS credentials found"):
        open_store(s3.url, endpoint_url=s3.endpoint_url)


def test_documents_are_created_once(store: S3Store) -> None:
    store.create("releases/a.json", b"1")
    store.create("releases/a.json", b"1")  # the same: found
    with pytest.raises(StoreError, match="exists already with other content"):
        store.create("releases/a.json", b"2")
    assert store.read("releases/a.json") == b"1"
    store.replace("releases/a.json", b"2")
    assert store.read("releases/a.json") == b"2"
    store.delete("releases/a.json")
    store.delete("releases/a.json")
    with pytest.raises(ArtifactError, match=r"releases/a.json does not exist"):
        store.read("releases/a.json")


def test_an_answer_that_was_lost_is_not_a_conflict(store: S3Store, proxy: FaultyProxy) -> None:
    """The write arrived, the answer did not: the second try finds its own bytes."""
    proxy.fail(Fault(drop_after=0), method="PUT")
    store.create("releases/a.json", b"1")
    assert store.read("releases/a.json") == b"1"


def test_what_is_truncated_or_missing_is_told(
    s3: S3, store: S3Store, tmp_path: Path, data: bytes
) -> None:
    blob = put(store, tmp_path, data)
    key = f"releases/{blob.name}"
    s3.client().put_object(Bucket=s3.bucket, Key=key, Body=data[:-1])
    with pytest.raises(ArtifactError, match="truncated or altered"):
        get(store, tmp_path, blob)
    s3.client().put_object(Bucket=s3.bucket, Key=key, Body=data[:99] + b"?" + data[100:])
    with pytest.raises(ArtifactError, match="altered: sha256"):
        store.check(blob, Ignore())
    s3.client().delete_object(Bucket=s3.bucket, Key=key)
    with pytest.raises(ArtifactError, match="does not exist"):
        get(store, tmp_path, blob)


def test_a_target_without_room_is_told(store: S3Store, tmp_path: Path) -> None:
    blob = put(store, tmp_path, b"x" * 100)
    with pytest.raises(StorageError, match="cannot write"):
        store.fetch(blob, Path("/dev/full/x"), Ignore())


def test_uploads_that_stopped_are_swept(s3: S3, store: S3Store) -> None:
    s3.client().create_multipart_upload(Bucket=s3.bucket, Key="releases/blobs/x")
    assert store.sweep(0.0) == 0
    assert store.sweep(2e10) == 1
    assert "Uploads" not in s3.client().list_multipart_uploads(Bucket=s3.bucket)
