"""Files that are read in ranges, wherever they lie: on a disk, or in a bucket."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from erless.errors import ArtifactError
from erless.storage.atomic import os_errors

__all__ = ["LocalRanges", "RangedFile", "open_ranges", "read_bytes"]


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
