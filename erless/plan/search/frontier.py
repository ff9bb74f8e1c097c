"""The least memory over the merged order, rows taken as divisible: a label-setting programme.

Take loads in vCPU at λ queries/s. A shard of r replicas of C vCPU carries up to r·C·u - λ·a of
gathers and costs r·(m0 + bytes). The gateway of R replicas carries R·C·u - λ·(a + d).
Three exchange arguments shape the search:

1. of two rows in different functions, the one with more load per byte belongs where a byte is
   replicated more (swap equal loads: memory does not grow), so functions are runs of the merged
   order with replica counts that do not fall towards the hot end;
2. so filling a shard to its capacity is never worse: a row that is left over is replicated at
   least as often further up;
3. covered load c at cost V is dominated, while the next level is r, by (c', V') with c' ≥ c and
   V' - r·H(c') ≤ V - r·H(c): every completion of the first serves the second and leaves out
   H(c') - H(c) bytes at r copies or more. (H: most bytes served with load c, concave.)

Levels are tried in rising order and only undominated labels kept, per number of shards where that
number counts. With divisible rows and these costs the best label has the least memory of *all*
partitions of rows, so its value is also the lower bound. `optimistic` rounds in that direction
wherever the search is thinned (many labels, thousands of replicas). Not among these costs: what the
gateway pays per remote call and per partial vector, and its routing tables. They only add to a
layout's memory, so the bound holds, but a layout that is best here need not be best with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from erless.plan.costs.cost import ROUNDING, CostTerms
from erless.plan.costs.layout import Demand
from erless.plan.search.merged_order import MergedOrder

__all__ = ["FunctionSize", "SearchLimits", "search"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
EXACT_LEVELS = 64
LEVEL_RATIO = 1.03
KEPT = 4000  # labels per number of shards


@dataclass(frozen=True)
class SearchLimits:
    """Limits of the layouts that a search may find.

    Args:
        max_shards: most remote shards.
        max_shard_bytes: rows and m0 of one shard replica; ignored where the search is optimistic.
        resident: rows may live in the gateway.
        resident_hot: where a byte costs nearly the same in both, the gateway takes hotter rows.
    """

    max_shards: int = 254
    max_shard_bytes: float = math.inf
    resident: bool = True
    resident_hot: bool = True


@dataclass(frozen=True)
class FunctionSize:
    """One function of a solution: its replicas, and whether it is the gateway."""

    replicas: int
    gateway: bool


@dataclass(frozen=True)
class _Level:
    """`factor`: cost of one byte here. `paid` replicas cost m0 each; `capacity` in shard load."""

    factor: float
    paid: int
    replicas: int
    capacity: float
    gateway: bool
    fixed: float


@dataclass
class _Labels:
    """Undominated labels: covered load, cost, shards used, and where each came from."""

    covered: Floats
    cost: Floats
    shards: Ints
    ident: Ints

    def take(self, indices: NDArray[np.intp]) -> _Labels:
        return _Labels(
            self.covered[indices], self.cost[indices], self.shards[indices], self.ident[indices]
        )


def _join(first: _Labels, second: _Labels) -> _Labels:
    return _Labels(
        np.concatenate([first.covered, second.covered]),
        np.concatenate([first.cost, second.cost]),
        np.concatenate([first.shards, second.shards]),
        np.concatenate([first.ident, second.ident]),
    )


_NONE = _Labels(np.empty(0), np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64))


def search(
    order: MergedOrder,
    demand: Demand,
    terms: CostTerms,
    limits: SearchLimits,
    *,
    count_shards: bool = False,
    optimistic: bool = False,
) -> list[tuple[float, tuple[FunctionSize, ...]]]:
    """Best cost and its functions, coldest first, for each number of shards that improves on fewer.

    Args:
        order: the rows of all tables, coldest first.
        demand: what must be served.
        terms: what a function costs.
        limits: what may be found.
        count_shards: keep labels apart by number of shards; otherwise only the best is returned.
        optimistic: return lower bounds rather than reachable costs.
    """
    runner = _Search(order, demand, terms, limits, count_shards, optimistic)
    return runner.run(_levels(order, demand, terms, limits, optimistic))


def _counts(low: int, high: int, optimistic: bool) -> list[tuple[int, int]]:
    """(paid, carrying) replica counts; beyond 64 geometric, paid for the smallest of its step."""
    counts, value = [], max(1, low)
    exact = value + EXACT_LEVELS
    while value <= high:
        following = value + 1 if value < exact else max(value + 1, int(value * LEVEL_RATIO))
        carrying = following - 1
        counts.append((value if optimistic else carrying, carrying))
        value = following
    return counts


def _levels(
    order: MergedOrder,
    demand: Demand,
    terms: CostTerms,
    limits: SearchLimits,
    optimistic: bool,
) -> list[_Level]:
    """All function sizes, by the cost of a byte in them."""
    resident = limits.resident
    replica_vcpu = terms.max_vcpu * terms.utilisation
    call = demand.qps * terms.call_s
    front = call + demand.qps * demand.tower_s
    total = demand.qps * order.total_load
    low, minimum = max(1, math.ceil((call / replica_vcpu) * (1 - ROUNDING))), demand.min_replicas
    high = max(math.ceil((total + call) / replica_vcpu) + 1, minimum)
    levels = [
        _Level(
            float(paid), paid, carry, carry * replica_vcpu - call, False, terms.shard_memory_bytes
        )
        for paid, carry in _counts(max(low, minimum), high, optimistic)
    ]
    least = max(math.ceil(front / replica_vcpu * (1 - ROUNDING)), minimum, 1)
    most = max(least, math.ceil((front + total * order.resident_load_ratio) / replica_vcpu) + 1)
    for paid, carry in _counts(least, most if resident else least, optimistic):
        room = (
            max(0.0, carry * replica_vcpu - front) / order.resident_load_ratio if resident else 0.0
        )
        # a row's index weighs little: on a tie the gateway takes the hotter rows
        ratio = order.resident_size_ratio
        factor = paid * (max(1.0, ratio) if limits.resident_hot and not optimistic else ratio)
        levels.append(_Level(factor, paid, carry, room, True, terms.gateway_memory_bytes))
    usable = [level for level in levels if level.gateway or level.capacity > 0]
    return sorted(usable, key=lambda level: (level.factor, level.gateway))


class _Search:
    """Runs the levels over two sets of labels: without and with the gateway placed."""

    def __init__(
        self,
        order: MergedOrder,
        demand: Demand,
        terms: CostTerms,
        limits: SearchLimits,
        count: bool,
        optimistic: bool,
    ) -> None:
        self.order, self.qps = order, demand.qps
        self.total = demand.qps * order.total_load
        self.count, self.optimistic = count, optimistic
        self.max_shards = limits.max_shards
        self.room = math.inf if optimistic else limits.max_shard_bytes - terms.shard_memory_bytes
        self.parents: list[int] = [-1]
        self.made_by: list[_Level | None] = [None]

    def size(self, covered: Floats) -> Floats:
        """Most bytes served with the load `covered`, in vCPU."""
        return self.order.size_at(covered / self.qps)

    def run(self, levels: list[_Level]) -> list[tuple[float, tuple[FunctionSize, ...]]]:
        """As `search`; `levels` by rising factor."""
        start = _Labels(np.zeros(1), np.zeros(1), np.zeros(1, np.int64), np.zeros(1, np.int64))
        before, after = start, _NONE
        for level in levels:
            if level.gateway:
                after = self.prune(_join(after, self.add(before, level)), level.factor)
                continue
            before = self.repeat(before, level)
            after = self.repeat(after, level) if len(after.cost) else after
        return self.best(after)

    def repeat(self, labels: _Labels, level: _Level) -> _Labels:
        """Add shards of this level while that finds undominated labels."""
        undominated = newest = self.prune(labels, level.factor)
        while len(newest.cost):
            grown = self.add(newest, level)
            before = set(undominated.ident.tolist())
            undominated = self.prune(_join(undominated, grown), level.factor)
            fresh = np.array([ident not in before for ident in undominated.ident.tolist()], bool)
            newest = undominated.take(np.flatnonzero(fresh))
        return undominated

    def add(self, labels: _Labels, level: _Level) -> _Labels:
        """Each label with one more function of this level, where one may be added."""
        open_ = labels.covered < self.total * (1 - 1e-12)
        if level.gateway:
            open_ = np.ones(len(open_), bool)
        else:
            open_ &= labels.shards < self.max_shards
        labels = labels.take(np.flatnonzero(open_))
        begin = self.size(labels.covered)
        covered = np.minimum(labels.covered + level.capacity, self.total)
        if not level.gateway and math.isfinite(self.room):
            limit = self.qps * self.order.load_at(begin + max(self.room, 0.0))
            covered = np.maximum(labels.covered, np.minimum(covered, limit))
        cost = labels.cost + level.paid * level.fixed
        cost = cost + level.factor * (self.size(covered) - begin)
        first = len(self.parents)
        self.parents.extend(labels.ident.tolist())
        self.made_by.extend([level] * len(labels.ident))
        ident = np.arange(first, len(self.parents))
        return _Labels(covered, cost, labels.shards + (0 if level.gateway else 1), ident)

    def prune(self, labels: _Labels, factor: float) -> _Labels:
        """The undominated labels, while a byte in the next level costs `factor`."""
        if not len(labels.cost):
            return labels
        potential = labels.cost - factor * self.size(labels.covered)
        if not self.count:
            return self.thin(labels.take(_pareto(labels.covered, potential)), factor)
        per_number = []
        for number in range(int(labels.shards.max()) + 1):
            within = np.flatnonzero(labels.shards <= number)
            undominated = within[_pareto(labels.covered[within], potential[within])]
            per_number.append(undominated[labels.shards[undominated] == number])
        return self.thin(labels.take(np.concatenate(per_number)), factor)

    def thin(self, labels: _Labels, factor: float) -> _Labels:
        """Keep the number of labels bounded; where optimistic, by a label as good as each group."""
        if len(labels.cost) <= KEPT * (1 + (int(labels.shards.max()) if self.count else 0)):
            return labels
        order = np.lexsort((labels.covered, labels.shards if self.count else labels.shards * 0))
        labels = labels.take(order)
        if not self.optimistic:
            return labels.take(np.arange(0, len(order), 2))
        last = np.minimum(np.arange(0, len(order), 2) + 1, len(order) - 1)
        potential = labels.cost - factor * self.size(labels.covered)
        best = np.minimum(potential[::2], potential[last])
        merged = labels.take(last)
        merged.shards = np.minimum(labels.shards[::2], labels.shards[last])
        merged.covered = np.maximum(labels.covered[::2], labels.covered[last])
        merged.cost = best + factor * self.size(merged.covered)
        return merged

    def best(self, labels: _Labels) -> list[tuple[float, tuple[FunctionSize, ...]]]:
        """Cost and functions of the complete labels, each cheaper than those of fewer shards."""
        done = labels.take(np.flatnonzero(labels.covered >= self.total * (1 - 1e-9)))
        frontier: list[tuple[float, tuple[FunctionSize, ...]]] = []
        lowest = math.inf
        for index in np.lexsort((done.cost, done.shards)):
            if done.cost[index] < lowest:
                lowest = float(done.cost[index])
                frontier.append((lowest, self.trace(int(done.ident[index]))))
        return frontier

    def trace(self, ident: int) -> tuple[FunctionSize, ...]:
        """The functions of a label, coldest first."""
        steps: list[FunctionSize] = []
        level = self.made_by[ident]
        while level is not None:
            steps.append(FunctionSize(level.replicas, level.gateway))
            ident = self.parents[ident]
            level = self.made_by[ident]
        return tuple(reversed(steps))


def _pareto(covered: Floats, potential: Floats) -> NDArray[np.intp]:
    """Indices of labels that no label with at least their cover has at less or equal potential."""
    order = np.lexsort((potential, -covered))
    sorted_potential = potential[order]
    running = np.concatenate([[np.inf], np.minimum.accumulate(sorted_potential)[:-1]])
    slack = np.abs(sorted_potential) * 1e-13
    return np.asarray(order[sorted_potential < running - slack], np.intp)
