"""Provable lower bounds: no partition of rows into functions, by any policy, costs less.

Memory: `frontier.search(optimistic=True)` over divisible rows. Its exchange arguments hold for
every partition (not only for runs of the merged order), and all it leaves out (whole rows, the
gateway's cost per remote call, routing tables, a shard size limit) only adds memory. Where a shard
size limit is set, more containers may be needed; the search ignores that, so the bound holds.

Dollars: whatever the policy, the nodes must hold at least one copy of all rows and the code, and
run at least the calls, gathers and tower. Either no function is remote, and then each node that
serves holds all rows; or at least one is, then its call is paid too, and by the size of the gateway
either few gathers are resident or the gateway needs large nodes. Rows on several nodes are those of
several functions, or copies, and each remote function's calls are paid. Each case is a covering
programme over whole nodes (HiGHS); the smallest value bounds every plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.layout import Demand
from erless.plan.nodes.covering import least_cover
from erless.plan.nodes.prices import InstanceType, Prices
from erless.plan.search.frontier import SearchLimits, search
from erless.plan.search.merged_order import MergedOrder
from erless.specs.plan import Precision

__all__ = ["dollars_bound", "memory_bound"]

CLOSE = 2e-3  # relative, of a bound


def memory_bound(
    demand: Demand,
    terms: CostTerms,
    precision: Precision,
    resident: Precision,
    max_fan_out: int = 254,
) -> float:
    """Bytes that every plan under these terms needs at least."""
    order = MergedOrder.of(demand.tables, terms, precision, resident)
    constrained = max_fan_out < 254
    found = search(
        order, demand, terms, SearchLimits(max_fan_out), count_shards=constrained, optimistic=True
    )
    return min(cost for cost, _ in found)


def dollars_bound(
    demand: Demand, terms: CostTerms, precision: Precision, resident: Precision, prices: Prices
) -> float:
    """Dollars per month that every plan under these terms needs at least; inf if nothing fits."""
    types, work = prices.types, _Work.of(demand, terms, precision, resident)
    holding = [kind for kind in types if kind.usable_bytes >= work.inside]
    alone = _cover(work.load, work.inside, terms, holding)
    return min(alone, _least_sharded(work, terms, types)) + _gpu_nodes(work.gpus, prices)


def _least_sharded(work: _Work, terms: CostTerms, types: Sequence[InstanceType]) -> float:
    """Least price of a plan with a remote function, over all sizes of its gateway.

    What every size must cover bounds them all. A size is only searched for what is cheaper than at
    the others by more than 0.2 %, so the bound is lower by so much where sizes differ.
    """
    sizes = sorted({kind.usable_bytes for kind in types})
    every = _functions(work, terms, types, work.resident_share(sizes[-1]))
    least = math.inf
    for below, room in pairwise([0.0, *sizes]):
        if least * (1 - CLOSE) <= every:
            return every
        most = least * (1 - CLOSE)
        least = min(least, _sharded(work, terms, types, (below, room), most))
    return max(every, least * (1 - CLOSE))


def _functions(
    work: _Work, terms: CostTerms, types: Sequence[InstanceType], resident: float
) -> float:
    """Least price of a plan whose gateway answers at most this share of the gathers itself.

    Over whole nodes x, and z of them that stand for the functions, one for each; with n remote
    functions

        V + route·ȳ ≥ need + call·(n - 1)      Σ bytes·z ≥ size + n·m0      Σ z ≤ n + 1
        Σ bytes/copies·x ≥ size                 z ≤ x

    Of all functions that one node stands for, no more rows are there than it holds, so z holds
    every row. n is Σ z - 1, or 1 where that is less.
    """
    vcpu, sizes = _gives(types)
    none, count = np.zeros(len(types)), len(types)
    least, more = _least_load(work, terms, resident), work.remote
    if terms.fixed_vcpu:
        more = 0.0
    m0, size = terms.shard_memory_bytes / 1e9, work.size / 1e9
    rows = [
        (np.append(vcpu, np.full(count, -more)), least - 2 * more),
        (np.append(vcpu, none), least),
        (np.append(none, sizes - m0), size - m0),
        (np.append(sizes / _copies(work, vcpu), none), size),
        *((np.append(one, -one), 0.0) for one in np.eye(count)),
    ]
    left, right = zip(*rows, strict=True)
    prices = np.append([kind.usd_per_month for kind in types], none)
    return least_cover(prices, np.array(left), np.array(right)).bound


def _gives(types: Sequence[InstanceType]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """vCPU and GB of each type."""
    return (
        np.array([kind.usable_vcpu for kind in types]),
        np.array([kind.usable_bytes / 1e9 for kind in types]),
    )


def _copies(work: _Work, vcpu: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many copies there are at least of the rows on a node of so few vCPU.

    A container takes at least its part of the calls, so one on a small node is one of several of
    its function, which hold the same rows.
    """
    return np.maximum(1.0, np.ceil(work.shard_call / vcpu * (1 - 1e-9)))


def _least_load(work: _Work, terms: CostTerms, resident: float) -> float:
    """vCPU of a plan with a remote function, this share of the gathers resident."""
    least = work.need - work.route * resident
    if terms.fixed_vcpu:
        least = math.ceil(least / terms.max_vcpu * (1 - 1e-9)) * terms.max_vcpu
    return least


