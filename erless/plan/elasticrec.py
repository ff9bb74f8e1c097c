"""ElasticRec's utility-based allocation (arXiv 2406.06955, §IV): the baseline.

Each table is cut alone. With QPS from the throughput curve and share from the access CDF,

    cost(k, j] = ⌈λ / QPS((F(j) - F(k))·g)⌉ × ((j - k)·b + m0)
    best(j)    = min over k < j of best(k) + cost(k, j]

over candidate cut points: every row of a small table; on large ones the geometric breakpoints of
the curve, plus the points where a shard at either end just fills a whole number of replicas.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from erless.plan.cost import ROUNDING, Terms
from erless.plan.curves import TableLoad
from erless.plan.layout import Demand, Layout, Slice
from erless.specs.plan import Precision

__all__ = ["cut_table", "elasticrec"]

EVERY_ROW = 600  # tables up to here: every cut is a candidate
CANDIDATES = 600
SHIPPED_LIMIT = 64  # tables at whose number candidates get fewer, to bound planning time


def elasticrec(demand: Demand, terms: Terms) -> Layout:
    """The layout of ElasticRec: no rows in the gateway, fp32, one function per table and cut."""
    known: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    shards = []
    points = CANDIDATES if len(demand.tables) <= SHIPPED_LIMIT else 150
    for number, table in enumerate(demand.tables):
        curve = table.curve
        key = (table.rows, table.spec.dim, table.gathers, curve.share.tobytes())
        if key not in known:
            known[key] = cut_table(table, demand, terms, points)
        shards += [[Slice(number, start, stop)] for start, stop in known[key]]
    return Layout.of(demand, terms, shards, why=["the table's own programme"] * len(shards))


def cut_table(
    table: TableLoad, demand: Demand, terms: Terms, points: int = CANDIDATES
) -> list[tuple[int, int]]:
    """Rank ranges of the table's shards, hottest first, of least memory over the candidates."""
    ranks = _candidates(table, demand, terms, points)
    share = table.curve.cdf(ranks)
    beta = terms.beta_of(table.spec.dim, Precision.FP32)
    row = table.spec.row_bytes + terms.index_bytes_per_row
    each = terms.max_vcpu * terms.utilisation
    best = np.full(len(ranks), np.inf)
    best[0] = 0.0
    before = np.zeros(len(ranks), np.int64)
    for j in range(1, len(ranks)):
        load = demand.qps * (terms.call_s + beta * table.gathers * (share[j] - share[:j]))
        count = np.maximum(np.ceil(load / each * (1 - ROUNDING) - 1e-12), demand.min_replicas)
        cost = best[:j] + np.maximum(count, 1) * (
            (ranks[j] - ranks[:j]) * row + terms.shard_memory_bytes
        )
        k = int(np.argmin(cost))
        best[j], before[j] = cost[k], k
    cuts, j = [], len(ranks) - 1
    while j:
        cuts.append((int(ranks[before[j]]), int(ranks[j])))
        j = int(before[j])
    return cuts[::-1]


def _candidates(table: TableLoad, demand: Demand, terms: Terms, points: int) -> NDArray[np.int64]:
    if table.rows <= EVERY_ROW:
        return np.arange(table.rows + 1)
    ranks = table.curve.ranks
    picked = ranks[np.unique(np.linspace(0, len(ranks) - 1, points).astype(np.int64))]
    load = demand.qps * terms.beta_of(table.spec.dim, Precision.FP32) * table.gathers
    if load <= 0:
        return np.asarray(picked, np.int64)
    each = terms.max_vcpu * terms.utilisation
    number = np.arange(1, int(min(64, load / each + demand.qps * terms.call_s / each + 2)) + 1)
    full = (number * each - demand.qps * terms.call_s) / load
    full = full[(full > 0) & (full < 1)]
    share, at = table.curve.share, table.curve.ranks.astype(np.float64)
    hot = np.floor(np.interp(full, share, at)).astype(np.int64)
    cold = np.ceil(np.interp(1 - full, share, at)).astype(np.int64)
    return np.unique(np.clip(np.concatenate([picked, hot, cold]), 0, table.rows))
