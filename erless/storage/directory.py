"""The store that is a directory; blobs are mapped where they lie."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from erless.errors import StoreError
from erless.storage.atomic import (
    create_file,
    fsync_directory,
    os_errors,
    path_inside,
    replace_file,
    staged_file,
)
from erless.storage.store import Blob, Counter, StoredObject, verify_blob

__all__ = ["DirectoryStore"]

STAGING = "tmp"  # the folder of files that are being made


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
            entry.name != STAGING and not entry.name.startswith(".")
            for entry in self.root.iterdir()
        ):
            raise StoreError(f"{self.root} is not a release store, and not empty")

    def read(self, name: str) -> bytes:
        """The document `name`."""
        path = self._path(name)
        with os_errors(path, "read"):
            return path.read_bytes()

    def create(self, name: str, data: bytes) -> None:
        """Make the document `name`, or find it there with the same content."""
        path = self._path(name)
        if create_file(path, data):
            return
        with os_errors(path, "read"):
            if path.read_bytes() != data:
                raise StoreError(f"{path} exists already with other content")

    def replace(self, name: str, data: bytes) -> None:
        """Make or overwrite the document `name`."""
        replace_file(self._path(name), data)

    def delete(self, name: str) -> None:
        """Remove `name`, if it is there."""
        path = self._path(name)
        with os_errors(path, "delete"):
            path.unlink(missing_ok=True)

    def list(self, prefix: str) -> list[StoredObject]:
        """All whose name begins with `prefix`; staged and hidden files are no objects."""
        base = self._path(prefix.rpartition("/")[0])
        objects = []
        with os_errors(base, "read"):
            for folder, below, files in os.walk(base, onerror=_reraise):
                below[:] = [name for name in below if not self._is_private(Path(folder), name)]
                for file in files:
                    path = Path(folder) / file
                    name = path.relative_to(self.root).as_posix()
                    if file.startswith(".") or path.is_symlink() or not name.startswith(prefix):
                        continue
                    with suppress(FileNotFoundError):  # deleted meanwhile
                        status = path.stat()
                        objects.append(StoredObject(name, status.st_size, status.st_mtime))
        return sorted(objects)

    def _is_private(self, folder: Path, name: str) -> bool:
        """Whether a folder holds objects that are not, or not yet, part of the store."""
        return name.startswith(".") or (name == STAGING and folder == self.root)

    def _path(self, name: str) -> Path:
        """Where `name` lies: inside the directory, whatever links there are."""
        return path_inside(self.root, name)

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
            folder = self.root / STAGING / secrets.token_hex(8)
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
        for folder in (self.root / STAGING).glob("*"):
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
        path = self._path(blob.name)
        with os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            staged.chmod(0o444)
            staged.replace(path)  # the same content, or a damaged copy: either way now right
            fsync_directory(path.parent)

    def fetch(self, blob: Blob, target: Path, counter: Counter) -> None:
        """Copy `blob` to `target` and compare its content."""
        with staged_file(target) as stage:
            shutil.copyfile(self._path(blob.name), stage)
            verify_blob(stage, blob, counter)

    def check(self, blob: Blob, counter: Counter) -> None:
        """Read `blob` whole and compare its content."""
        verify_blob(self._path(blob.name), blob, counter)

    def sweep(self, before_s: float) -> int:
        """Remove what stopped writers left."""
        with os_errors(self.root, "delete"):
            return self._sweep_staging()

    @contextmanager
    def locked(self, *, exclusive: bool) -> Iterator[None]:
        """Lock the store, shared or alone; see `Store`."""
        with os_errors(self.root):
            lock = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            reason = "a packer is writing to it" if exclusive else "it is being pruned"
            raise StoreError(f"{self.url}: {reason}") from None
        finally:
            os.close(lock)


def _reraise(error: OSError) -> None:
    """A folder that is not there holds nothing; one that cannot be read is an error."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
