"""Layouts of a shape that the user demands: so many remote functions, so large a resident tier.

The objective often leads to fewer functions than a test or a demonstration needs. Cuts that it
leaves open are made by how memory grows with traffic: in the limit of many replicas a function
of load ℓ and b bytes holds ℓ·(b + m0) bytes per query/s, so for N functions

    best(n, j) = min over i < j of best(n-1, i) + (a + L(j) - L(i)) · (m0 + S(j) - S(i))

over grid points of the merged order (L: load, S: bytes of the coldest rows), exact on that grid.
Hot functions come out small and busy, cold ones large and quiet. Beside them, shapes are tried in
which no table's rows outside the gateway are cut: fewer partial vectors cross the wire.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.layout import Demand, Layout, cover
from erless.plan.policies.frozen import freeze_last, idle_cut
from erless.plan.policies.joint import joint_layouts
from erless.plan.request import PlanRequest, StoredAs
from erless.plan.search.frontier import SearchLimits
from erless.plan.search.merged_order import MergedOrder

__all__ = ["demanded_layouts", "fluid_cuts"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
GRID = 300
HALVINGS = 60
SHARDS_WANTED = 12
RESIDENT_SHARES = (0.0, 0.5, 0.8, 0.9)  # of the gathers, tried where the user names none
FROZEN_SHARE = 0.001  # of the gathers: what freezes on demand where no row is idle
WHY = "demanded: cut where memory grows least with traffic"


def demanded_layouts(
    demand: Demand, sizes: Sequence[CostTerms], request: PlanRequest, stored: StoredAs
) -> list[Layout]:
    """Layouts with the demanded shards, resident tier and frozen rows; empty if none can be.

    `sizes` are terms that differ in the size of containers alone.
    """
    order = MergedOrder.of(demand.tables, sizes[0], *stored)
    resident = _Shapes(demand, sizes[0], request, stored, order, []).resident_cuts()
    return [
        layout
        for terms in sizes
        for layout in _Shapes(demand, terms, request, stored, order, resident).layouts()
    ]


def fluid_cuts(load: Floats, size: Floats, count: int, terms: CostTerms) -> list[int]:
    """Grid points 0 = p0 < p1 < … < p_count = last of the recurrence above.

    Args:
        load: (n,) seconds of one vCPU per query of the coldest rows, rising.
        size: (n,) their bytes, rising.
        count: functions, below n.
    """
    last = len(load) - 1
    cost = (terms.call_s + load[None, :] - load[:, None]) * (
        terms.shard_memory_bytes + size[None, :] - size[:, None]
    )
    cost[np.tril_indices(last + 1)] = np.inf
    best, before = cost[0], []
    for _ in range(count - 1):
        total = best[:, None] + cost
        before.append(np.argmin(total, axis=0))
        best = np.min(total, axis=0)
    points = [last]
    for choice in reversed(before):
        points.append(int(choice[points[-1]]))
    return [0, *reversed(points)]


@dataclass(frozen=True)
class _Shapes:
    """The demanded cuts of one request, at one pair of precisions."""

    demand: Demand
    terms: CostTerms
    request: PlanRequest
    stored: StoredAs
    order: MergedOrder
    residents: Sequence[Ints]

    def layouts(self) -> list[Layout]:
        layouts = []
        for resident in self.residents:
            frozen, why = self._frozen_cut(resident)
            for inner in self._inner_cuts(resident, frozen):
                layouts.append(self._layout([frozen, *inner, resident], why))
        return layouts

    def _layout(self, cuts: list[Ints], frozen_why: str) -> Layout:
        rows = self.order.table_rows
        shards = cover(cuts)[::-1]
        why = [WHY] * len(shards)
        frozen = cover([rows, cuts[0]])[0]
        if frozen:
            shards, why = [*shards, frozen], [*why, frozen_why]
        inside = cover([cuts[-1], np.zeros_like(rows)])[0]
        layout = Layout.of(self.demand, self.terms, shards, inside, *self.stored, why)
        return freeze_last(layout) if frozen else layout

    def _share(self, cut: Ints) -> float:
        """Share of all gathers that ranks below `cut` take."""
        whole = sum(table.gathers for table in self.demand.tables)
        inside = sum(self.demand.gathers_between(np.zeros_like(cut), cut))
        return inside / whole if whole else 0.0

    def _bytes(self, cut: Ints) -> float:
        """Bytes of the rows below `cut` in the gateway."""
        kind = self.stored.resident
        widths = [table.row_bytes(kind) for table in self.demand.tables]
        return float(np.dot(cut, widths))

    def resident_cuts(self) -> list[Ints]:
        share, room = self.request.resident_share, self.request.max_resident_bytes
        limit = math.inf if room is None else room
        shares = RESIDENT_SHARES if share is None else (share,)
        cuts = [self._hottest(share, limit) for share in shares]
        return list({cut.tobytes(): cut for cut in cuts}.values())

    def _hottest(self, share: float, limit_bytes: float = math.inf) -> Ints:
        """The longest run of hottest rows with at most `share` of the gathers, and these bytes."""
        low, high = 0.0, self.order.total_load  # of the colder rows, which stay outside
        best = np.zeros_like(self.order.table_rows)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            cut = self.order.cut(middle)
            if self._share(cut) <= share * (1 + 1e-9) and self._bytes(cut) <= limit_bytes:
                best, high = cut, middle
            else:
                low = middle
        return best

    def _frozen_cut(self, resident: Ints) -> tuple[Ints, str]:
        """Where frozen rows begin, and why: idle ones, else the coldest share demanded."""
        request = self.request
        if not request.freezes:
            return self.order.table_rows, ""
        share = request.frozen_share
        idle = np.maximum(idle_cut(self.demand, self.terms, request, self.stored), resident)
        if share is None and (idle < self.order.table_rows).any():
            return idle, f"idle for {request.frozen_window_s:g} s at least half of the time"
        share = FROZEN_SHARE if share is None else share
        cut = self._hottest(1 - share)
        return np.maximum(cut, resident), f"demanded: the coldest {share:.2%} of gathers"

    def _inner_cuts(self, resident: Ints, frozen: Ints) -> list[list[Ints]]:
        """Cuts between the frozen rows and the resident ones, coldest first."""
        number = self.request.shards
        free = self._free_cuts(resident, frozen)
        if number is None:
            return free
        number -= bool((frozen < self.order.table_rows).any())
        inner_cuts = [cuts for cuts in free if len(cuts) == number - 1]
        load_cuts: list[list[float]] = []
        loads = self._grid(self._load_outside(frozen), self._load_outside(resident))
        if 1 <= number < len(loads):
            points = fluid_cuts(loads, self.order.size_at(loads), number, self.terms)
            load_cuts.append([float(loads[point]) for point in points[1:-1]])
            if self.request.max_shard_bytes:
                load_cuts.append(self._even(float(loads[0]), float(loads[-1]), number))
        for loads_between in load_cuts:
            cuts = [self.order.cut(load) for load in loads_between]
            inner_cuts.append([np.clip(cut, resident, frozen) for cut in cuts])
        return inner_cuts + self._whole_tables(resident, frozen, number)

    def _whole_tables(self, resident: Ints, frozen: Ints, number: int) -> list[list[Ints]]:
        """Cuts that leave what is outside the gateway of each table in one function.

        A query then brings back one partial vector per bag, however many functions it asks.
        """
        tables = np.flatnonzero(frozen > resident)
        if not 1 <= number <= len(tables):
            return []
        load = np.array(self._loads(resident, frozen))[tables]
        widths = [table.row_bytes(self.stored.shards) for table in self.demand.tables]
        size = ((frozen - resident) * np.array(widths))[tables].astype(np.float64)
        coldest = np.argsort(load / size, kind="stable")
        points = fluid_cuts(
            np.concatenate([[0.0], np.cumsum(load[coldest])]),
            np.concatenate([[0.0], np.cumsum(size[coldest])]),
            number,
            self.terms,
        )
        cuts = []
        for point in points[1:-1]:
            cut = frozen.copy()
            cut[tables[coldest[:point]]] = resident[tables[coldest[:point]]]
            cuts.append(cut)
        return [cuts]

    def _even(self, low: float, high: float, number: int) -> list[float]:
        """Loads between shards of equally many bytes: the smallest that the largest can be."""
        sizes = np.linspace(self.order.size_at(low), self.order.size_at(high), number + 1)
        return [float(load) for load in self.order.load_at(sizes[1:-1])]

    def _free_cuts(self, resident: Ints, frozen: Ints) -> list[list[Ints]]:
        """The cuts that the search makes of these rows where none of them may be in the gateway."""
        middle = _between(self.demand, resident, frozen)
        if middle is None:
            return []
        demand, numbers = middle
        most = self.request.max_fan_out - self.request.freezes
        shards_wanted = min(most, self.request.shards or SHARDS_WANTED)
        room = self.request.max_shard_bytes or math.inf
        layouts = joint_layouts(
            demand,
            self.terms,
            SearchLimits(most, room, resident=False),
            precision=self.stored.shards,
            resident_precision=self.stored.resident,
            shards_wanted=shards_wanted,
        )
        cuts = []
        for layout in layouts:
            at, inner = frozen.copy(), []
            for shard in reversed(layout.shards[1:]):
                for part in shard.slices:
                    table = numbers[part.table]
                    at[table] = resident[table] + part.start
                inner.append(at.copy())
            cuts.append(inner)
        return cuts

    def _grid(self, low: float, high: float) -> Floats:
        """Loads between `low` and `high`, spaced evenly and by their rows' bytes."""
        if high <= low:
            return np.empty(0)
        even = np.linspace(low, high, GRID // 2)
        sizes = np.geomspace(1, 1e9, GRID // 2) / 1e9  # of the bytes, from the hot end
        top, bottom = self.order.size_at(high), self.order.size_at(low)
        by_size = self.order.load_at(top - (top - bottom) * sizes)
        return np.unique(np.clip(np.concatenate([even, by_size]), low, high))

    def _load_outside(self, cut: Ints) -> float:
        """Seconds of one vCPU per query of all ranks from `cut` on."""
        return sum(self._loads(cut, self.order.table_rows))

    def _loads(self, start: Ints, stop: Ints) -> list[float]:
        """Per table, seconds of one vCPU per query of ranks start … stop-1."""
        gathered = self.demand.gathers_between(start, stop)
        return [
            gathers * self.terms.beta_for(table, self.stored.shards)
            for table, gathers in zip(self.demand.tables, gathered, strict=True)
        ]


def _between(demand: Demand, start: Ints, stop: Ints) -> tuple[Demand, list[int]] | None:
    """The demand of ranks start … stop-1 alone, and the numbers of the tables that have any."""
    numbers = [int(number) for number in np.flatnonzero(stop > start)]
    if not numbers:
        return None
    tables = [
        demand.tables[number].between(int(start[number]), int(stop[number])) for number in numbers
    ]
    return replace(demand, tables=tuple(tables)), numbers
