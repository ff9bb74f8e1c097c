"""Ranking rows by how often they were accessed, from windows of their counts.

A window is a stretch of `WINDOW_ROWS` ids or less: its touched rows in the order of ids, with
their counts. Windows come in the order of ids. Ranking is a counting sort on the counts: a first
walk over the windows finds how many rows have each count, hence where each count's rows begin; a
second one writes ids to their places. Within one count ids stay ascending, which is the tie rule
of `erless.specs.profile`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.storage.atomic import os_errors
from erless.storage.digests import FileDigest
from erless.storage.tensors import TensorWriter

__all__ = [
    "WINDOW_ROWS",
    "CountDistribution",
    "Window",
    "distribution_of",
    "starts_of",
    "summed",
    "write_ranked",
]

WINDOW_ROWS = 1 << 22  # 32 MB of counters; also the span that one sort key must tell apart
WRITE_ROWS = 1 << 20

Counts = NDArray[np.int64]
Window = tuple[NDArray[np.int64], Counts]


@dataclass(frozen=True, slots=True)
class CountDistribution:
    """How many of a table's rows have each count: all that its access CDF depends on.

    Args:
        values: (v,) distinct counts above zero, descending.
        rows: (v,) how many rows have that count.
    """

    values: Counts
    rows: Counts

    @property
    def accesses(self) -> int:
        """All accesses of the table."""
        return int((self.values * self.rows).sum())

    @property
    def touched(self) -> int:
        """Rows with at least one access."""
        return int(self.rows.sum())

    def share(self, hottest: float) -> float:
        """Share of accesses that the `hottest` rows take, linear between whole rows.

        >>> CountDistribution(np.array([6, 2]), np.array([1, 2])).share(2.0)
        0.8
        """
        if not len(self.values):
            return 0.0
        ranks = np.concatenate([[0], np.cumsum(self.rows)])
        accesses = np.concatenate([[0], np.cumsum(self.values * self.rows)])
        return float(np.interp(hottest, ranks, accesses) / accesses[-1])


def distribution_of(windows: Iterable[Window]) -> CountDistribution:
    """How many of a table's rows have each count."""
    found = [np.unique(counts, return_counts=True) for _, counts in windows]
    if not found:
        return CountDistribution(np.empty(0, np.int64), np.empty(0, np.int64))
    values, rows = summed(
        np.concatenate([values for values, _ in found]),
        np.concatenate([rows for _, rows in found]),
    )
    return CountDistribution(values[::-1].copy(), rows[::-1].copy())


def write_ranked(
    windows: Iterable[Window], distribution: CountDistribution, path: Path, scratch: Path
) -> FileDigest:
    """Write `ids` and `counts` of the touched rows, hottest first, as safetensors.

    Args:
        windows: of one table.
        distribution: of the same.
        path: of the file.
        scratch: a folder for eight bytes a row.

    Raises:
        StorageError: the disk refused.
    """
    touched = distribution.touched
    ranked = _rank(windows, distribution, scratch)
    shape = {"ids": (np.int64, (touched,)), "counts": (np.int64, (touched,))}
    ends = np.cumsum(distribution.rows)
    with TensorWriter(path, shape) as writer, os_errors(ranked, "read"):
        for begin in range(0, touched, WRITE_ROWS):
            size = min(WRITE_ROWS, touched - begin)
            writer.write("ids", np.fromfile(ranked, np.int64, size, offset=8 * begin))
        for begin in range(0, touched, WRITE_ROWS):
            ranks = np.arange(begin, min(begin + WRITE_ROWS, touched))
            values = distribution.values[np.searchsorted(ends, ranks, side="right")]
            writer.write("counts", values)
        digest = writer.close()
    ranked.unlink()
    return digest


def _rank(windows: Iterable[Window], distribution: CountDistribution, scratch: Path) -> Path:
    """A scratch file of the touched ids as int64, hottest first, ties by id."""
    path = scratch / "ranked"
    ascending = distribution.values[::-1]
    cursor = np.cumsum(distribution.rows) - distribution.rows  # where each count's rows begin
    span = WINDOW_ROWS.bit_length() - 1
    with os_errors(path), path.open("wb", buffering=0) as file:
        for ids, counts in windows:
            place = len(ascending) - 1 - np.searchsorted(ascending, counts)
            keys = (place << span) | np.arange(len(ids))
            keys.sort()
            place, ids = keys >> span, ids[keys & (WINDOW_ROWS - 1)]  # noqa: PLW2901
            starts = starts_of(place)
            stops = [*starts[1:].tolist(), len(ids)]
            for start, stop in zip(starts.tolist(), stops, strict=True):
                value = int(place[start])
                _write_at(file.fileno(), ids[start:stop], 8 * int(cursor[value]))
                cursor[value] += stop - start
    return path


def starts_of(ids: NDArray[Any]) -> NDArray[np.int64]:
    """Where each distinct id of sorted, non-empty `ids` begins."""
    first = np.empty(len(ids), np.bool_)
    first[0] = True
    np.not_equal(ids[1:], ids[:-1], out=first[1:])
    return np.flatnonzero(first)


def summed(ids: NDArray[Any], counts: Counts) -> tuple[NDArray[Any], Counts]:
    """Distinct ids, ascending, with the sum of their counts."""
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    starts = starts_of(ids)
    return ids[starts], np.add.reduceat(counts[order], starts)


def _write_at(descriptor: int, chunk: NDArray[np.int64], offset: int) -> None:
    """Write all of `chunk` at byte `offset`."""
    view = chunk.view(np.uint8).data
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
