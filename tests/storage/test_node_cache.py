"""What is on this machine: shared, verified, bounded, and hashed once."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from erless.errors import ArtifactError, StorageError
from erless.storage import verified
from erless.storage.directory import DirectoryStore
from erless.storage.node_cache import NodeCache, obtain
from erless.storage.s3.store import S3Store
from erless.storage.store import Blob, Counter, Ignore, Store, verify_blob
from tests.buckets import S3
from tests.conftest import ROOT
from tests.faulty import Fault, FaultyProxy

DIGEST, OTHER, THIRD = "a" * 64, "b" * 64, "c" * 64


def make_blob(store: Store, tmp_path: Path, data: bytes) -> Blob:
    digest = hashlib.sha256(data).hexdigest()
    blob = Blob(f"blobs/{digest}.safetensors", len(data), digest)
    staged = tmp_path / "staged"
    staged.write_bytes(data)
    store.adopt(staged, blob, Ignore())
    return blob


@pytest.fixture
def proxy(s3: S3) -> Iterator[FaultyProxy]:
    with FaultyProxy(s3.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def store(s3: S3, proxy: FaultyProxy) -> S3Store:
    return S3Store(s3.url, proxy.url)


class Hashed:
    """Counts the files that are hashed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []

        def watched(path: Path, blob: Blob, counter: Counter) -> None:
            self.names.append(path.name)
            verify_blob(path, blob, counter)

        monkeypatch.setattr(verified, "verify_blob", watched)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Hashed:
    return Hashed(monkeypatch)


def test_a_set_is_fetched_once(
    store: S3Store, proxy: FaultyProxy, tmp_path: Path, hashed: Hashed
) -> None:
    blobs = [make_blob(store, tmp_path, bytes([n]) * 1000) for n in range(3)]
    cache = NodeCache(tmp_path / "cache", 10_000)
    proxy.seen.clear()
    with obtain(store, DIGEST, blobs, cache) as lease:
        assert (lease.folder / blobs[1].name).read_bytes() == b"\1" * 1000
    with obtain(store, DIGEST, blobs, cache):
        pass
    assert len(proxy.seen) == 3
    assert hashed.names == []  # the first was hashed as it arrived, the second is noted


@pytest.mark.parametrize("how", ["flip", "truncate", "remove", "replace"])
def test_a_set_that_was_damaged_is_fetched_again(store: S3Store, tmp_path: Path, how: str) -> None:
    blob = make_blob(store, tmp_path, b"x" * 1000)
    cache = NodeCache(tmp_path / "cache", 10_000)
    with obtain(store, DIGEST, [blob], cache) as lease:
        path = lease.folder / blob.name
        if how == "flip":
            with path.open("r+b") as file:
                file.seek(500)
                file.write(b"y")
        elif how == "truncate":
            os.truncate(path, 999)
        elif how == "remove":
            path.unlink()
        else:
            (tmp_path / "other").write_bytes(b"z" * 1000)
            (tmp_path / "other").replace(path)
    with obtain(store, DIGEST, [blob], cache) as lease:
        assert (lease.folder / blob.name).read_bytes() == b"x" * 1000


def test_a_directory_is_hashed_once_per_machine_and_again_when_touched(
    tmp_path: Path, hashed: Hashed
) -> None:
    store = DirectoryStore(tmp_path / "store", create=True)
    blobs = [make_blob(store, tmp_path, bytes([n]) * 1000) for n in range(2)]
    cache = NodeCache(tmp_path / "cache", 0)
    for _ in range(3):
        obtain(store, DIGEST, blobs, cache).close()
    assert len(hashed.names) == 2
    obtain(store, DIGEST, blobs).close()  # no cache, no memory
    assert len(hashed.names) == 4
    path = tmp_path / "store" / blobs[0].name
    path.chmod(0o644)
    status = path.stat()
    with path.open("r+b") as file:
        file.write(b"!")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if nothing had happened
    with pytest.raises(ArtifactError, match="altered: sha256"):
        obtain(store, DIGEST, blobs, cache)


