"""Where releases live: the store protocol, and the store that is a directory.

A store holds immutable *blobs*, named by their content, and small *documents*. A blob is staged
as a local file and then adopted under its final name; a document is created once, or replaced.
Nothing half-written is ever visible under a final name.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from erless.errors import ArtifactError, StoreError
from erless.storage.atomic import fsync_directory, os_errors
from erless.storage.digests import digest_file

__all__ = [
    "Blob",
    "Counter",
    "DirectoryStore",
    "Ignore",
    "Store",
    "StoredObject",
    "open_store",
    "verify_blob",
]

MARKER = "store.json"
KIND = "erless store"
SCHEMA_VERSION = 1


class Blob(NamedTuple):
    """An immutable file of a store: its name, size and content."""

    name: str
    size_bytes: int
    sha256: str


class StoredObject(NamedTuple):
    """One thing that lies in a store; `modified_s` is Unix time."""

    name: str
    size_bytes: int
    modified_s: float


class Counter(Protocol):
    """Something that counts bytes moved (`erless.progress.Step`)."""

    def advance(self, amount: int) -> None:
        """`amount` more bytes are done. May be called from several threads."""


class Ignore:
    """A counter that nobody reads."""

    def advance(self, amount: int) -> None:
        """Do nothing."""


class Store(Protocol):
    """A directory or a bucket's prefix. Names are relative, with slashes.

    Each method raises StorageError where the disk or service refuses, and StoreError where what
    is there is not, or not yet, a store.
    """

    url: str
    folder: Path | None  # where blobs can be mapped in place, or None: they must be fetched

    def read(self, name: str) -> bytes:
        """The document `name`. Raises ArtifactError if there is none."""

    def create(self, name: str, data: bytes) -> None:
        """Make the document `name`, in one step; raises StoreError if it exists and differs."""

    def replace(self, name: str, data: bytes) -> None:
        """Make or overwrite the document `name`, in one step."""

    def delete(self, name: str) -> None:
        """Remove `name`, if it is there."""

    def list(self, prefix: str) -> list[StoredObject]:
        """All that lies under `prefix`, by name."""

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A local folder to make files in; it goes away with the block."""
        yield Path()

    def adopt(self, staged: Path, blob: Blob, counter: Counter) -> None:
        """Keep the local file `staged`, which holds `blob`, under the blob's name."""

    def fetch(self, blob: Blob, target: Path, counter: Counter) -> None:
        """Copy `blob` to the local file `target`. Raises ArtifactError unless its content fits."""

    def check(self, blob: Blob, counter: Counter) -> None:
        """Read `blob` whole. Raises ArtifactError if it is missing or its content differs."""

    def sweep(self, before_s: float) -> int:
        """Remove what stopped writers left before Unix time `before_s`; say how many things."""

    @contextmanager
    def held(self, *, exclusive: bool) -> Iterator[None]:
        """Hold the store: writers share it, `prune` has it alone."""
        yield


def open_store(location: str, *, endpoint_url: str | None = None, create: bool = False) -> Store:
    """The store at `location`, a directory or `s3://bucket/prefix`.

    Args:
        location: as the user wrote it.
        endpoint_url: of an S3 API other than AWS's.
        create: make it if it is not there yet (never the bucket).

    Raises:
        StoreError: no store there, or the bucket does not exist.
        ArtifactError: a store of a newer schema.
        StorageError: the disk or service refused.
    """
    store: Store
    if location.startswith("s3://"):
        from erless.storage.s3.store import S3Store

        store = S3Store(location, endpoint_url)
    else:
        store = DirectoryStore(Path(location), create=create)
    _check_marker(store, create)
    return store


def _check_marker(store: Store, create: bool) -> None:
    """Know a store of ours by its marker, and write one where there is nothing else."""
    try:
        text = store.read(MARKER)
    except ArtifactError:
        if not create:
            raise StoreError(f"{store.url} is not a release store: it has no {MARKER}") from None
        if isinstance(store, DirectoryStore):
            store.check_empty()
        text = (json.dumps({"kind": KIND, "schema_version": SCHEMA_VERSION}) + "\n").encode()
        store.create(MARKER, text)
    try:
        marker = json.loads(text)
        kind, version = marker["kind"], int(marker["schema_version"])
    except (ValueError, TypeError, KeyError):
        raise ArtifactError(f"{store.url}/{MARKER} is damaged") from None
    if kind != KIND:
        raise StoreError(f"{store.url} is not a release store: {MARKER} says {kind!r}")
    if version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{store.url}: store schema {version}; this erless reads up to {SCHEMA_VERSION}"
        )


def verify_blob(path: Path, blob: Blob, counter: Counter) -> None:
    """Read the file at `path` whole and compare with `blob`.

    Raises:
        ArtifactError: missing, of another size, or of another content.
        StorageError: it cannot be read.
    """
    with os_errors(path, "read"):
        size = path.stat().st_size
    if size != blob.size_bytes:
        raise ArtifactError(
            f"{path}: {size:,} bytes, expected {blob.size_bytes:,}: truncated or altered"
        )
    found = digest_file(path).sha256
    counter.advance(size)
    if found != blob.sha256:
        raise ArtifactError(f"{path}: altered: sha256 {found}, expected {blob.sha256}")


