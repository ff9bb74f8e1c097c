"""ElasticRec's utility-based allocation (arXiv 2406.06955, §IV): the baseline.

Each table is cut alone. With QPS from the throughput curve and share from the access CDF,

    cost(k, j] = ⌈λ / QPS((F(j) - F(k))·g)⌉ × ((j - k)·b + m0)
    best(j)    = min over k < j of best(k) + cost(k, j]

over candidate cut points: every row of a small table; on large ones the geometric breakpoints of
the curve, plus the points where a shard at either end just fills a whole number of replicas.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from erless.plan.costs.cost import ROUNDING, CostTerms
from erless.plan.costs.curves import TableLoad
from erless.plan.costs.layout import Demand, Layout, Slice
from erless.specs.plan import Precision

__all__ = ["cut_table", "elasticrec"]

Floats = NDArray[np.float64]
EVERY_ROW = 600  # tables up to here: every cut is a candidate
CANDIDATES = 600
TIE = 1e-3  # weight of memory's growth with traffic, where the number of shards is demanded
SHIPPED_LIMIT = 64  # tables at whose number candidates get fewer, to bound planning time


def elasticrec(demand: Demand, terms: CostTerms, per_table: int | None = None) -> Layout:
    """The layout of ElasticRec: no rows in the gateway, fp32, one function per table and cut.

    Args:
        demand: what must be served.
        terms: what it costs.
        per_table: shards of every table, as in the paper's sensitivity study; None: as many as
            cost least.
    """
    cuts: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    shards = []
    points = CANDIDATES if len(demand.tables) <= SHIPPED_LIMIT else 150
    for number, table in enumerate(demand.tables):
        curve = table.curve
        key = (table.rows, table.spec.dim, table.gathers, curve.share.tobytes())
        if key not in cuts:
            cuts[key] = cut_table(table, demand, terms, points, per_table)
        shards += [[Slice(number, start, stop)] for start, stop in cuts[key]]
    return Layout.of(demand, terms, shards, why=["the table's own programme"] * len(shards))


def cut_table(
    table: TableLoad,
    demand: Demand,
    terms: CostTerms,
    points: int = CANDIDATES,
    shards: int | None = None,
) -> list[tuple[int, int]]:
    """Rank ranges of the table's shards, hottest first, of least memory over the candidates."""
    ranks = _candidates(table, demand, terms, points)
    share = table.curve.cdf(ranks)
    beta = terms.beta_for(table, Precision.FP32)
    row = table.spec.row_bytes + terms.index_bytes_per_row
    replica_vcpu = terms.max_vcpu * terms.utilisation

    load = demand.qps * (terms.call_s + beta * table.gathers * (share[None, :] - share[:, None]))
    # replicas at 100 %, of a shard from point i (row) to point j (column)
    busy = load / replica_vcpu
    memory = (ranks[None, :] - ranks[:, None]) * row + terms.shard_memory_bytes
    count = np.maximum(np.ceil(busy * (1 - ROUNDING) - 1e-12), max(1, demand.min_replicas))
    cost = count * memory
    last = len(ranks) - 1
    if shards is not None:
        cuts = _exactly(min(shards, last), last, cost + TIE * busy * memory)
    else:
        cuts = _any_number(last, cost)
    return [(int(ranks[k]), int(ranks[j])) for k, j in pairwise(cuts)]


def _any_number(last: int, cost: Floats) -> list[int]:
    """0 = k0 < k1 < … = last of least cost, by the recurrence above."""
    columns = np.ascontiguousarray(cost.T)
    best = np.full(last + 1, np.inf)
    best[0] = 0.0
    before = np.zeros(last + 1, np.int64)
    for j in range(1, last + 1):
        total = best[:j] + columns[j, :j]
        k = total.argmin()
        before[j], best[j] = k, total[k]
    cuts = [last]
    while cuts[-1]:
        cuts.append(int(before[cuts[-1]]))
    return cuts[::-1]


def _exactly(number: int, last: int, cost: Floats) -> list[int]:
    """The same with exactly `number` shards."""
    best = np.full((number + 1, last + 1), np.inf)
    best[0, 0] = 0.0
    before = np.zeros((number + 1, last + 1), np.int64)
    for j in range(1, last + 1):
        total = best[:-1, :j] + cost[:j, j]
        before[1:, j] = np.argmin(total, axis=1)
        best[1:, j] = np.min(total, axis=1)
    cuts = [last]
    for layer in range(number, 0, -1):
        cuts.append(int(before[layer, cuts[-1]]))
    return cuts[::-1]


def _candidates(
    table: TableLoad, demand: Demand, terms: CostTerms, points: int
) -> NDArray[np.int64]:
    if table.rows <= EVERY_ROW:
        return np.arange(table.rows + 1)
    ranks = table.curve.ranks
    picked = ranks[np.unique(np.linspace(0, len(ranks) - 1, points).astype(np.int64))]
    load = demand.qps * terms.beta_for(table, Precision.FP32) * table.gathers
    if load <= 0:
        return np.asarray(picked, np.int64)
    replica_vcpu = terms.max_vcpu * terms.utilisation
    number = np.arange(
        1, int(min(64, load / replica_vcpu + demand.qps * terms.call_s / replica_vcpu + 2)) + 1
    )
    full = (number * replica_vcpu - demand.qps * terms.call_s) / load
    full = full[(full > 0) & (full < 1)]
    share, at = table.curve.share, table.curve.ranks.astype(np.float64)
    hot = np.floor(np.interp(full, share, at)).astype(np.int64)
    cold = np.ceil(np.interp(1 - full, share, at)).astype(np.int64)
    return np.unique(np.clip(np.concatenate([picked, hot, cold]), 0, table.rows))