@pytest.mark.parametrize("note", [b"", b"[]", b"{", b'{"blobs/x": 3}'])
def test_a_damaged_note_costs_only_time(tmp_path: Path, hashed: Hashed, note: bytes) -> None:
    store = DirectoryStore(tmp_path / "store", create=True)
    blob = make_blob(store, tmp_path, b"x" * 1000)
    cache = NodeCache(tmp_path / "cache", 0)
    path = tmp_path / "cache" / ".notes" / f"{DIGEST}.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(note)
    obtain(store, DIGEST, [blob], cache).close()
    assert len(hashed.names) == 1
    assert json.loads(path.read_bytes()).keys() == {blob.name}


def test_the_oldest_unused_set_goes_first(store: S3Store, tmp_path: Path) -> None:
    blobs = {
        name: make_blob(store, tmp_path, name.encode()[:1] * 900) for name in (DIGEST, OTHER, THIRD)
    }
    cache = NodeCache(tmp_path / "cache", 3000)
    with ExitStack() as stack:
        stack.enter_context(obtain(store, DIGEST, [blobs[DIGEST]], cache))
        obtain(store, OTHER, [blobs[OTHER]], cache).close()
        os.utime(tmp_path / "cache" / DIGEST, (1, 1))  # the older one, but in use
        obtain(store, THIRD, [blobs[THIRD]], cache).close()
        assert (tmp_path / "cache" / DIGEST).exists()
        assert not (tmp_path / "cache" / OTHER).exists()
    obtain(store, OTHER, [blobs[OTHER]], cache).close()
    assert not (tmp_path / "cache" / DIGEST).exists()


def test_a_cache_that_cannot_hold_it_says_so(store: S3Store, tmp_path: Path) -> None:
    blob = make_blob(store, tmp_path, b"x" * 1000)
    with pytest.raises(StorageError, match="may hold 999 bytes: 0 are in use, 1,000 more"):
        obtain(store, DIGEST, [blob], NodeCache(tmp_path / "cache", 999))
    with pytest.raises(StorageError, match="a cache folder is needed"):
        obtain(store, DIGEST, [blob])


PROGRAM = """
import sys, time
from pathlib import Path
from erless.storage.node_cache import NodeCache, obtain
from erless.storage.s3.store import S3Store
from erless.storage.store import Blob
url, endpoint, folder, digest, name, size, sha = sys.argv[1:]
blob = Blob(name, int(size), sha)
with obtain(S3Store(url, endpoint), digest, [blob], NodeCache(Path(folder), 1 << 30)) as lease:
    assert (lease.folder / name).stat().st_size == int(size)
    print("ready", flush=True)
    sys.stdin.read()
"""


def start(s3: S3, endpoint: str, folder: Path, blob: Blob) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            PROGRAM,
            s3.url,
            endpoint,
            str(folder),
            DIGEST,
            blob.name,
            str(blob.size_bytes),
            blob.sha256,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_replicas_on_one_machine_fetch_once(
    s3: S3, store: S3Store, proxy: FaultyProxy, tmp_path: Path
) -> None:
    blob = make_blob(store, tmp_path, b"x" * 100_000)
    proxy.seen.clear()
    replicas = [start(s3, proxy.url, tmp_path / "cache", blob) for _ in range(4)]
    for each in replicas:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    assert [method for method, _ in proxy.seen] == ["GET"]
    for each in replicas:
        each.communicate(timeout=60)
        assert each.returncode == 0


def test_a_fetch_that_was_killed_is_done_again(
    s3: S3,
    store: S3Store,
    proxy: FaultyProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blob = make_blob(store, tmp_path, b"x" * 1000)
    asked = threading.Event()
    take = proxy.take

    def stall(method: str, path: str) -> Fault:
        asked.set()
        take(method, path)
        return Fault(stall_s=5)

    with monkeypatch.context() as stalled:
        stalled.setattr(proxy, "take", stall)
        killed = start(s3, proxy.url, tmp_path / "cache", blob)
        assert asked.wait(60)
        killed.kill()
        killed.communicate(timeout=60)
    assert not (tmp_path / "cache" / DIGEST).exists()
    with obtain(store, DIGEST, [blob], NodeCache(tmp_path / "cache", 1000)) as lease:
        assert (lease.folder / blob.name).read_bytes() == b"x" * 1000
    assert not list((tmp_path / "cache").glob(".tmp-*"))
