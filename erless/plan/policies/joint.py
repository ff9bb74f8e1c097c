"""The joint policy: one order of all rows of all tables, cut for replicas, gateway included.

`frontier.search` says how many functions of how many replicas take least memory; here its
capacities become cuts at whole rows, and the layout that results is sized again from its own loads,
so that a plan never promises what rounding took away. Up to 10 rows in all, the partition of least
memory is found by trying every one (`exact`): there single rows decide, which the search for
divisible rows cannot place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.layout import Demand, Layout, Slice, cover
from erless.plan.search import exact
from erless.plan.search.frontier import FunctionSize, SearchLimits, search
from erless.plan.search.hot_rows import settle_atoms
from erless.plan.search.merged_order import MergedOrder
from erless.specs.plan import Precision

__all__ = ["joint_layouts", "joint_memory"]

ATOM_TABLES = 16  # tables up to which single hot rows are tried in other functions
SLACK = (0.0, 1e-6, 1e-4, 1e-3)  # capacity left free for rows that do not divide


def joint_layouts(
    demand: Demand,
    terms: CostTerms,
    limits: SearchLimits | None = None,
    *,
    precision: Precision = Precision.FP32,
    resident_precision: Precision = Precision.FP32,
    shards_wanted: int = 12,
) -> list[Layout]:
    """Layouts of least memory, one per number of shards, unsorted; every row once in each.

    Args:
        demand: what must be served.
        terms: what a function costs.
        limits: what may be found. Where no rows may be resident, the gateway holds none and each
            shard is one run of the order.
        precision: of the rows in shards.
        resident_precision: of the rows in the gateway.
        shards_wanted: numbers of shards up to which each is tried.
    """
    limits = limits or SearchLimits()
    order = MergedOrder.of(demand.tables, terms, precision, resident_precision)
    layouts = []
    for sizes in _function_sizes(order, demand, terms, limits, shards_wanted):
        for slack in SLACK:
            cuts = _realise(order, demand, terms, sizes, slack, limits.max_shard_bytes)
            layouts.append(_layout(demand, terms, cuts, sizes, precision, resident_precision))
    if limits.resident and terms.fixed_vcpu and len(demand.tables) <= ATOM_TABLES:
        least = min(layouts, key=lambda layout: layout.memory)
        layouts.append(settle_atoms(least, precision, resident_precision))
    if limits.resident and sum(table.rows for table in demand.tables) <= exact.MOST_ROWS:
        layouts.append(exact.best(demand, terms, precision, resident_precision, limits))
    fits = [layout for layout in layouts if len(layout.shards) <= limits.max_shards]
    room = limits.max_shard_bytes
    sized = [layout for layout in fits if all(f.memory <= room for f in layout.shards)]
    return sized or fits


def _function_sizes(
    order: MergedOrder,
    demand: Demand,
    terms: CostTerms,
    limits: SearchLimits,
    shards_wanted: int,
) -> list[tuple[FunctionSize, ...]]:
    """The function sizes of the best of any number of shards, and of the best of each number."""
    solutions = search(order, demand, terms, limits)
    most = max((len(sizes) - 1 for _, sizes in solutions), default=0)
    shards = min(limits.max_shards, max(shards_wanted, 1))
    if most > 1:
        fewer = replace(limits, max_shards=min(shards, most))
        solutions += search(order, demand, terms, fewer, count_shards=True)
    return list(
        dict.fromkeys(sizes if limits.resident else _remote(sizes) for _, sizes in solutions)
    )


def joint_memory(layouts: Sequence[Layout]) -> Layout:
    """The layout of least memory; of several, the one with fewest functions."""
    least = min(layout.memory for layout in layouts)
    near = [layout for layout in layouts if layout.memory <= least + 1e-6]
    return min(near, key=lambda layout: (len(layout.shards), layout.memory))


def _remote(sizes: Sequence[FunctionSize]) -> tuple[FunctionSize, ...]:
    """Only the shards; where nothing has load, one that holds every row."""
    return tuple(size for size in sizes if not size.gateway) or (FunctionSize(1, False),)


def _realise(
    order: MergedOrder,
    demand: Demand,
    terms: CostTerms,
    sizes: Sequence[FunctionSize],
    slack: float,
    max_shard_bytes: float,
) -> list[np.ndarray]:
    """Cut vectors, coldest first: the last step takes all that is left."""
    replica_vcpu = terms.max_vcpu * terms.utilisation
    call = demand.qps * terms.call_s
    remote = (len(sizes) - 1) * terms.remote_call_s + terms.route_s * sum(
        table.gathers for table in demand.tables
    )
    front = call + demand.qps * (demand.tower_s + remote)
    cuts = [order.table_rows]
    covered = 0.0
    for size in sizes[:-1]:
        capacity = size.replicas * replica_vcpu * (1 - slack) - (front if size.gateway else call)
        if size.gateway:
            capacity /= order.resident_load_ratio
        load = covered + max(0.0, capacity) / demand.qps
        if not size.gateway:
            full = float(order.size_at(covered)) + max_shard_bytes - terms.shard_memory_bytes
            if math.isfinite(full):
                load = min(load, float(order.load_at(full)))
        cut = np.minimum(order.cut(load), cuts[-1])
        cuts.append(cut)
        covered = _load_above(order, demand, terms, cut, load)
    cuts.append(np.zeros_like(order.table_rows))
    return cuts


def _load_above(
    order: MergedOrder, demand: Demand, terms: CostTerms, cut: np.ndarray, planned: float
) -> float:
    """Load of the rows from `cut` on; rows do not divide, so it may be below `planned`."""
    sizes = order.table_rows - cut
    if not sizes.any():
        return 0.0
    share = sum(demand.gathers_between(cut, order.table_rows))
    whole = sum(table.gathers for table in demand.tables)
    uniform = len({(table.spec.dim, table.floor) for table in demand.tables}) == 1
    return order.total_load * share / whole if uniform and whole else planned


def _layout(
    demand: Demand,
    terms: CostTerms,
    cuts: Sequence[np.ndarray],
    sizes: Sequence[FunctionSize],
    precision: Precision,
    resident_precision: Precision,
) -> Layout:
    runs = cover(list(cuts))
    resident: Sequence[Slice] = []
    shards: list[Sequence[Slice]] = []
    reasons: list[str] = []
    for run, size in zip(runs, sizes, strict=True):
        if size.gateway:
            resident = run
        else:
            shards.append(run)
            reasons.append(_reason(size))
    shards.reverse()
    reasons.reverse()
    assert len(list(pairwise(cuts))) == len(sizes)  # noqa: S101
    return Layout.of(demand, terms, shards, resident, precision, resident_precision, reasons)


def _reason(size: FunctionSize) -> str:
    if size.replicas == 1:
        return "load: one more row would need a second copy of every row here"
    return f"load: one more row would need replica {size.replicas + 1} of every row here"
