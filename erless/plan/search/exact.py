"""The partition of least memory of a handful of rows, by dynamic programming over subsets.

best(S) = min over T ⊆ S that holds S's first row of cost(T) + best(S \\ T); 3^n steps. Used where
rows are few enough that one row's load decides a replica.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from erless.plan.costs.cost import CostTerms, replicas
from erless.plan.costs.layout import Demand, Layout, Slice
from erless.plan.search.frontier import SearchLimits
from erless.specs.plan import Precision

__all__ = ["MOST_ROWS", "best"]

MOST_ROWS = 10


def best(
    demand: Demand,
    terms: CostTerms,
    precision: Precision,
    resident_precision: Precision,
    limits: SearchLimits,
) -> Layout:
    """The layout of least memory over all partitions of all rows, resident rows included."""
    rows = [
        Slice(number, rank, rank + 1)
        for number, table in enumerate(demand.tables)
        for rank in range(table.rows)
    ]
    everything = (1 << len(rows)) - 1
    cost = [
        _shard_cost(demand, terms, _pick(rows, subset), precision, limits.max_shard_bytes)
        for subset in range(everything + 1)
    ]
    limit = min(limits.max_shards, len(rows))
    value, choice = _partition(cost, everything, limit)
    winner, least = None, math.inf
    for inside in range(everything + 1):
        remote = everything & ~inside
        if math.isinf(value[limit][remote]):
            continue
        shards = [_pick(rows, part) for part in _parts(choice, limit, remote)]
        layout = Layout.of(
            demand,
            terms,
            [join(shard) for shard in shards],
            join(_pick(rows, inside)),
            precision,
            resident_precision,
        )
        if layout.memory < least:
            winner, least = layout, layout.memory
    assert winner is not None  # noqa: S101 - all rows resident is always possible
    return winner


def join(rows: Sequence[Slice]) -> list[Slice]:
    """Neighbouring ranks as one slice."""
    joined: list[Slice] = []
    for row in rows:
        if joined and joined[-1].table == row.table and joined[-1].stop == row.start:
            joined[-1] = Slice(row.table, joined[-1].start, row.stop)
        else:
            joined.append(row)
    return joined


def _pick(rows: Sequence[Slice], subset: int) -> list[Slice]:
    return [row for index, row in enumerate(rows) if subset >> index & 1]


def _shard_cost(
    demand: Demand, terms: CostTerms, rows: Sequence[Slice], precision: Precision, limit: float
) -> float:
    if not rows:
        return 0.0
    seconds, size = terms.call_s, terms.shard_memory_bytes
    for row in rows:
        table = demand.tables[row.table]
        beta = terms.beta_for(table, precision)
        seconds += table.gathers_between(row.start, row.stop) * beta
        size += table.row_bytes(precision) + terms.index_bytes_per_row
    if size > limit:
        return math.inf
    return replicas(demand.qps * seconds, terms, demand.min_replicas) * size


def _partition(
    cost: Sequence[float], everything: int, limit: int
) -> tuple[list[list[float]], list[list[int]]]:
    """Least cost of each subset in at most k shards, and the shard with its first row."""
    value = [[0.0] + [math.inf] * everything]
    choice = [[0] * (everything + 1)]
    for number in range(1, limit + 1):
        before = value[-1]
        now, picks = list(before), list(choice[-1])
        for subset in range(1, everything + 1):
            first = subset & -subset
            others = part = subset ^ first
            while True:
                shard = part | first
                total = cost[shard] + before[subset ^ shard]
                if total < now[subset]:
                    now[subset], picks[subset] = total, shard | number << 32
                if not part:
                    break
                part = (part - 1) & others
        value.append(now)
        choice.append(picks)
        if now == before:
            value.extend([now] * (limit - number))
            choice.extend([picks] * (limit - number))
            break
    return value, choice


def _parts(choice: Sequence[Sequence[int]], limit: int, subset: int) -> list[int]:
    """The shards of the best partition of `subset`."""
    parts = []
    while subset:
        entry = choice[limit][subset]
        shard, limit = entry & 0xFFFFFFFF, (entry >> 32) - 1
        parts.append(shard)
        subset ^= shard
    return parts
