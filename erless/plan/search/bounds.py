"""Provable lower bounds: no partition of rows into functions, by any policy, costs less.

Memory: `frontier.search(optimistic=True)` over divisible rows. Its exchange arguments hold for
every partition (not only for runs of the merged order), and all it leaves out (whole rows, the
gateway's cost per remote call, routing tables, a shard size limit) only adds memory. Where a shard
size limit is set, more containers may be needed; the search ignores that, so the bound holds.

Dollars: whatever the policy, the nodes must hold at least one copy of all rows and the code, and
run at least the calls, gathers and tower. Either no function is remote, and then each node that
serves holds all rows; or at least one is, then its call is paid too, and by the size of the gateway
either few gathers are resident or the gateway needs large nodes. Each case is a covering programme
over whole nodes (HiGHS); the smallest value bounds every plan.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.layout import Demand
from erless.plan.nodes.prices import InstanceType, Prices
from erless.plan.search.frontier import SearchLimits, search
from erless.plan.search.merged_order import MergedOrder
from erless.specs.plan import Precision

__all__ = ["dollars_bound", "memory_bound"]

CLOSE = 2e-3  # relative, of a bound
INFEASIBLE = 2  # status of scipy.optimize.milp


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
    load = work.need - work.route * work.resident_share(sizes[-1])
    every = _cover(load, work.size + terms.shard_memory_bytes, terms, types)
    least = math.inf
    for below, room in pairwise([0.0, *sizes]):
        if least * (1 - CLOSE) <= every:
            return every
        most = least * (1 - CLOSE)
        least = min(least, _sharded(work, terms, types, (below, room), most))
    return least * (1 - CLOSE)


@dataclass(frozen=True)
class _Work:
    """Least vCPU (loads, at the utilisation) and bytes of every plan.

    Args:
        front: the gateway without gathers.
        gathers: all gathers, as in the gateway.
        call: one call of a shard.
        route: the gateway's handling of all gathers, were they remote.
        size: one copy of all rows and the gateway's code.
        inside: a gateway with all rows.
        gpus: GPUs of the dense function.
        order: rows by accesses per byte, in the form of least bytes.
    """

    front: float
    gathers: float
    call: float
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
            gathers += table.gathers * min(terms.beta_of(table.spec.dim, kind) for kind in kinds)
            route += table.gathers * terms.route_s
        rows = sum(table.rows * small.row_bytes(table.spec.dim) for table in demand.tables)
        held = sum(table.rows * resident.row_bytes(table.spec.dim) for table in demand.tables)
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
        Σ bytes·x ≥ size                                            Σ x over large nodes ≥ 1

    y is eliminated (Fourier-Motzkin): V ≥ need - route·ȳ, V' ≥ front, and
    gathers·V + route·V' ≥ gathers·need + route·front.
    """
    below, room = gateway
    large = np.array([kind.usable_bytes > below for kind in types], np.float64)
    vcpu = np.array([kind.usable_vcpu for kind in types])
    sizes = np.array([kind.usable_bytes / 1e9 for kind in types])
    need = work.need
    least = need - work.route * work.resident_share(room)
    if terms.fixed_vcpu:
        least = math.ceil(least / terms.max_vcpu * (1 - 1e-9)) * terms.max_vcpu
    whole = max(work.gathers + work.route, 1e-12)
    both = (work.gathers * vcpu + work.route * vcpu * large) / whole
    rows = np.array([vcpu, sizes, vcpu * large, large, both])
    size = work.size + terms.shard_memory_bytes
    bounds = np.array(
        [
            least,
            size / 1e9,
            work.front,
            1.0,
            (work.gathers * need + work.route * work.front) / whole,
        ]
    )
    return _solve(np.array([kind.usd_per_month for kind in types]), rows, bounds, most)


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
    return _solve(
        np.array([kind.usd_per_month for kind in types]), rows, np.array([cpu, size / 1e9])
    )


def _solve(
    price: NDArray[np.float64],
    rows: NDArray[np.float64],
    least: NDArray[np.float64],
    most: float = math.inf,
) -> float:
    """The dual bound of min price·x with rows·x ≥ least, x ≥ 0 and whole; inf from `most` on."""
    upper = np.full(len(rows), np.inf)
    if math.isfinite(most):
        rows, least = np.vstack([rows, price]), np.append(least, 0.0)
        upper = np.append(upper, most)
    with _quiet_stdout():
        result = milp(
            price,
            constraints=LinearConstraint(rows, least - np.abs(least) * 1e-9, upper),
            integrality=np.ones(len(price), np.int64),
            bounds=Bounds(0, np.inf),
            options={"time_limit": 5.0, "mip_rel_gap": 1e-3},
        )
    if result.status == INFEASIBLE:
        return math.inf
    bound = getattr(result, "mip_dual_bound", None)
    return float(bound if bound is not None else 0.0)


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Keep off stdout what HiGHS prints there whatever its options say (SciPy 1.17).

    `-o json` promises one document on stdout, so the C library's buffer is emptied both times.
    """
    sys.stdout.flush()
    library = ctypes.CDLL(None)
    library.fflush(None)
    try:
        kept = os.dup(1)
    except OSError:  # no stdout at all
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 1)
        yield
    finally:
        library.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(sink)
