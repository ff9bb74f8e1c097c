"""One layer of an image: files in, a compressed tar out, the same bytes for the same files."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from erless.storage.atomic import os_errors

__all__ = ["Item", "Layer", "write_layer"]

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
COMPRESSION = 6
EPOCH = 0  # of every file: when it was written is no part of what it is


@dataclass(frozen=True, slots=True)
class Item:
    """One file of a layer: where it goes, and what it holds (a file, or bytes)."""

    path: str
    content: Path | bytes
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer on disk. digest: of the compressed tar; diff_id: of the tar; both sha256:…"""

    path: Path
    digest: str
    diff_id: str
    size: int

    def descriptor(self) -> dict[str, object]:
        """As a manifest names it."""
        return {"mediaType": LAYER_TYPE, "size": self.size, "digest": self.digest}


class _Hashing(io.RawIOBase):
    """A sink that hashes and counts what goes through it."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink, self._hash, self.size = sink, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(cast(bytes, data))
        self._hash.update(view)
        self.size += view.nbytes
        self._sink.write(view)
        return view.nbytes

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def write_layer(items: Iterable[Item], target: Path) -> Layer:
    """Write a layer to `target`: sorted, owned by root, without times.

    Raises:
        StorageError: a file cannot be read, or the disk refused.
    """
    ordered = sorted(items, key=lambda item: item.path)
    with os_errors(target), target.open("wb") as file:
        outer = _Hashing(file)
        with gzip.GzipFile("", "wb", COMPRESSION, cast(BinaryIO, outer), mtime=EPOCH) as packed:
            inner = _Hashing(cast(BinaryIO, packed))
            with tarfile.open(
                fileobj=cast(BinaryIO, inner), mode="w|", format=tarfile.PAX_FORMAT
            ) as archive:
                for folder in _folders(ordered):
                    archive.addfile(_header(folder, tarfile.DIRTYPE, 0o755, 0))
                for item in ordered:
                    _add(archive, item)
    return Layer(target, outer.digest, inner.digest, outer.size)


def _add(archive: tarfile.TarFile, item: Item) -> None:
    mode = 0o755 if item.executable else 0o644
    if isinstance(item.content, bytes):
        archive.addfile(
            _header(item.path, tarfile.REGTYPE, mode, len(item.content)), io.BytesIO(item.content)
        )
        return
    with os_errors(item.content, "read"), item.content.open("rb") as file:
        size = item.content.stat().st_size
        archive.addfile(_header(item.path, tarfile.REGTYPE, mode, size), file)


def _folders(items: list[Item]) -> list[str]:
    """All folders of the items, parents first."""
    folders = {str(parent) for item in items for parent in PurePosixPath(item.path).parents} - {"."}
    return sorted(folders)


def _header(path: str, kind: bytes, mode: int, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(path)
    header.type, header.mode, header.size, header.mtime = kind, mode, size, EPOCH
    return header
