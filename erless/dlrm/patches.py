"""Rows that took the place of a slice's own, or came beside them: what generations change.

The rows of a release stay as they were mapped. What a generation changes lies in memory beside
them, and a lookup finds it there (kernels/arithmetic/patch.h). Nothing is ever overwritten, so a
query that began with one generation ends with it, and generations that are served at the same time
share all rows but those that differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from erless.dlrm import _kernels
from erless.dlrm.rows import RowIndex
from erless.errors import ArtifactError

__all__ = ["SlicePatch"]

Rows = NDArray[Any]
Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class SlicePatch:
    """All rows of one slice that differ from what its release stores.

    Args:
        table_rows: rows of the whole table, those that were added among them.
        chunks: rows as they are stored, (n, width) each; later ones came later.
        keys: (n,) int64: the local index of a row, or -1 - its id where the release has none.
        numbers, places: (n,) int32 and int64: the chunk of each row, and which of its rows it is.
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

    def changed(self, index: RowIndex, ids: Int64s, rows: Rows, table_rows: int) -> SlicePatch:
        """These rows, and `rows` in place of any before.

        Args:
            index: of the rows that the release stores.
            ids: (n,) distinct row ids.
            rows: (n, width) as they are stored.
            table_rows: rows of the whole table from now on.

        Raises:
            ArtifactError: an id is no row of the slice, or of the table; or the table shrinks.
        """
        if table_rows < self.table_rows:
            raise ArtifactError(f"a table of {self.table_rows:,} rows cannot have {table_rows:,}")
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < table_rows:
            raise ArtifactError(f"a row id is outside 0 … {table_rows - 1}")
        keys = -1 - ids
        stored = ids < index.rows
        keys[stored] = index.local(ids[stored])
        if (keys[stored] < 0).any():
            raise ArtifactError(f"row {int(ids[stored][keys[stored] < 0][0])} is not this shard's")
        numbers = np.full(len(ids), len(self.chunks), np.int32)
        kept = ~np.isin(self.keys, keys)
        chunks = (*self.chunks, np.ascontiguousarray(rows))
        return SlicePatch(
            table_rows,
            chunks,
            np.concatenate([self.keys[kept], keys]),
            np.concatenate([self.numbers[kept], numbers]),
            np.concatenate([self.places[kept], np.arange(len(ids), dtype=np.int64)]),
        )

    @property
    def rows(self) -> int:
        """How many rows differ."""
        return len(self.keys)

    @property
    def size_bytes(self) -> int:
        """Bytes of all rows held, superseded ones among them."""
        return sum(chunk.nbytes for chunk in self.chunks)

    def kernel(self, row_bytes: int) -> _kernels.Patch:
        """The patch as the kernels look it up; stored rows have `row_bytes` each."""
        flat = tuple(chunk.reshape(-1).view(np.uint8) for chunk in self.chunks)
        return _kernels.Patch(row_bytes, flat, self.keys, self.numbers, self.places)
