"""Provable lower bounds: no partition of rows into functions, by any policy, costs less.

Memory: `frontier.search(optimistic=True)` over divisible rows. Its exchange arguments hold for
every partition (not only for runs of the merged order), and all it leaves out (whole rows, the
gateway's cost per remote call, routing tables, a shard size limit) only adds memory. Where a shard
size limit is set, more containers may be needed; the search ignores that, so the bound holds.

Dollars: whatever the policy, the nodes must hold at least one copy of all rows and the code, and
run at least the calls, gathers and tower. Either no function is remote, and then each node that
serves holds all rows, or at least one is, and then its call is paid too. Both are covering
programmes over whole nodes (HiGHS); the smaller value bounds every plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from erless.plan.cost import Terms
from erless.plan.frontier import search
from erless.plan.layout import Demand
from erless.plan.order import MergedOrder
from erless.plan.prices import InstanceType, Prices
from erless.specs.plan import Precision

__all__ = ["dollars_bound", "memory_bound"]


def memory_bound(
    demand: Demand, terms: Terms, precision: Precision, resident: Precision, max_fan_out: int = 254
) -> float:
    """Bytes that every plan under these terms needs at least."""
    order = MergedOrder.of(demand.tables, terms, precision, resident)
    constrained = max_fan_out < 254
    found = search(order, demand, terms, optimistic=True, max_shards=max_fan_out,
                   count_shards=constrained)  # fmt: skip
    return min(cost for cost, _ in found)


def dollars_bound(
    demand: Demand, terms: Terms, precision: Precision, resident: Precision, prices: Prices
) -> float:
    """Dollars per month that every plan under these terms needs at least; inf if nothing fits."""
    types = prices.types
    finest = [min(precision, resident, key=lambda kind: kind.row_bytes(table.spec.dim))
              for table in demand.tables]  # fmt: skip
    seconds = terms.call_s + demand.tower_s
    size = terms.gateway_memory_bytes
    inside = terms.gateway_memory_bytes
    for table, kind in zip(demand.tables, finest, strict=True):
        seconds += table.gathers * terms.beta_of(table.spec.dim, kind)
        size += table.rows * kind.row_bytes(table.spec.dim)
        inside += table.rows * resident.row_bytes(table.spec.dim)
    gpus = 0.0
    if demand.dense:
        on_gpu = demand.dense.device == "cuda"
        gpus = demand.qps * demand.dense.service_s / terms.utilisation if on_gpu else 0.0
        seconds += 0.0 if on_gpu else demand.dense.service_s
    load = demand.qps * seconds / terms.utilisation
    call = demand.qps * terms.call_s / terms.utilisation
    sharded = _cover(load + call, size + terms.shard_memory_bytes, terms, types)
    holding = [kind for kind in types if kind.usable_bytes >= inside]
    alone = _cover(load, inside, terms, holding)
    return min(sharded, alone) + _gpu_nodes(gpus, prices)


def _gpu_nodes(gpus: float, prices: Prices) -> float:
    """Dollars per month of at least `gpus` GPUs, at the lowest price of one."""
    if not gpus:
        return 0.0
    each = min((kind.usd_per_month / kind.gpu for kind in prices.gpu_types), default=math.inf)
    return max(1, math.ceil(gpus * (1 - 1e-9))) * each


def _cover(load: float, size: float, terms: Terms, types: Sequence[InstanceType]) -> float:
    """min Σ price·x with Σ vCPU·x ≥ load, Σ bytes·x ≥ size, x whole."""
    if not types:
        return math.inf
    cpu = load
    if terms.fixed_vcpu:
        cpu = math.ceil(load / terms.max_vcpu * (1 - 1e-9)) * terms.max_vcpu
    rows = np.array([[kind.usable_vcpu for kind in types],
                     [kind.usable_bytes / 1e9 for kind in types]])  # fmt: skip
    result = milp(
        np.array([kind.usd_per_month for kind in types]),
        constraints=LinearConstraint(rows, lb=np.array([cpu, size / 1e9]) * (1 - 1e-9)),
        integrality=np.ones(len(types), np.int64),
        bounds=Bounds(0, np.inf),
        options={"time_limit": 5.0, "mip_rel_gap": 1e-3},
    )
    bound = getattr(result, "mip_dual_bound", None)
    return float(bound if bound is not None else 0.0)
