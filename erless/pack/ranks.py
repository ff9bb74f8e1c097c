"""Which rows go where: a plan's ranks become row ids, a window of the table at a time.

The profile lists the touched rows of a table hottest first; their ranks are their places in that
list, and the rows it does not list follow in ascending order of id. A window of row ids is routed
by what the list says of it, and one count of the unlisted rows. Where a table has several windows
the list is read once and sorted by window on disk, in chunks: neither memory nor the time per row
grows with the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.rows import INDEX_ROWS
from erless.errors import ArtifactError, PlanError
from erless.specs.model import ModelSpec
from erless.specs.plan import Plan
from erless.specs.release import ROUTING_LIMIT
from erless.storage.atomic import os_errors
from erless.storage.tensors import TensorFile

__all__ = ["Cut", "TableRanks", "Window", "cuts_of"]

WINDOW_ROWS = INDEX_ROWS * 32_768  # 6.3 M rows: 6 MiB of routing, 24 MiB of accesses
SCAN_ROWS = 1 << 20
RECORD_BYTES = 9  # on disk: a place (uint32), a count (float32), a shard (uint8)
MOST_RADIX = 1 << 16  # numpy sorts integers of 16 bits by counting, wider ones by comparing


@dataclass(frozen=True, slots=True)
class Cut:
    """Ranks `start` … `stop - 1` of a table go to shard number `shard`."""

    start: int
    stop: int
    shard: int


def cuts_of(plan: Plan, model: ModelSpec) -> dict[str, tuple[Cut, ...]]:
    """The cuts of each table, hottest first; together they hold each rank once.

    Raises:
        PlanError: a row in no shard or in two, an unknown table, too many shards.
    """
    if len(plan.shards) > ROUTING_LIMIT:
        raise PlanError(f"the plan has {len(plan.shards)} shards; routing holds {ROUTING_LIMIT}")
    names = [shard.name for shard in plan.shards]
    cuts: dict[str, list[Cut]] = {table.name: [] for table in model.tables}
    for number, shard in enumerate(plan.shards):
        for part in shard.slices:
            if part.table not in cuts:
                raise PlanError(f"shard {shard.name}: the model has no table {part.table}")
            cuts[part.table].append(Cut(part.start, part.stop, number))
    for table in model.tables:
        cuts[table.name].sort(key=lambda cut: cut.start)
        reached = 0
        for cut in cuts[table.name]:
            if cut.start != reached:
                raise PlanError(
                    f"table {table.name}: ranks of shard {names[cut.shard]} begin at "
                    f"{cut.start:,}, expected {reached:,}"
                )
            reached = cut.stop
        if reached != table.rows:
            raise PlanError(f"table {table.name} has {table.rows:,} rows, the plan {reached:,}")
    return {name: tuple(cut) for name, cut in cuts.items()}


@dataclass(frozen=True, slots=True)
class Window:
    """Rows `begin` … of a table: `routes` (n,) uint8 shard numbers, `counts` (n,) accesses."""

    begin: int
    routes: NDArray[np.uint8]
    counts: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TableRanks:
    """One table's rows in the profile's order.

    Args:
        rows: of the table.
        counts: the profile's file for the table, or None where its log never touched it.
    """

    rows: int
    counts: Path | None

    def windows(
        self,
        cuts: tuple[Cut, ...],
        scratch: Path,
        window_rows: int = WINDOW_ROWS,
        rows: range | None = None,
    ) -> Iterator[Window]:
        """Route rows, ascending by id.

        Args:
            cuts: of the table, `cuts_of`.
            scratch: a folder to sort in: 9 bytes per touched row, where there are several windows.
            window_rows: rows of a window, a multiple of 192.
            rows: those to route, from the beginning of a window on; all of the table if None.

        Raises:
            ArtifactError: the profile's counts name a row twice, or one that is not there.
            StorageError: `scratch` is full.
        """
        rows = range(self.rows) if rows is None else rows
        touched = _Touched(self, cuts, scratch, window_rows, rows)
        stops = np.array([cut.stop for cut in cuts], np.int64)
        shards = np.array([cut.shard for cut in cuts], np.uint8)
        passed = touched.before  # touched rows in the windows so far
        for begin in range(rows.start, rows.stop, window_rows):
            size = min(window_rows, rows.stop - begin)
            window = Window(begin, np.zeros(size, np.uint8), np.zeros(size, np.float32))
            for part in touched.parts(begin // window_rows):
                window.routes[part.places] = part.shards
                window.counts[part.places] = part.counts
            passed += _route_untouched(window, touched.total + begin - passed, stops, shards)
            yield window
        if passed != touched.before + touched.within:
            raise ArtifactError(
                f"{self.counts}: lists {touched.within:,} rows, {passed - touched.before:,} of "
                f"them distinct rows of the table with a count above 0"
            )


class _Records(NamedTuple):
    """Touched rows of one window, as columns: places in the window, counts and shards."""

    places: NDArray[np.uint32]
    counts: NDArray[np.float32]
    shards: NDArray[np.uint8]

    @classmethod
    def read(cls, data: bytes) -> _Records:
        """As `data` keeps them."""
        size = len(data) // RECORD_BYTES
        return cls(
            np.frombuffer(data, np.uint32, size),
            np.frombuffer(data, np.float32, size, 4 * size),
            np.frombuffer(data, np.uint8, size, 8 * size),
        )

    def taken(self, order: NDArray[np.int64]) -> _Records:
        """Those at the places `order`."""
        return _Records(self.places[order], self.counts[order], self.shards[order])

    def data(self, begin: int, stop: int) -> bytes:
        """Records `begin` … `stop - 1`, column by column."""
        return b"".join(column[begin:stop].tobytes() for column in self)


class _Touched:
    """The profile's list of touched rows, by window.

    `total` are listed, `within` of them among `rows`, and `before` before those.
    """

    def __init__(
        self,
        ranks: TableRanks,
        cuts: tuple[Cut, ...],
        scratch: Path,
        window_rows: int,
        rows: range,
    ) -> None:
        self._ranks, self._scratch, self._window_rows = ranks, scratch, window_rows
        self._cuts = cuts
        self._file = TensorFile(ranks.counts) if ranks.counts else None
        self.total = self._file.info("ids").shape[0] if self._file else 0
        self.before, self.within = 0, self.total
        self._sizes: dict[int, list[int]] = {}  # window number → records of each part on disk
        self._sorted = ranks.rows > window_rows
        if self._sorted:
            self._sort(range(rows.start // window_rows, -(-rows.stop // window_rows)))

    def parts(self, number: int) -> Iterator[_Records]:
        """What lies in window `number`, in chunks."""
        if not self._sorted:
            for _, records in self._scan():
                yield records
            return
        path = self._path(number)
        sizes = self._sizes.pop(number, [])
        if not sizes:
            return
        with os_errors(path, "read"), path.open("rb") as file:
            for size in sizes:
                yield _Records.read(file.read(size * RECORD_BYTES))
        path.unlink()

    def _scan(self) -> Iterator[tuple[NDArray[np.int64], _Records]]:
        """The whole list in chunks: window numbers, and records."""
        if self._file is None:
            return
        for rank in range(0, self.total, SCAN_ROWS):
            stop = min(rank + SCAN_ROWS, self.total)
            ids = self._file.read_rows("ids", rank, stop)
            least, most = int(ids.min()), int(ids.max())
            if least < 0 or most >= self._ranks.rows:
                wrong = least if least < 0 else most
                raise ArtifactError(
                    f"{self._file.path}: row id {wrong} is outside 0 … {self._ranks.rows - 1}"
                )
            windows = ids // self._window_rows
            places = (ids - windows * self._window_rows).astype(np.uint32)
            counts = self._file.read_rows("counts", rank, stop).astype(np.float32)
            yield windows, _Records(places, counts, _shards(self._cuts, rank, stop))

    def _sort(self, wanted: range) -> None:
        """Append each record of the `wanted` windows to its window's file."""
        for old in self._scratch.glob("window-*"):
            old.unlink()
        self.within = 0
        for all_windows, all_records in self._scan():
            self.before += int(np.count_nonzero(all_windows < wanted.start))
            inside = np.flatnonzero((all_windows >= wanted.start) & (all_windows < wanted.stop))
            self.within += len(inside)
            windows = all_windows[inside] - wanted.start
            short = windows.astype(np.uint16) if len(wanted) <= MOST_RADIX else windows
            records = all_records.taken(inside[np.argsort(short, kind="stable")])
            begin = 0
            for number, size in enumerate(np.bincount(windows).tolist(), wanted.start):
                if size:
                    path = self._path(number)
                    with os_errors(path), path.open("ab") as file:
                        file.write(records.data(begin, begin + size))
                    self._sizes.setdefault(number, []).append(size)
                    begin += size

    def _path(self, number: int) -> Path:
        return self._scratch / f"window-{number}"


def _shards(cuts: tuple[Cut, ...], begin: int, stop: int) -> NDArray[np.uint8]:
    """The shards of ranks `begin` … `stop - 1`."""
    sizes = [max(0, min(cut.stop, stop) - max(cut.start, begin)) for cut in cuts]
    return np.repeat(np.array([cut.shard for cut in cuts], np.uint8), sizes)


def _route_untouched(
    window: Window, rank: int, stops: NDArray[np.int64], shards: NDArray[np.uint8]
) -> int:
    """Route the rows that the log never touched, from `rank` on; returns how many were touched."""
    touched = 0
    for begin in range(0, len(window.routes), SCAN_ROWS):
        part = slice(begin, begin + SCAN_ROWS)
        places = np.flatnonzero(window.counts[part] == 0)
        touched += len(window.counts[part]) - len(places)
        ends = np.clip(stops - rank, 0, len(places))
        first = 0
        for end, shard in zip(ends, shards, strict=True):
            window.routes[part][places[first:end]] = shard
            first = max(first, int(end))
        rank += len(places)
    return touched
