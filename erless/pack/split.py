"""Which rows go where: a plan's ranks become row ids, a window of the table at a time.

The profile lists the touched rows of a table hottest first; their ranks are their places in that
list, and the rows it does not list follow in ascending order of id. A window of row ids is routed
by one scan of the list, in chunks, and one count of the unlisted rows, so memory does not grow
with the table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.errors import ArtifactError, PlanError
from erless.specs.model import ModelSpec
from erless.specs.plan import Plan
from erless.specs.release import ROUTING_LIMIT
from erless.storage.atomic import os_errors
from erless.storage.tensors import TensorFile

__all__ = ["Cut", "TableRanks", "Window", "cuts_of", "index_blocks", "read_rows"]

INDEX_ROWS = 192  # rows per block of the row index (erless/dlrm/kernels/kernels.h)
WINDOW_ROWS = INDEX_ROWS * 65_536  # 12.6 M rows: 12 MiB of routing, 48 MiB of weights
SCAN_ROWS = 1 << 20


@dataclass(frozen=True, slots=True)
class Cut:
    """Ranks `start` … `stop - 1` of a table go to shard number `shard`."""

    start: int
    stop: int
    shard: int


def cuts_of(plan: Plan, model: ModelSpec) -> dict[str, tuple[Cut, ...]]:
    """The cuts of each table, hottest first; together they hold each rank once.

    Raises:
        PlanError: a row in no shard or in two, an unknown table, a name twice, too many shards.
    """
    if len(plan.shards) > ROUTING_LIMIT:
        raise PlanError(f"the plan has {len(plan.shards)} shards; routing holds {ROUTING_LIMIT}")
    names = [shard.name for shard in plan.shards]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PlanError(f"the plan has two shards called {twice}")
    cuts: dict[str, list[Cut]] = {table.name: [] for table in model.tables}
    for number, shard in enumerate(plan.shards):
        for each in shard.slices:
            if each.table not in cuts:
                raise PlanError(f"shard {shard.name}: the model has no table {each.table}")
            cuts[each.table].append(Cut(each.start, each.stop, number))
    for table in model.tables:
        cuts[table.name].sort(key=lambda cut: cut.start)
        reached = 0
        for cut in cuts[table.name]:
            if cut.start != reached or cut.stop <= cut.start:
                raise PlanError(
                    f"table {table.name}: ranks of shard {names[cut.shard]} begin at "
                    f"{cut.start:,}, expected {reached:,}"
                )
            reached = cut.stop
        if reached != table.rows:
            raise PlanError(f"table {table.name} has {table.rows:,} rows, the plan {reached:,}")
    return {name: tuple(each) for name, each in cuts.items()}


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

    def windows(self, cuts: tuple[Cut, ...], window_rows: int = WINDOW_ROWS) -> Iterator[Window]:
        """Route all rows, ascending by id.

        Raises:
            ArtifactError: the profile's counts name a row twice, or one that is not there.
        """
        file = TensorFile(self.counts) if self.counts else None
        touched = file.info("ids").shape[0] if file else 0
        stops = np.array([cut.stop for cut in cuts], np.int64)
        shards = np.array([cut.shard for cut in cuts], np.uint8)
        seen = 0  # touched rows in the windows so far
        for begin in range(0, self.rows, window_rows):
            size = min(window_rows, self.rows - begin)
            window = Window(begin, np.zeros(size, np.uint8), np.zeros(size, np.float32))
            if file:
                _scan_touched(file, window, stops, shards)
            seen += _route_untouched(window, touched + begin - seen, stops, shards)
            yield window
        if seen != touched:
            raise ArtifactError(
                f"{self.counts}: lists {touched:,} rows, {seen:,} of them distinct rows of the "
                f"table with a count above 0"
            )


def _scan_touched(
    file: TensorFile, window: Window, stops: NDArray[np.int64], shards: NDArray[np.uint8]
) -> None:
    """Route the listed rows that lie in the window."""
    total = file.info("ids").shape[0]
    end = window.begin + len(window.routes)
    for rank in range(0, total, SCAN_ROWS):
        stop = min(rank + SCAN_ROWS, total)
        ids = read_rows(file, "ids", rank, stop)
        inside = np.flatnonzero((ids >= window.begin) & (ids < end))
        places = ids[inside] - window.begin
        window.routes[places] = shards[np.searchsorted(stops, inside + rank, side="right")]
        window.counts[places] = read_rows(file, "counts", rank, stop)[inside]


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


def read_rows(file: TensorFile, name: str, start: int, stop: int) -> NDArray[Any]:
    """Rows `start` … `stop - 1` of a tensor, read and not mapped: mapped pages count as memory.

    Raises:
        ArtifactError: the file ends early.
    """
    info = file.info(name)
    array = np.empty((stop - start, *info.shape[1:]), info.dtype)
    stride = array.itemsize * int(np.prod(info.shape[1:], dtype=np.int64))
    view = array.reshape(-1).view(np.uint8).data
    with os_errors(file.path, "read"), file.path.open("rb", buffering=0) as source:
        offset = info.begin + start * stride
        while view:
            read = os.preadv(source.fileno(), [view], offset)
            if not read:
                raise ArtifactError(f"{file.path}: truncated at offset {offset:,}")
            view, offset = view[read:], offset + read
    return array


def index_blocks(bits: NDArray[np.bool_], rank: int) -> NDArray[np.uint64]:
    """The row index over `bits` (n,), the rows a shard holds of n rows, after `rank` earlier ones.

    n is a multiple of 192 but at the table's end.

    Returns:
        (ceil(n / 192), 4) uint64: see erless/dlrm/kernels/kernels.h.
    """
    blocks = -(-len(bits) // INDEX_ROWS)
    packed = np.packbits(bits, bitorder="little")
    words = np.zeros((blocks, 3), "<u8")
    words.reshape(-1).view(np.uint8)[: len(packed)] = packed
    inside = np.cumsum(np.bitwise_count(words), axis=1, dtype=np.uint64)
    before = np.cumsum(inside[:, 2]) - inside[:, 2] + np.uint64(rank)
    first, second, shift = inside[:, 0], inside[:, 1], np.uint64(8)
    header = (before << np.uint64(16)) | (second << shift) | first
    return np.concatenate((header[:, None], words), axis=1)
