"""Runs of a path that cost least at a price of a vCPU and of a byte, by dynamic programming.

    best(n, j) = min over i < j of best(n-1, i) + cost of a shard (i, j)

for n shards over the coldest points up to j, then the gateway with every row below cut j. A
shard's cost has its calls, gathers, partial vectors at both ends and whole replicas, so on the
path's points this is exact but for one thing: what a shard adds to the gateway's load is taken at
its price, not rounded to the gateway's replicas; the gateway is sized exactly at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from erless.plan.costs.cost import ROUNDING, CostTerms
from erless.plan.costs.layout import Demand
from erless.plan.search.cut_path import CutPath
from erless.plan.search.frontier import SearchLimits

__all__ = ["Price", "cheapest_runs"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Price:
    """What a vCPU and a byte cost, in one unit."""

    vcpu: float
    memory: float


def cheapest_runs(
    path: CutPath, demand: Demand, terms: CostTerms, price: Price, limits: SearchLimits
) -> list[tuple[float, list[int]]]:
    """For each number of shards its least cost, and the points of its cuts, coldest first.

    Each list of points begins with 0; the gateway holds the rows below its last. For each number,
    the best without resident rows stands beside the best of all.
    """
    shard = _shard_costs(path, demand, terms, price, limits)
    per_vcpu = price.vcpu / terms.utilisation
    if price.memory:  # more load is more replicas, each with the gateway's own memory
        per_vcpu += price.memory * terms.gateway_memory_bytes / (terms.utilisation * terms.max_vcpu)
    sent = np.where(np.isfinite(shard), path.partials, 0.0)
    handling = demand.qps * (terms.remote_call_s + terms.partial_s * path.partials)
    step = shard + per_vcpu * handling
    last = len(path.cuts) - 1
    points = np.arange(last + 1)
    chosen: list[tuple[float, list[int]]] = []
    value = np.where(points == 0, 0.0, np.inf)
    own, partials = value.copy(), np.zeros(last + 1)
    before: list[Ints] = []
    for number in range(min(limits.max_shards, last) + 1):
        if number:
            through = value[:, None] + step
            origin = np.argmin(through, axis=0)
            before.append(origin)
            value = through[origin, points]
            own = own[origin] + shard[origin, points]
            partials = partials[origin] + sent[origin, points]
        whole = own + _gateway_costs(path, demand, terms, price, number, partials)
        ends = {int(np.argmin(whole)), last}
        for end in sorted(ends):
            if np.isfinite(whole[end]):
                chosen.append((float(whole[end]), _trace(before, end)))
    return chosen


def _shard_costs(
    path: CutPath, demand: Demand, terms: CostTerms, price: Price, limits: SearchLimits
) -> Floats:
    """(P, P): a shard with run (i, j), all its replicas; inf where there is none."""
    seconds = terms.call_s + (path.load[None, :] - path.load[:, None])
    seconds = seconds + terms.partial_s * path.partials
    size = terms.shard_memory_bytes + path.size[None, :] - path.size[:, None]
    cost = _sized(demand.qps * seconds, size, demand, terms, price)
    cost[size > limits.max_shard_bytes] = np.inf
    cost[np.tril_indices(len(cost))] = np.inf
    return cost


def _gateway_costs(
    path: CutPath, demand: Demand, terms: CostTerms, price: Price, number: int, partials: Floats
) -> Floats:
    """(P,): a gateway beside `number` shards, with every row below each cut."""
    seconds = terms.call_s + demand.tower_s + path.resident_load + number * terms.remote_call_s
    seconds = seconds + terms.route_s * path.gathers + terms.partial_s * partials
    places = ((path.cuts > 0) & (path.cuts < path.cuts[0])).sum(axis=1) > 0
    routed = (number > 1) | places
    routing = routed * terms.routing_bytes_per_row * float(path.cuts[0].sum())
    size = terms.gateway_memory_bytes + path.resident_size + routing
    return _sized(demand.qps * seconds, size, demand, terms, price)


def _sized(load: Floats, size: Floats, demand: Demand, terms: CostTerms, price: Price) -> Floats:
    """Price of the replicas that `load` vCPU need, of `size` bytes each."""
    room = terms.utilisation * terms.max_vcpu
    replicas = np.ceil(load / room * (1 - ROUNDING) - 1e-12)
    replicas = np.maximum(replicas, max(1, demand.min_replicas))
    vcpu = np.maximum(load / terms.utilisation, replicas * terms.least_vcpu)
    if terms.fixed_vcpu:
        vcpu = replicas * terms.max_vcpu
    return np.asarray(price.vcpu * vcpu + price.memory * replicas * size, np.float64)


def _trace(before: list[Ints], end: int) -> list[int]:
    points = [end]
    for origin in reversed(before):
        points.append(int(origin[points[-1]]))
    return points[::-1]