class DirectoryStore:
    """A store that is a directory; blobs are mapped where they lie.

    Args:
        root: the directory.
        create: make it if it does not exist.

    Raises:
        StoreError: it does not exist, or is not a directory.
    """

    def __init__(self, root: Path, *, create: bool = False) -> None:
        self.folder: Path | None = root
        self.root = root
        self.url = str(root)
        if create:
            with os_errors(root):
                root.mkdir(parents=True, exist_ok=True)
        if not root.is_dir():
            raise StoreError(f"{root} is not a release store: no such directory")

    def check_empty(self) -> None:
        """A new store begins in an empty directory."""
        if any(
            each.name != "tmp" and not each.name.startswith(".") for each in self.root.iterdir()
        ):
            raise StoreError(f"{self.root} is not a release store, and not empty")

    def read(self, name: str) -> bytes:
        """The document `name`."""
        path = self.root / name
        with os_errors(path, "read"):
            return path.read_bytes()

    def create(self, name: str, data: bytes) -> None:
        """Make the document `name`, or find it there with the same content."""
        path = self.root / name
        with self._written(path, data) as stage:
            try:
                os.link(stage, path)  # fails where the name is taken: creation is one step
            except FileExistsError:
                if path.read_bytes() != data:
                    raise StoreError(f"{path} exists already with other content") from None

    def replace(self, name: str, data: bytes) -> None:
        """Make or overwrite the document `name`."""
        path = self.root / name
        with self._written(path, data) as stage:
            stage.replace(path)

    @contextmanager
    def _written(self, path: Path, data: bytes) -> Iterator[Path]:
        """A durable file with `data`, beside `path`."""
        with os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stage = path.parent / f".tmp-{secrets.token_hex(8)}"
            try:
                with stage.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                yield stage
                fsync_directory(path.parent)
            finally:
                stage.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Remove `name`, if it is there."""
        path = self.root / name
        with os_errors(path, "delete"):
            path.unlink(missing_ok=True)

    def list(self, prefix: str) -> list[StoredObject]:
        """All that lies under `prefix`."""
        base = self.root / prefix
        found = []
        with os_errors(base, "read"):
            for path in sorted(base.iterdir()) if base.is_dir() else ():
                if path.is_file() and not path.name.startswith("."):
                    status = path.stat()
                    name = str(path.relative_to(self.root))
                    found.append(StoredObject(name, status.st_size, status.st_mtime))
        return found

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder to make files in."""
        with os_errors(self.root):
            folder, lock = self._new_stage()
        try:
            self._sweep_staging()
            yield folder
        finally:
            os.close(lock)
            shutil.rmtree(folder, ignore_errors=True)

    def _new_stage(self) -> tuple[Path, int]:
        """A folder of our own, and the lock that says so."""
        while True:
            folder = self.root / "tmp" / secrets.token_hex(8)
            folder.mkdir(parents=True)
            try:
                lock = os.open(folder, os.O_RDONLY)
            except FileNotFoundError:
                continue  # swept by another writer before we could lock it
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)

    def _sweep_staging(self) -> int:
        """Remove the folders of writers that were killed."""
        swept = 0
        for folder in (self.root / "tmp").glob("*"):
            try:
                lock = os.open(folder, os.O_RDONLY)
            except FileNotFoundError:
                continue  # its writer just ended
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                swept += 1
            except BlockingIOError:
                continue  # its writer lives
            finally:
                os.close(lock)
        return swept

    def adopt(self, staged: Path, blob: Blob, counter: Counter) -> None:
        """Keep `staged` under the name of `blob`."""
        path = self.root / blob.name
        with os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            staged.chmod(0o444)
            staged.replace(path)  # the same content, or a damaged copy: either way now right
            fsync_directory(path.parent)

    def fetch(self, blob: Blob, target: Path, counter: Counter) -> None:
        """Copy `blob` to `target` and compare its content."""
        with os_errors(target):
            shutil.copyfile(self.root / blob.name, target)
        verify_blob(target, blob, counter)

    def check(self, blob: Blob, counter: Counter) -> None:
        """Read `blob` whole and compare its content."""
        verify_blob(self.root / blob.name, blob, counter)

    def sweep(self, before_s: float) -> int:
        """Remove what stopped writers left."""
        with os_errors(self.root, "delete"):
            return self._sweep_staging()

    @contextmanager
    def held(self, *, exclusive: bool) -> Iterator[None]:
        """Hold the store; see `Store`."""
        with os_errors(self.root):
            lock = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            who = "a packer is writing to it" if exclusive else "it is being pruned"
            raise StoreError(f"{self.url}: {who}") from None
        finally:
            os.close(lock)
