"""All rows of a slice in memory of their own, changed ones in the places of the release's.

Lookups in such a copy cost what they do without changes, and less where the kernel gives it huge
pages: pages of a private mapping that are copied one by one, as they are written to, made them
dearer than rows beside the release's. Once nobody looks a copy up any more, the next state is
written into it: only the rows in which the two differ.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np

from erless.dlrm.patches import Rows, SlicePatch

__all__ = ["RowCopy"]


class RowCopy:
    """Memory for all rows of one slice.

    Args:
        released: the rows as the release has them; they are read, never written.
    """

    def __init__(self, released: Rows) -> None:
        self._released = released
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, released.nbytes, flags=flags)
        with suppress(OSError):  # a kernel without huge pages
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._held: SlicePatch | None = None  # None: no rows, or not all of them

    @property
    def free(self) -> bool:
        """Whether no array, and no lookup under way, holds rows that `bring` returned."""
        try:
            self._memory.resize(len(self._memory))  # refused while a buffer of it is held
        except BufferError:
            return False
        return True

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        return len(self._memory)

    def bring(self, patch: SlicePatch) -> Rows:
        """The release's rows, those of `patch` in their places. Only while it is free."""
        if not self.free:
            raise AssertionError("these rows are still looked up")
        flat = np.frombuffer(self._memory, self._released.dtype)
        rows = flat.reshape(self._released.shape)
        held, self._held = self._held, None
        if held is None:
            rows[...] = self._released
            patch.write(rows)
        elif patch.continues(held):
            patch.write(rows, len(held.chunks))
        else:  # rolled back, or gathered
            gone = held.keys[(held.keys >= 0) & ~np.isin(held.keys, patch.keys)]
            rows[gone] = self._released[gone]
            patch.write(rows)
        self._held = patch
        return rows
