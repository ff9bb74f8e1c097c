"""Layouts with a disk tier: the rows that cost less on a disk than in memory lie there.

A row in memory costs its bytes all month. On a disk it costs CPU and I/O for each read, and time.
So the coldest rows go first, and how far is tried at several depths, in two shapes:

    above a cut   the hottest rows in the gateway or in a shard in memory, the rest on disks; the
                  gateway routes each row of a cut table
    whole tables  all rows on disks, no table cut and so nothing routed; the hottest are where the
                  cache of each function keeps them

Each is tried with one function on a disk and with several, and with caches of several sizes. They
are candidates beside the layouts without a disk, so a plan with `--disk` is never dearer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.disk import DiskTerms
from erless.plan.costs.layout import Demand, Layout, Slice, cover, on_disk
from erless.plan.request import StoredAs
from erless.plan.search.merged_order import MergedOrder

__all__ = ["disk_layouts", "whole_on_disk"]

Ints = NDArray[np.int64]
COLD = (0.999, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8, 0.6, 0.3)  # of all bytes, on disks
INSIDE = (1.0, 0.9, 0.7, 0.0)  # of the load above the cut, inside the gateway
CACHES = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2)  # of the rows of a function
SHARDS = (1, 2, 3, 4, 6, 8, 12)
WHY = "disk: a read now and then costs less than its memory"
ABOVE = "memory: read too often for a disk"


def disk_layouts(
    demand: Demand, terms: CostTerms, disk: DiskTerms, stored: StoredAs, most_shards: int
) -> Iterator[Layout]:
    """Layouts of which at least one shard lies on disks.

    Args:
        demand: what must be served.
        terms: what a function costs.
        disk: what a read costs.
        stored: precisions.
        most_shards: most remote functions.
    """
    yield from _DiskShapes(demand, terms, disk, stored, most_shards).layouts()


def whole_on_disk(
    demand: Demand, terms: CostTerms, disk: DiskTerms, stored: StoredAs
) -> Iterator[Layout]:
    """The whole model in one function on disks, under caches of several sizes.

    The gateway's own rows are always in memory, so this is what model-wise allocation with a disk
    is: each replica of the function holds every row.
    """
    yield from _DiskShapes(demand, terms, disk, stored, 1).whole_tables()


@dataclass(frozen=True)
class _DiskShapes:
    demand: Demand
    terms: CostTerms
    disk: DiskTerms
    stored: StoredAs
    most_shards: int

    def layouts(self) -> Iterator[Layout]:
        yield from self.whole_tables()
        order = self.order
        for share in COLD:
            cut = order.cut(float(order.load_at(share * order.total_size)))
            for inside in INSIDE:
                yield from self._above(cut, self._gateway_cut(cut, inside))

    @cached_property
    def order(self) -> MergedOrder:
        return MergedOrder.of(self.demand.tables, self.terms, *self.stored)

    def whole_tables(self) -> Iterator[Layout]:
        """All rows on disks, no table cut."""
        slices = [Slice(number, 0, table.rows) for number, table in enumerate(self.demand.tables)]
        for count in SHARDS:
            if count <= min(self.most_shards, len(slices)):
                groups = _split(self.demand, self.stored, slices, count)
                for cached in CACHES:
                    yield self._layout([], groups, [], cached)

    def _gateway_cut(self, cut: Ints, inside: float) -> Ints:
        """Ranks within the gateway: so much of the load of the rows below `cut`."""
        if inside in (0.0, 1.0):
            return (cut * inside).astype(np.int64)
        widths = [t.row_bytes(self.stored.shards) for t in self.demand.tables]
        below = float(self.order.load_at(float(np.dot(self.order.table_rows - cut, widths))))
        load = below + (1 - inside) * (self.order.total_load - below)
        return np.minimum(self.order.cut(load), cut)

    def _above(self, cut: Ints, gateway: Ints) -> Iterator[Layout]:
        """The rows below `cut` in memory, those below `gateway` in the gateway."""
        hot = cover([cut, gateway])[0] if (cut > gateway).any() else []
        cold = cover([self.order.table_rows, cut])[0]
        if not cold or not (cut > 0).any():
            return
        resident = cover([gateway, np.zeros_like(cut)])[0] if gateway.any() else []
        for count in (1, 2, 4):
            groups = _split(self.demand, self.stored, cold, count)
            if len(groups) + bool(hot) <= self.most_shards:
                for cached in CACHES[:3]:
                    yield self._layout(hot, groups, resident, cached)

    def _layout(
        self,
        hot: Sequence[Slice],
        cold: Sequence[Sequence[Slice]],
        resident: Sequence[Slice],
        cached: float,
    ) -> Layout:
        shards = [*([hot] if hot else []), *cold]
        why = [*([ABOVE] if hot else []), *[WHY] * len(cold)]
        made = Layout.of(self.demand, self.terms, shards, resident, *self.stored, why)
        first = len(made.shards) - len(cold)
        disk = replace(self.disk, cached_rows=cached)
        placed = [
            on_disk(self.demand, self.terms, shard, disk) if number >= first else shard
            for number, shard in enumerate(made.shards)
        ]
        return Layout(self.demand, self.terms, made.gateway, tuple(placed))


def _split(
    demand: Demand, stored: StoredAs, slices: Sequence[Slice], count: int
) -> list[list[Slice]]:
    """The slices, none cut, in at most `count` groups: each goes where there are fewest bytes."""
    groups: list[list[Slice]] = [[] for _ in range(count)]
    sizes = [0.0] * count

    def weight(part: Slice) -> float:
        width = demand.tables[part.table].row_bytes(stored.shards)
        return float((part.stop - part.start) * width)

    for part in sorted(slices, key=weight, reverse=True):
        least = sizes.index(min(sizes))
        groups[least].append(part)
        sizes[least] += weight(part)
    return [sorted(group, key=lambda part: part.table) for group in groups if group]
