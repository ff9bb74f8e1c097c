"""A new file in pieces of huge pages, so that whoever maps it finds its bytes in huge pages."""

from __future__ import annotations

import os
from pathlib import Path

from erless.storage.atomic import os_errors

__all__ = ["HUGE_PAGE_BYTES", "PagedFile"]

HUGE_PAGE_BYTES = 2 << 20


class PagedFile:
    """A file that is written from start to end, at multiples of 2 MB alone.

    The page cache keeps a write in pages as large as it is, where the file system can (ext4 and XFS
    on Linux 6.16 and newer) and the write begins at a multiple of them. Rows that were written as
    they came, 300 bytes off, lay in pages of 4 KiB, and looking up random ones missed the TLB.

    Args:
        path: the file to make.

    Raises:
        StorageError: the disk refused.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held = bytearray()  # less than a huge page, behind what was written
        with os_errors(path):
            self._file = path.open("wb", buffering=0)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`. Raises StorageError: the disk refused."""
        view = memoryview(data)
        if self._held:
            missing = HUGE_PAGE_BYTES - len(self._held)
            self._held += view[:missing]
            view = view[missing:]
            if len(self._held) < HUGE_PAGE_BYTES:
                return
            self._flush(memoryview(self._held))
            self._held = bytearray()
        whole = len(view) - len(view) % HUGE_PAGE_BYTES
        self._flush(view[:whole])
        self._held += view[whole:]

    def finish(self) -> None:
        """Write the rest, make the file durable and close it. Raises as `write`."""
        with self._file:
            self._flush(memoryview(self._held))
            with os_errors(self._path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close it as it is: what was not written whole is lost."""
        self._file.close()

    def _flush(self, view: memoryview) -> None:
        with os_errors(self._path):
            while view:
                view = view[self._file.write(view) or 0 :]
