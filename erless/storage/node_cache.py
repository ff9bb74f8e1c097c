"""The node-local cache: what replicas on one machine fetched from a bucket, once for all of them.

    CACHE/<digest>/<name of the blob>     complete and verified, or not there under that name
    CACHE/<digest>/.verified.json         which files were hashed (`erless.storage.verified`)
    CACHE/.<digest>.lock                  held by whoever fetches it
    CACHE/.tmp-<digest>/                  while it is fetched
    CACHE/.notes/<digest>.json            what was hashed of a store that is a directory

A user holds an flock on the folder, shared; eviction needs it alone, so what is in use stays. The
folder's mtime is when it was last asked for: the oldest unused goes first.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from erless.errors import ArtifactError, StorageError
from erless.storage.atomic import fsync_directory, os_errors
from erless.storage.store import Blob, Counter, Ignore, Store
from erless.storage.verified import note_blobs, verify_blobs

__all__ = ["Lease", "NodeCache", "obtain"]

NOTE = ".verified.json"
SMALL_FILE_THREADS = 8
SMALL_BYTES = 8 << 20


class Lease:
    """Blobs on this machine: `folder / blob.name` can be mapped until the lease is closed.

    Args:
        folder: where the blobs lie.
        lock: a descriptor whose flock keeps them from being evicted, or None.
    """

    def __init__(self, folder: Path, lock: int | None = None) -> None:
        self.folder = folder
        self._lock = lock

    def close(self) -> None:
        """Let the cache evict the blobs when it needs their room."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def obtain(
    store: Store,
    digest: str,
    blobs: Sequence[Blob],
    cache: NodeCache | None = None,
    *,
    counter: Counter | None = None,
) -> Lease:
    """Have `blobs` on this machine, each verified: in place in a directory, or in the cache.

    Args:
        store: where they are.
        digest: names the set of blobs, in the cache.
        blobs: what to have.
        cache: needed where the store is not a directory; where it is one, only what was verified
            is remembered there (None: each call reads and hashes everything).
        counter: counts the bytes verified or fetched.

    Raises:
        ArtifactError: a blob is missing, truncated or altered.
        StorageError: the disk or service refused, or the cache is too small.
    """
    counter = counter or Ignore()
    if store.folder is not None:
        note = cache.folder / ".notes" / f"{digest}.json" if cache else None
        verify_blobs(store.folder, blobs, note, counter)
        return Lease(store.folder)
    if cache is None:
        raise StorageError(f"{store.url}: a cache folder is needed to load from it")
    return cache.acquire(store, digest, blobs, counter)


class NodeCache:
    """Fetched blobs in `folder`, at most `limit_bytes` of them.

    Args:
        folder: on this machine, shared by all processes that name it.
        limit_bytes: evict the oldest unused sets rather than exceed this.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    def acquire(self, store: Store, digest: str, blobs: Sequence[Blob], counter: Counter) -> Lease:
        """The set `digest`, fetched if it is not here or no longer whole.

        Raises:
            ArtifactError: the store's own copy is missing or altered.
            StorageError: the cache cannot hold it beside what is in use.
        """
        with os_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / digest
        with self._locked(f".{digest}.lock"):
            lease = self._lease(target)
            if lease:
                try:
                    verify_blobs(target, blobs, target / NOTE, counter)
                except ArtifactError:
                    lease.close()
                    shutil.rmtree(target, ignore_errors=True)  # whoever maps it keeps its pages
                else:
                    with os_errors(target):
                        os.utime(target)
                    return lease
            self._fetch(store, digest, blobs, counter)
            lease = self._lease(target)
        if lease is None:
            raise StorageError(f"{target} was removed while it was being opened")
        return lease

    def _fetch(self, store: Store, digest: str, blobs: Sequence[Blob], counter: Counter) -> None:
        stage = self.folder / f".tmp-{digest}"
        shutil.rmtree(stage, ignore_errors=True)  # a killed process's: we hold the set's lock
        with self._locked(".lock"), os_errors(stage):
            self._make_room(sum(blob.size_bytes for blob in blobs))
            stage.mkdir()
            (stage / ".reserved").write_text(
                str(sum(blob.size_bytes for blob in blobs)), encoding="utf-8"
            )
        try:
            with os_errors(stage):
                for parent in {(stage / blob.name).parent for blob in blobs}:
                    parent.mkdir(parents=True, exist_ok=True)
            small = [blob for blob in blobs if blob.size_bytes <= SMALL_BYTES]
            with ThreadPoolExecutor(SMALL_FILE_THREADS) as pool:
                fetches = [
                    pool.submit(store.fetch, blob, stage / blob.name, counter) for blob in small
                ]
                for fetch in fetches:
                    fetch.result()
            for blob in blobs:
                if blob.size_bytes > SMALL_BYTES:  # each fetched by ranges in parallel already
                    store.fetch(blob, stage / blob.name, counter)
            note_blobs(stage, blobs, stage / NOTE)
            with os_errors(stage):
                (stage / ".reserved").unlink()
                stage.rename(self.folder / digest)
                fsync_directory(self.folder)
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def _make_room(self, needed: int) -> None:
        """Evict the oldest unused sets until `needed` bytes fit under the limit."""
        for stale in self.folder.glob(".tmp-*"):
            self._remove_abandoned(stale)
        sets = [
            (path.stat().st_mtime, _reserved(path) or _size(path), path)
            for path in self.folder.iterdir()
            if path.is_dir()
        ]
        used = sum(size for _, size, _ in sets)
        for _, size, path in sorted(sets):
            if used + needed <= self.limit_bytes:
                return
            if not path.name.startswith(".") and self._evict(path):
                used -= size
        if used + needed > self.limit_bytes:
            raise StorageError(
                f"the cache {self.folder} may hold {self.limit_bytes:,} bytes: {used:,} are in "
                f"use, {needed:,} more are needed"
            )

    def _remove_abandoned(self, stage: Path) -> None:
        """Remove a half-fetched set whose process was killed: nobody holds its lock."""
        with suppress(OSError):
            lock = os.open(self.folder / f".{stage.name.removeprefix('.tmp-')}.lock", os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stage)
            finally:
                os.close(lock)

    def _evict(self, path: Path) -> bool:
        lock = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            shutil.rmtree(path)
            self._forget_lock(path.name)
            return True
        finally:
            os.close(lock)

    def _forget_lock(self, digest: str) -> None:
        """Remove a set's lock file, unless someone is fetching it right now."""
        path = self.folder / f".{digest}.lock"
        with suppress(OSError):
            lock = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(lock)

    def _lease(self, target: Path) -> Lease | None:
        """A lease on `target`, or None if it is not there or was just evicted."""
        try:
            lock = os.open(target, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not target.exists() or os.fstat(lock).st_ino != target.stat().st_ino:
            os.close(lock)
            return None
        return Lease(target, lock)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold the lock file `name`, which one process on this machine can hold at a time."""
        path = self.folder / name
        while True:
            with os_errors(path):
                lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists() and os.fstat(lock).st_ino == path.stat().st_ino:
                break
            os.close(lock)  # it was forgotten between open and flock
        try:
            yield
        finally:
            os.close(lock)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _reserved(folder: Path) -> int:
    """Bytes that a fetch in progress will take."""
    path = folder / ".reserved"
    return int(path.read_text(encoding="utf-8") or 0) if path.is_file() else 0
