"""Rows that took the place of a slice's own, or came beside them: what generations change.

The rows of a release stay as they were mapped. What a generation changes lies in memory beside
them, and a lookup finds it there (kernels/arithmetic/patch.h); or it is written into a copy of all
rows (`erless.dlrm.row_copies`), so that lookups cost what they did. Nothing that is looked up is
ever overwritten: a query that began with one generation ends with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from erless.dlrm import _kernels
from erless.dlrm.rows import RowIndex
from erless.errors import ArtifactError

__all__ = ["RowChanges", "Rows", "SlicePatch", "aligned_copy"]

LINE_BYTES = 64  # of the processor's caches
SUPERSEDED = 2  # rows held ÷ rows looked up, beyond which those that are no longer are let go

Rows = NDArray[Any]
Int64s = NDArray[np.int64]


class RowChanges(NamedTuple):
    """What one generation changes in one slice.

    Args:
        ids: (n,) distinct row ids.
        rows: (n, width) as they are stored.
        table_rows: rows of the whole table from then on.
    """

    ids: Int64s
    rows: Rows
    table_rows: int


@dataclass(frozen=True)
class SlicePatch:
    """All rows of one slice that differ from what its release stores.

    Args:
        table_rows: rows of the whole table, those that were added among them.
        chunks: rows as they are stored, (n, width) each; later ones came later.
        keys: (n,) int64: the local index of a row, or -1 - its id where the release has none.
        numbers, places: (n,) int32 and int64: the chunk of each row, ascending, and which of its
            rows it is.
    """

    table_rows: int
    chunks: tuple[Rows, ...]
    keys: Int64s
    numbers: NDArray[np.int32]
    places: Int64s

    @classmethod
    def none(cls, table_rows: int) -> Self:
        """No row of a table of `table_rows` rows."""
        nothing = np.empty(0, np.int64)
        return cls(table_rows, (), nothing, np.empty(0, np.int32), nothing)

    def changed(self, index: RowIndex, changes: RowChanges) -> SlicePatch:
        """These rows, and those of `changes` in place of any before.

        Args:
            index: of the rows that the release stores.

        Raises:
            ArtifactError: an id is no row of the slice, or of the table; or the table shrinks.
        """
        ids, rows, table_rows = changes
        keys = self.places_of(index, ids, table_rows)
        if not len(ids):
            return replace(self, table_rows=table_rows)
        numbers = np.full(len(ids), len(self.chunks), np.int32)
        kept = ~np.isin(self.keys, keys)
        chunks = (*self.chunks, aligned_copy(rows))
        patch = SlicePatch(
            table_rows,
            chunks,
            np.concatenate([self.keys[kept], keys]),
            np.concatenate([self.numbers[kept], numbers]),
            np.concatenate([self.places[kept], np.arange(len(ids), dtype=np.int64)]),
        )
        held = sum(map(len, chunks))
        return patch._gathered() if held > SUPERSEDED * patch.rows else patch

    def places_of(self, index: RowIndex, ids: Int64s, table_rows: int) -> Int64s:
        """(n,): the local index of each row that the release stores, -1 - id of any other.

        Raises:
            ArtifactError: as `changed`.
        """
        if table_rows < self.table_rows:
            raise ArtifactError(f"a table of {self.table_rows:,} rows cannot have {table_rows:,}")
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < table_rows:
            raise ArtifactError(f"a row id is outside 0 … {table_rows - 1}")
        places = -1 - ids
        stored = ids < index.rows
        places[stored] = index.local(ids[stored])
        if (places[stored] < 0).any():
            strange = int(ids[stored][places[stored] < 0][0])
            raise ArtifactError(f"row {strange} is not this shard's")
        return places

    def _gathered(self) -> SlicePatch:
        """The same rows in one chunk, without those that others took the place of."""
        together = _aligned((self.rows, *self.chunks[0].shape[1:]), self.chunks[0].dtype)
        for number, chunk in enumerate(self.chunks):
            mine = self.numbers == number
            together[mine] = chunk[self.places[mine]]
        numbers, places = np.zeros(self.rows, np.int32), np.arange(self.rows, dtype=np.int64)
        return SlicePatch(self.table_rows, (together,), self.keys, numbers, places)

    @property
    def rows(self) -> int:
        """How many rows differ."""
        return len(self.keys)

    def added(self) -> SlicePatch:
        """Only the rows that the release does not store."""
        beside = self.keys < 0
        numbers, places = self.numbers[beside], self.places[beside]
        return SlicePatch(self.table_rows, self.chunks, self.keys[beside], numbers, places)

    def continues(self, before: SlicePatch) -> bool:
        """Whether this patch is `before` with further chunks, none being let go."""
        return len(before.chunks) <= len(self.chunks) and all(
            mine is theirs for mine, theirs in zip(self.chunks, before.chunks, strict=False)
        )

    def write(self, rows: Rows, first: int = 0) -> None:
        """Put the rows that stand in for stored ones in their places in `rows`.

        Args:
            rows: all of the slice's, as they are stored.
            first: chunk from which on; rows of those before are there already.
        """
        begins = np.searchsorted(self.numbers, np.arange(len(self.chunks) + 1))
        for number in range(first, len(self.chunks)):
            part = slice(begins[number], begins[number + 1])
            keys, places = self.keys[part], self.places[part]
            rows[keys[keys >= 0]] = self.chunks[number][places[keys >= 0]]

    def kernel(self, row_bytes: int, stored: int) -> _kernels.Patch:
        """The patch as the kernels look it up: beside `stored` rows of `row_bytes` each."""
        flat = tuple(chunk.reshape(-1).view(np.uint8) for chunk in self.chunks)
        return _kernels.Patch(row_bytes, stored, flat, self.keys, self.numbers, self.places)

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """All that it holds in memory."""
        return (*self.chunks, self.keys, self.numbers, self.places)


def aligned_copy(rows: Rows) -> Rows:
    """Copy `rows` to where a cache line begins, as rows of a release lie.

    A row of 128 bytes that begins elsewhere is fetched as three lines instead of two, and each
    vector of it as two.
    """
    copied = _aligned(rows.shape, rows.dtype)
    copied[...] = rows
    return copied


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Rows:
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + LINE_BYTES, np.uint8)
    begin = -room.ctypes.data % LINE_BYTES
    return room[begin : begin + size].view(dtype).reshape(shape)
