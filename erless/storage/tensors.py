"""safetensors files written as a stream and read through a memory map.

The `safetensors` package writes whole tensors from memory and its numpy reader copies; tables that
exceed memory need neither. Format: 8 bytes little-endian header length, JSON header
`{name: {dtype, shape, data_offsets}}`, then the data without gaps
(https://github.com/huggingface/safetensors, section Format). The header is padded with spaces so
that the data starts on a multiple of 64 bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import mmap
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from erless.errors import ArtifactError, StorageError
from erless.storage.atomic import os_errors
from erless.storage.digests import FileDigest
from erless.storage.paged_file import PagedFile
from erless.storage.tensor_header import DTYPES, TensorHeader, TensorInfo

__all__ = [
    "ALIGNMENT_BYTES",
    "TensorFile",
    "TensorInfo",
    "TensorWriter",
    "check_room",
    "write_tensors",
]

ALIGNMENT_BYTES = 64
MADV_POPULATE_READ = 22  # include/uapi/asm-generic/mman-common.h; Python 3.11 has no name for it
POPULATE_BYTES = 16 << 20
PIECE_BYTES = 16 << 20  # copied at a time where a chunk does not lie in C order

_NAMES = {np.dtype(code): name for name, code in DTYPES.items() if name != "BF16"}


class TensorWriter:
    """Write a safetensors file chunk by chunk, hashing it on the way.

    Declare every tensor first, then `write` their rows in the order declared.

    Args:
        path: the file to make. Call this inside `staged_directory` or `staged_file`.
        tensors: name → (dtype, shape).
        metadata: strings for the header's `__metadata__`.
        alignment_bytes: the first tensor begins at a multiple of it.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, tuple[DTypeLike, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
        alignment_bytes: int = ALIGNMENT_BYTES,
    ) -> None:
        self.path = path
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        self._ends: list[tuple[str, np.dtype[Any], int]] = []
        offset = 0
        for name, (dtype, shape) in tensors.items():
            numpy_dtype = np.dtype(dtype)
            end = offset + numpy_dtype.itemsize * math.prod(shape)
            header[name] = {
                "dtype": _NAMES[numpy_dtype],
                "shape": list(shape),
                "data_offsets": [offset, end],
            }
            self._ends.append((name, numpy_dtype, end))
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % alignment_bytes)
        self._hash = hashlib.sha256()
        self._written = 0
        self._size = 0
        check_room(path, 8 + len(text) + offset)
        self._file = PagedFile(path)
        self._put(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, chunk: NDArray[Any]) -> None:
        """Append `chunk` (C order) to tensor `name`.

        Raises:
            ValueError: the chunk is out of turn, of another dtype, overruns the tensor, or is a
                view that shows the same bytes many times (stride 0).
            StorageError: the disk refused.
        """
        while self._ends and self._written == self._ends[0][2] and self._ends[0][0] != name:
            self._ends.pop(0)  # that tensor is complete
        if not self._ends or self._ends[0][0] != name:
            raise ValueError(f"{self.path.name}: tensor {name} is out of turn")
        _, dtype, end = self._ends[0]
        if chunk.dtype != dtype or self._written + chunk.nbytes > end:
            raise ValueError(f"{self.path.name}: chunk of {name} has the wrong dtype or size")
        repeats = (
            step == 0 < size - 1 for step, size in zip(chunk.strides, chunk.shape, strict=True)
        )
        if chunk.size and any(repeats):
            raise ValueError(
                f"{self.path.name}: {name} repeats the same bytes: it is no real tensor"
            )
        for part in _pieces(chunk):
            self._put(part.reshape(-1).view(np.uint8).data)
        self._written += chunk.nbytes

    def _put(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._file.write(data)
        self._size += len(data)

    def close(self) -> FileDigest:
        """Make the file durable and say what it holds.

        Raises:
            ValueError: a declared tensor was not written whole.
        """
        if self._ends and self._written != self._ends[-1][2]:
            self._file.close()
            raise ValueError(f"{self.path.name}: tensor {self._ends[0][0]} is incomplete")
        self._file.finish()
        return FileDigest(self._size, self._hash.hexdigest())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def check_room(path: Path, size_bytes: int) -> None:
    """Refuse what the disk cannot hold before its first byte is written.

    Raises:
        StorageError: too little space is left.
    """
    with os_errors(path):
        free = shutil.disk_usage(path.parent).free
    if size_bytes > free:
        message = f"cannot write {path}: it needs {size_bytes:,} bytes, {free:,} are free"
        raise StorageError(message) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _pieces(chunk: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """`chunk` in C order; one that is not is copied a piece at a time."""
    if chunk.flags.c_contiguous or chunk.nbytes <= PIECE_BYTES or not chunk.ndim:
        yield np.ascontiguousarray(chunk)
        return
    step = max(1, PIECE_BYTES // max(1, chunk.nbytes // len(chunk)))
    for begin in range(0, len(chunk), step):
        yield np.ascontiguousarray(chunk[begin : begin + step])


def write_tensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> FileDigest:
    """Write whole arrays as one safetensors file."""
    declared = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    with TensorWriter(path, declared, metadata) as writer:
        for name, array in tensors.items():
            writer.write(name, array)
        return writer.close()


class TensorFile(TensorHeader):
    """A safetensors file opened for mapping; its header is checked against its size.

    Raises:
        ArtifactError: not a safetensors file, truncated, or with trailing bytes; says where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with os_errors(path, "read"), path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            super().__init__(str(path), size_bytes, lambda begin, size: _read_at(file, begin, size))

    def map(self, name: str, *, populate: bool = False) -> NDArray[Any]:
        """Tensor `name` mapped copy-on-write: writes stay private.

        Args:
            populate: read all pages now, at the disk's sequential speed, rather than each when it
                is first touched.
        """
        info = self.info(name)
        if info.begin == info.end:
            return np.empty(info.shape, info.dtype)
        begin = info.begin - info.begin % mmap.ALLOCATIONGRANULARITY
        with os_errors(self.path, "read"), self.path.open("rb") as file:
            pages = mmap.mmap(
                file.fileno(), info.end - begin, access=mmap.ACCESS_COPY, offset=begin
            )
        if populate:
            _populate(pages)
        flat = np.frombuffer(pages, np.uint8, info.end - info.begin, info.begin - begin)
        return flat.view(info.dtype).reshape(info.shape)

    def read(self, name: str) -> NDArray[Any]:
        """Tensor `name` read into memory."""
        info = self.info(name)
        array = np.empty(info.shape, info.dtype)
        with os_errors(self.path, "read"), self.path.open("rb", buffering=0) as file:
            file.seek(info.begin)
            view = array.reshape(-1).view(np.uint8).data
            while view:
                read = file.readinto(view)
                if not read:
                    raise ArtifactError(f"{self.path}: truncated inside tensor {name}")
                view = view[read:]
        return array

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` … `stop - 1` of a tensor, read and not mapped: mapped pages count as memory.

        Raises:
            ArtifactError: the file ends early.
        """
        info = self.info(name)
        array = np.empty((stop - start, *info.shape[1:]), info.dtype)
        stride = info.row_bytes
        view = array.reshape(-1).view(np.uint8).data
        with os_errors(self.path, "read"), self.path.open("rb", buffering=0) as source:
            offset = info.begin + start * stride
            while view:
                read = os.preadv(source.fileno(), [view], offset)
                if not read:
                    raise ArtifactError(f"{self.path}: truncated at offset {offset:,}")
                view, offset = view[read:], offset + read
        return array


def _populate(pages: mmap.mmap) -> None:
    """Bring a mapping into memory, a stretch at a time: `madvise` keeps other threads waiting."""
    for begin in range(0, len(pages), POPULATE_BYTES):
        size = min(POPULATE_BYTES, len(pages) - begin)
        try:
            pages.madvise(MADV_POPULATE_READ, begin, size)
        except OSError:  # a kernel before 5.14
            pages.madvise(mmap.MADV_WILLNEED, begin, size)


def _read_at(file: BinaryIO, begin: int, size: int) -> bytes:
    file.seek(begin)
    return file.read(size)
