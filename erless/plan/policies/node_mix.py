"""Layouts cut to fill nodes of several sizes, where one copy of the rows decides the price.

Which nodes: the cheapest covers of what one copy of all rows takes when each node holds one
shard (`nodes/covering.py`), and some dearer ones, since not every cover can be filled. Which rows:
tables in the order of their heat, each from its coldest rank on, so that at most one table is cut
at each border and the gateway's routing stays small; the coldest go where there is most memory for
a vCPU. A node is full when its memory or its vCPU is. A heuristic: nothing is promised of these
layouts, they are candidates beside the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.layout import Demand, Layout, Slice
from erless.plan.nodes.covering import covers
from erless.plan.nodes.prices import InstanceType
from erless.plan.policies.node_sized import WHY
from erless.specs.plan import Precision

__all__ = ["mixed_nodes"]

MOST_NODES = 12  # each holds a shard, and each shard is called by every query
COVERS, STEP = 4, 0.004  # tried, and how much dearer each is than the one before
STEPS = 40  # of the bisection for the rows that a node has vCPU for


def mixed_nodes(
    demand: Demand,
    terms: CostTerms,
    types: Sequence[InstanceType],
    precision: Precision,
    resident: Precision,
    max_shard_bytes: float,
) -> list[Layout]:
    """Layouts of one shard on each of a few nodes, the gateway beside one of them.

    Args:
        demand: what must be served.
        terms: what a function costs, at the largest container.
        types: of nodes.
        precision: of the rows in shards.
        resident: of the rows in the gateway; there are none.
        max_shard_bytes: most bytes of one shard's container.
    """
    if demand.min_replicas > 1 or terms.fixed_vcpu:
        return []
    return list(_Mix(demand, terms, types, precision, resident, max_shard_bytes).layouts())


@dataclass(frozen=True)
class _Mix:
    demand: Demand
    terms: CostTerms
    types: Sequence[InstanceType]
    precision: Precision
    resident: Precision
    max_shard_bytes: float

    def layouts(self) -> Iterator[Layout]:
        for nodes in self._nodes():
            for host in sorted({kind.name for kind in nodes}):
                shards = self._fill(nodes, host)
                if shards:
                    yield Layout.of(
                        self.demand,
                        self.terms,
                        shards[::-1],
                        (),
                        self.precision,
                        self.resident,
                        [WHY] * len(shards),
                    )

    @cached_property
    def _stored(self) -> list[float]:
        """Bytes of a row of each table, with its index."""
        return [
            table.row_bytes(self.precision) + self.terms.index_bytes_per_row
            for table in self.demand.tables
        ]

    @cached_property
    def _beta(self) -> list[float]:
        return [self.terms.beta_for(table, self.precision) for table in self.demand.tables]

    @cached_property
    def _vcpu_of_s(self) -> float:
        """vCPU for a second of work per query."""
        return self.demand.qps / self.terms.utilisation

    @cached_property
    def _routing(self) -> float:
        """Bytes of the routing of one cut table, per cut."""
        return self.terms.routing_bytes(2, False) * max(table.rows for table in self.demand.tables)

    @cached_property
    def _bags(self) -> float:
        """Seconds of one vCPU for a partial vector of each bag, at one end."""
        bags = sum(
            min(table.gathers, table.bags * self.demand.batch) for table in self.demand.tables
        )
        return self.terms.partial_s * bags

    def _front(self, shards: int) -> tuple[float, float]:
        """vCPU and bytes of a gateway without rows, before so many shards."""
        gathers = sum(table.gathers for table in self.demand.tables)
        seconds = self.terms.call_s + self.demand.tower_s + self.terms.remote_call_s * shards
        seconds += self.terms.route_s * gathers + self._bags
        size = self.terms.gateway_memory_bytes + self._routing * (shards - 1)
        return self._vcpu_of_s * seconds, size

    def _nodes(self) -> Iterator[list[InstanceType]]:
        """Nodes to fill: at most a dozen, at least two."""
        terms = self.terms
        call = self._vcpu_of_s * terms.call_s
        asking = call + self._vcpu_of_s * terms.remote_call_s  # at either end
        taken = terms.shard_memory_bytes + self._routing
        useful = [
            kind
            for kind in self.types
            if kind.usable_vcpu > call and kind.usable_bytes > taken + max(self._stored)
        ]
        if not useful:
            return
        vcpu, size = self._front(0)
        vcpu += self._vcpu_of_s * (self._load + self._bags)
        size += sum(
            table.rows * width
            for table, width in zip(self.demand.tables, self._stored, strict=True)
        )
        price = np.array([kind.usd_per_month for kind in useful])
        gives = np.array(
            [
                [kind.usable_vcpu - asking for kind in useful],
                [(min(kind.usable_bytes, self.max_shard_bytes) - taken) / 1e9 for kind in useful],
            ]
        )
        for cover in covers(price, gives, np.array([vcpu, size / 1e9]), COVERS, STEP):
            if cover.nodes is not None and 2 <= cover.nodes.sum() <= MOST_NODES:
                yield [
                    kind
                    for kind, number in zip(useful, cover.nodes, strict=True)
                    for _ in range(number)
                ]

    @cached_property
    def _load(self) -> float:
        """Seconds of one vCPU per query for all gathers."""
        return sum(
            table.gathers * beta for table, beta in zip(self.demand.tables, self._beta, strict=True)
        )

    def _fill(self, nodes: Sequence[InstanceType], host: str) -> list[list[Slice]]:
        """What each node holds, coldest first; nothing where rows are left over."""
        terms = self.terms
        order = sorted(nodes, key=lambda kind: (-kind.usable_bytes / kind.usable_vcpu, kind.name))
        front = self._front(len(nodes))
        beside = next(number for number, kind in enumerate(order) if kind.name == host)
        room = []
        for number, kind in enumerate(order):
            vcpu, size = kind.usable_vcpu, min(kind.usable_bytes, self.max_shard_bytes)
            if number == beside:
                vcpu, size = vcpu - front[0], min(size, kind.usable_bytes - front[1])
            # a bag of a cut table sends a vector from either side
            vcpu -= self._vcpu_of_s * (terms.call_s + self._bags / len(order))
            room.append((vcpu / self._vcpu_of_s, size - terms.shard_memory_bytes))
        return self._cut(room)

    def _cut(self, room: Sequence[tuple[float, float]]) -> list[list[Slice]]:
        """Rows of at most so many seconds per query and bytes each; none if not all have room."""
        tables = self.demand.tables
        heat = [
            table.gathers * beta / (table.rows * width)
            for table, beta, width in zip(tables, self._beta, self._stored, strict=True)
        ]
        shards: list[list[Slice]] = [[] for _ in room]
        place, (seconds, size) = 0, room[0]
        for number in np.argsort(heat, kind="stable").tolist():
            stop = tables[number].rows
            while stop:
                rows = self._fits(number, stop, seconds, size)
                if rows:
                    shards[place].append(Slice(number, stop - rows, stop))
                    seconds -= self._seconds(number, stop - rows, stop)
                    size -= rows * self._stored[number]
                    stop -= rows
                if stop:
                    place += 1
                    if place == len(room):
                        return []
                    seconds, size = room[place]
        return [sorted(shard, key=lambda part: part.table) for shard in shards if shard]

    def _seconds(self, table: int, start: int, stop: int) -> float:
        return self.demand.tables[table].gathers_between(start, stop) * self._beta[table]

    def _fits(self, table: int, stop: int, seconds: float, size: float) -> int:
        """How many of the ranks below `stop`, the coldest first, need no more than that."""
        most = max(0, min(stop, int(size / self._stored[table])))
        if self._seconds(table, stop - most, stop) <= seconds:
            return most
        low, high = 0, most
        for _ in range(STEPS):
            middle = (low + high) // 2
            if self._seconds(table, stop - middle, stop) <= seconds:
                low = middle
            else:
                high = middle
        return low
