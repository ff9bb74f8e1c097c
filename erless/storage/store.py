"""What a release store is: the protocol that a directory and a bucket both keep.

A store holds immutable *blobs*, named by their content, and small *documents*. A blob is staged
as a local file and then adopted under its final name; a document is created once, or replaced.
Nothing half-written is ever visible under a final name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from erless.errors import ArtifactError
from erless.storage.atomic import os_errors
from erless.storage.digests import digest_file

__all__ = ["Blob", "Counter", "Ignore", "Store", "StoredObject", "verify_blob"]


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
        """All whose name begins with `prefix`, however deep they lie, sorted by name.

        What a writer is still making is not among them. "" lists everything.
        """

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A local folder to make files in; it goes away with the block."""
        yield Path()

    def adopt(self, staged: Path, blob: Blob, counter: Counter) -> None:
        """Keep the local file `staged`, which holds `blob`, under the blob's name."""

    def fetch(self, blob: Blob, target: Path, counter: Counter) -> None:
        """Copy `blob` to the local file `target`, which appears, or changes, once it is verified.

        Raises ArtifactError unless its content fits.
        """

    def check(self, blob: Blob, counter: Counter) -> None:
        """Read `blob` whole. Raises ArtifactError if it is missing or its content differs."""

    def sweep(self, before_s: float) -> int:
        """Remove what stopped writers left before Unix time `before_s`; say how many things."""

    @contextmanager
    def locked(self, *, exclusive: bool) -> Iterator[None]:
        """Lock the store until the block ends: writers share it, `prune` has it alone.

        Raises StoreError at once where the other kind of user has it.
        """
        yield


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
    sha256 = digest_file(path).sha256
    counter.advance(size)
    if sha256 != blob.sha256:
        raise ArtifactError(f"{path}: altered: sha256 {sha256}, expected {blob.sha256}")
