"""The joint policy: one order of all rows of all tables, cut for replicas, gateway included.

`frontier.search` says how many functions of how many replicas; here its capacities become cuts at
whole rows, and the layout that results is sized again from its own loads, so that a plan never
promises what rounding took away. Up to 10 rows in all, every partition is tried instead
(`exact`): there single rows are atoms that no divisible optimum can place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.layout import Demand, Layout, Slice, cover
from erless.plan.search import exact
from erless.plan.search.frontier import FunctionSize, search
from erless.plan.search.hot_rows import settle_atoms
from erless.plan.search.merged_order import MergedOrder
from erless.specs.plan import Precision

__all__ = ["joint_layouts", "joint_memory"]

ATOM_TABLES = 16  # tables up to which single hot rows are tried in other functions
FEWER_FUNCTIONS = 0.004  # memory given up at most for fewer functions
SLACK = (0.0, 1e-6, 1e-4, 1e-3)  # capacity left free for rows that do not divide


def joint_layouts(
    demand: Demand,
    terms: CostTerms,
    *,
    precision: Precision = Precision.FP32,
    resident_precision: Precision = Precision.FP32,
    max_fan_out: int = 254,
    max_shard_bytes: float = math.inf,
    max_service_s: float = math.inf,
    shards_wanted: int = 12,
    resident_hot: bool = True,
    resident: bool = True,
) -> list[Layout]:
    """Layouts of least memory, one per number of shards, unsorted; every row once in each.

    Where `resident` is false, the gateway holds no rows and each shard is one run of the order.
    """
    order = MergedOrder.of(demand.tables, terms, precision, resident_precision)
    found = search(
        order,
        demand,
        terms,
        max_shards=max_fan_out,
        max_shard_bytes=max_shard_bytes,
        resident_hot=resident_hot,
        resident=resident,
    )
    most = max((len(steps) - 1 for _, steps in found), default=0)
    limit = min(max_fan_out, max(shards_wanted, 1))
    if most > 1:
        found += search(
            order,
            demand,
            terms,
            count_shards=True,
            max_shards=min(limit, most),
            max_shard_bytes=max_shard_bytes,
            resident_hot=resident_hot,
            resident=resident,
        )
    layouts = []
    for steps in dict.fromkeys(steps if resident else _remote(steps) for _, steps in found):
        for slack in SLACK:
            cuts = _realise(order, demand, terms, steps, slack, max_shard_bytes, max_service_s)
            layouts.append(_layout(demand, terms, cuts, steps, precision, resident_precision))
    if resident and terms.fixed_vcpu and len(demand.tables) <= ATOM_TABLES:
        least = min(layouts, key=lambda each: each.memory)
        layouts.append(settle_atoms(least, precision, resident_precision))
    if resident and sum(each.rows for each in demand.tables) <= exact.MOST_ROWS:
        layouts.append(
            exact.best(demand, terms, precision, resident_precision, max_fan_out, max_shard_bytes)
        )
    fits = [each for each in layouts if len(each.shards) <= max_fan_out]
    sized = [each for each in fits if all(f.memory <= max_shard_bytes for f in each.shards)]
    return sized or fits


def joint_memory(layouts: Sequence[Layout]) -> Layout:
    """The layout of least memory; within 0.4 % of it, the one with fewest functions.

    Instances small enough for the exact method give nothing up.
    """
    least = min(each.memory for each in layouts)
    rows = sum(each.rows for each in layouts[0].demand.tables)
    margin = 0.0 if rows <= exact.MOST_ROWS else FEWER_FUNCTIONS
    near = [each for each in layouts if each.memory <= least * (1 + margin) + 1e-6]
    return min(near, key=lambda each: (len(each.shards), each.memory))


def _remote(steps: Sequence[FunctionSize]) -> tuple[FunctionSize, ...]:
    """Only the shards; where nothing has load, one that holds every row."""
    return tuple(each for each in steps if not each.gateway) or (FunctionSize(1, False),)


def _realise(
    order: MergedOrder,
    demand: Demand,
    terms: CostTerms,
    steps: Sequence[FunctionSize],
    slack: float,
    max_shard_bytes: float,
    max_service_s: float,
) -> list[np.ndarray]:
    """Cut vectors, coldest first: the last step takes all that is left."""
    each = terms.max_vcpu * terms.utilisation
    call = demand.qps * terms.call_s
    remote = (len(steps) - 1) * terms.remote_call_s + terms.route_s * sum(
        table.gathers for table in demand.tables
    )
    front = call + demand.qps * (demand.tower_s + remote)
    cuts = [order.table_rows]
    covered = 0.0
    for step in steps[:-1]:
        capacity = step.replicas * each * (1 - slack) - (front if step.gateway else call)
        if step.gateway:
            capacity /= order.resident_load_ratio
        load = covered + max(0.0, capacity) / demand.qps
        if not step.gateway:
            size = float(order.size_at(covered)) + max_shard_bytes - terms.shard_memory_bytes
            if math.isfinite(size):
                load = min(load, float(order.load_at(size)))
            load = min(load, covered + max(0.0, max_service_s - terms.call_s))
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
    share = sum(
        table.gathers_between(int(cut[index]), table.rows)
        for index, table in enumerate(demand.tables)
    )
    whole = sum(table.gathers for table in demand.tables)
    uniform = len({table.spec.dim for table in demand.tables}) == 1
    return order.total_load * share / whole if uniform and whole else planned


def _layout(
    demand: Demand,
    terms: CostTerms,
    cuts: Sequence[np.ndarray],
    steps: Sequence[FunctionSize],
    precision: Precision,
    resident_precision: Precision,
) -> Layout:
    runs = cover(list(cuts))
    resident: list[Slice] = []
    shards: list[list[Slice]] = []
    reasons: list[str] = []
    for run, step in zip(runs, steps, strict=True):
        if step.gateway:
            resident = run
        else:
            shards.append(run)
            reasons.append(_reason(step))
    shards.reverse()
    reasons.reverse()
    assert len(list(pairwise(cuts))) == len(steps)  # noqa: S101
    return Layout.of(demand, terms, shards, resident, precision, resident_precision, reasons)


def _reason(step: FunctionSize) -> str:
    if step.replicas == 1:
        return "load: one more row would need a second copy of every row here"
    return f"load: one more row would need replica {step.replicas + 1} of every row here"
