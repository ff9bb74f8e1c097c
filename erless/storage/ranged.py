"""Files that are read in ranges, wherever they lie: on a disk, or in a bucket."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from erless.errors import ArtifactError
from erless.storage.atomic import os_errors

__all__ = ["LazyBytes", "LocalRanges", "RangedFile", "open_ranges", "read_bytes"]

BLOCK_BYTES, KEPT_BLOCKS = 64 << 10, 4
SHORT_BYTES = 8 << 10


class RangedFile(Protocol):
    """A file of known size, any stretch of which can be read by any thread.

    `parallel` is how many reads at once are worth having under way.
    """

    name: str
    size_bytes: int
    parallel: int

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `offset` on.

        Raises:
            ArtifactError: the file ends early, or is another one than when it was opened.
            StorageError: the disk or bucket refused.
        """

    def close(self) -> None:
        """Read no more: what waits for a bucket gives up."""


class LocalRanges:
    """A file on a disk.

    Raises:
        ArtifactError: there is no such file.
        StorageError: it cannot be read.
    """

    parallel = 1  # a disk reads ahead by itself

    def __init__(self, path: Path) -> None:
        self.name, self._path = str(path), path
        with os_errors(path, "read"):
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size_bytes = os.fstat(self._descriptor).st_size
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `offset` on."""
        with os_errors(self._path, "read"):
            while view:
                read = os.preadv(self._descriptor, [view], offset)
                if not read:
                    raise ArtifactError(f"{self.name}: truncated at offset {offset:,}")
                view, offset = view[read:], offset + read

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def open_ranges(location: str, endpoint_url: str | None = None) -> RangedFile:
    """The file at `location`, a path or `s3://bucket/key`.

    Raises:
        ArtifactError: there is no such file.
        StorageError: the disk or service refused.
    """
    if not location.startswith("s3://"):
        return LocalRanges(Path(location))
    from erless.storage.s3.ranges import S3Ranges  # boto3 takes a while to import

    return S3Ranges(location, endpoint_url)


def read_bytes(file: RangedFile, offset: int, size: int) -> bytes:
    """`size` bytes of `file` from `offset` on."""
    data = bytearray(size)
    file.read_into(offset, memoryview(data))
    return bytes(data)


class LazyBytes:
    """A stretch of a file, of which nothing is read before it is asked for; a slice is one again.

    Short reads bring the block around them, and the last blocks are kept: a directory of many small
    entries costs a few reads.

    Args:
        file: that it is of.
        begin, size: the stretch; by default all of it.

    >>> from tempfile import NamedTemporaryFile
    >>> with NamedTemporaryFile() as made:
    ...     made.write(b"0123456789"), made.flush()
    ...     LazyBytes(LocalRanges(Path(made.name)))[3:8][1:].tobytes()
    (10, None)
    b'4567'
    """

    def __init__(self, file: RangedFile, begin: int = 0, size: int | None = None) -> None:
        self._file, self._begin = file, begin
        self._size = file.size_bytes - begin if size is None else size
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> LazyBytes:
        start, stop, step = part.indices(self._size)
        if step != 1:
            raise ValueError(f"bytes of {self._file.name} in steps of {step}")
        view = LazyBytes(self._file, self._begin + start, max(0, stop - start))
        view._blocks = self._blocks
        return view

    def tobytes(self) -> bytes:
        """Read it.

        Raises:
            ArtifactError, StorageError: as `RangedFile.read_into`.
        """
        if self._size > SHORT_BYTES:
            return read_bytes(self._file, self._begin, self._size)
        data, place, end = b"", self._begin, self._begin + self._size
        while place < end:
            number = place // BLOCK_BYTES
            block = self._block(number)
            data += block[place - number * BLOCK_BYTES : end - number * BLOCK_BYTES]
            place = (number + 1) * BLOCK_BYTES
        return data

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.uint8]:
        """The bytes, read now; they may be written to."""
        return np.frombuffer(bytearray(self.tobytes()), np.uint8)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            begin = number * BLOCK_BYTES
            size = min(BLOCK_BYTES, self._file.size_bytes - begin)
            self._blocks[number] = read_bytes(self._file, begin, size)
            while len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        return self._blocks[number]
