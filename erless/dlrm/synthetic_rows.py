"""Rows that are made when they are first asked for: of a row id and a secret, always the same."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.quantize import encode, stored_dtype, stored_width
from erless.dlrm.query_arrays import Ids, as_ids
from erless.dlrm.rows import RowIndex
from erless.specs.plan import Precision

__all__ = ["SyntheticRows"]

CHUNK_ROWS = 1 << 20
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_ROW, _COLUMN = np.uint64(0xD1B54A32D192ED03), np.uint64(0x8CB92BA72F3D8DD7)

Words = NDArray[np.uint64]


def _hash(words: Words) -> Words:
    """splitmix64's finalizer (Steele, Lea, Flood 2014): every bit depends on every bit."""
    words = (words ^ (words >> np.uint64(30))) * _MIX[0]
    words = (words ^ (words >> np.uint64(27))) * _MIX[1]
    return words ^ (words >> np.uint64(31))


class SyntheticRows:
    """About `rows` of the `table_rows` rows of a table, normally distributed.

    They take address space at once, and memory only once they have been asked for.

    Args:
        table_rows: of the whole table.
        rows: that are here, about; all where it is `table_rows`.
        dim: elements of a row.
        precision: how they are stored.
        mean, spread: of an element.
        key: secret; another one makes other rows.
    """

    def __init__(
        self,
        table_rows: int,
        rows: int,
        dim: int,
        precision: Precision,
        mean: float,
        spread: float,
        key: int,
    ) -> None:
        self._dim, self._precision = dim, precision
        self._mean, self._spread = mean, spread
        self._key = np.uint64(key % (1 << 64))
        self.index = RowIndex.build(table_rows, self._held(table_rows, rows))
        shape = (self.index.stored, stored_width(precision, dim))
        dtype = stored_dtype(precision)
        memory = mmap.mmap(-1, max(1, math.prod(shape) * dtype.itemsize))
        self.rows: NDArray[np.generic] = np.frombuffer(memory, dtype, math.prod(shape)).reshape(
            shape
        )
        self._made = np.zeros(self.index.stored, bool)

    def _held(self, table_rows: int, rows: int) -> Iterator[NDArray[np.int64]]:
        limit = np.uint64(min((1 << 64) - 1, (rows << 64) // table_rows))
        for start in range(0, table_rows, CHUNK_ROWS):
            ids = np.arange(start, min(start + CHUNK_ROWS, table_rows), dtype=np.int64)
            if rows < table_rows:
                ids = ids[_hash(ids.astype(np.uint64) * _ROW ^ self._key) <= limit]
            if start == 0 and len(ids) == 0:
                ids = np.zeros(1, np.int64)  # a slice without a row is none
            yield ids

    def make(self, ids: Ids) -> None:
        """Have the rows with `ids` in `rows`; ids of others, or outside the table, are skipped."""
        inside = as_ids(ids[(ids >= 0) & (ids < self.index.rows)])
        wanted = np.unique(inside.astype(np.int64))
        places = self.index.local(wanted)
        new = places >= 0
        new[new] = ~self._made[places[new]]
        if new.any():
            self.rows[places[new]] = encode(self._values(wanted[new]), self._precision)
            self._made[places[new]] = True

    def _values(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, dim) float32, by Box and Muller's transform of two hashes."""
        rows = _hash(ids.astype(np.uint64) * _ROW + self._key)[:, None]
        columns = np.arange(self._dim, dtype=np.uint64)[None] * _COLUMN
        first, second = _hash(rows + columns), _hash(rows + columns + _GOLDEN)
        radius = np.sqrt(-2.0 * np.log((first >> np.uint64(11)) * 2.0**-53 + 2.0**-54))
        angle = (second >> np.uint64(11)) * (2.0**-53 * 2.0 * math.pi)
        normal = radius * np.cos(angle)
        return np.asarray(self._mean + self._spread * normal, dtype=np.float32)