@dataclass(frozen=True)
class _Work:
    """Least vCPU (loads, at the utilisation) and bytes of every plan.

    Args:
        front: the gateway without gathers.
        gathers: all gathers, as in the gateway.
        call: one call of a shard, at both ends, and of a dense function where there is one.
        remote: one call of a shard, at both ends; shard_call: at the shard.
        route: the gateway's handling of all gathers, were they remote.
        size: one copy of all rows and the gateway's code.
        inside: a gateway with all rows.
        gpus: GPUs of the dense function.
        order: rows by accesses per byte, in the form of least bytes.
    """

    front: float
    gathers: float
    call: float
    remote: float
    shard_call: float
    route: float
    size: float
    inside: float
    gpus: float
    order: MergedOrder
    gateway_bytes: float

    @classmethod
    def of(
        cls, demand: Demand, terms: CostTerms, precision: Precision, resident: Precision
    ) -> _Work:
        small = min(precision, resident, key=lambda kind: kind.row_bytes(1024))
        kinds = [kind for kind in Precision if kind.row_bytes(1024) >= small.row_bytes(1024)]
        vcpu = demand.qps / terms.utilisation
        gathers = route = 0.0
        for table in demand.tables:
            gathers += table.gathers * min(terms.beta_for(table, kind) for kind in kinds)
            route += table.gathers * terms.route_s
        rows = sum(table.rows * table.row_bytes(small) for table in demand.tables)
        held = sum(table.rows * table.row_bytes(resident) for table in demand.tables)
        front, gpus = terms.call_s + demand.tower_s, 0.0
        if demand.dense and demand.dense.device == "cuda":
            gpus = vcpu * demand.dense.service_s
        apart = demand.dense.service_s if demand.dense and not gpus else 0.0
        m0 = terms.gateway_memory_bytes
        order = MergedOrder.of(demand.tables, terms, resident, resident)
        call = terms.call_s + terms.remote_call_s + apart
        return cls(
            vcpu * front,
            vcpu * gathers,
            vcpu * call,
            vcpu * (terms.call_s + terms.remote_call_s),
            vcpu * terms.call_s,
            vcpu * route,
            rows + m0,
            held + m0,
            gpus,
            order,
            m0,
        )

    @property
    def load(self) -> float:
        """A gateway with all rows."""
        return self.front + self.gathers

    @property
    def need(self) -> float:
        """A gateway without rows, and one shard with all of them."""
        return self.front + self.gathers + self.call + self.route

    def resident_share(self, room: float) -> float:
        """Most of the gathers' load that rows within `room` bytes of a gateway can take."""
        left = self.order.total_size - max(0.0, room - self.gateway_bytes)
        if left <= 0 or not self.order.total_load:
            return 1.0
        return 1.0 - float(self.order.load_at(left)) / self.order.total_load


def _sharded(
    work: _Work,
    terms: CostTerms,
    types: Sequence[InstanceType],
    gateway: tuple[float, float],
    most: float,
) -> float:
    """Least price of a plan whose gateway has so many bytes; inf where none is below `most`.

    `gateway` is (`below`, `room`): more than the one, at most the other.

    Over whole nodes x and the resident share y ≤ ȳ(room) of the gathers. Every gateway stands on a
    node of more than `below` bytes, and these large nodes carry what is resident. V and V' are the
    vCPU of all nodes and of the large ones:

        V + route·y ≥ front + gathers + call + route =: need        V' - gathers·y ≥ front
        Σ bytes/copies·x ≥ size                                     Σ x over large nodes ≥ 1

    y is eliminated (Fourier-Motzkin): V ≥ need - route·ȳ, V' ≥ front, and
    gathers·V + route·V' ≥ gathers·need + route·front.
    """
    below, room = gateway
    large = np.array([kind.usable_bytes > below for kind in types], np.float64)
    vcpu, sizes = _gives(types)
    need = work.need
    whole = max(work.gathers + work.route, 1e-12)
    both = (work.gathers * vcpu + work.route * vcpu * large) / whole
    rows = np.array([vcpu, sizes / _copies(work, vcpu), vcpu * large, large, both])
    size = work.size + terms.shard_memory_bytes
    bounds = np.array(
        [
            _least_load(work, terms, work.resident_share(room)),
            size / 1e9,
            work.front,
            1.0,
            (work.gathers * need + work.route * work.front) / whole,
        ]
    )
    prices = np.array([kind.usd_per_month for kind in types])
    return least_cover(prices, rows, bounds, most).bound


def _gpu_nodes(gpus: float, prices: Prices) -> float:
    """Dollars per month of at least `gpus` GPUs, at the lowest price of one."""
    if not gpus:
        return 0.0
    gpu_price = min((kind.usd_per_month / kind.gpu for kind in prices.gpu_types), default=math.inf)
    return max(1, math.ceil(gpus * (1 - 1e-9))) * gpu_price


def _cover(load: float, size: float, terms: CostTerms, types: Sequence[InstanceType]) -> float:
    """min Σ price·x with Σ vCPU·x ≥ load, Σ bytes·x ≥ size, x whole."""
    if not types:
        return math.inf
    cpu = load
    if terms.fixed_vcpu:
        cpu = math.ceil(load / terms.max_vcpu * (1 - 1e-9)) * terms.max_vcpu
    rows = np.array(
        [[kind.usable_vcpu for kind in types], [kind.usable_bytes / 1e9 for kind in types]]
    )
    prices = np.array([kind.usd_per_month for kind in types])
    return least_cover(prices, rows, np.array([cpu, size / 1e9])).bound
