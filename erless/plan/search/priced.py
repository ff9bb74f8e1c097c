"""Runs of a path that cost least at prices of a vCPU and of a byte, by dynamic programming.

    best(n, j) = min over i < j of best(n-1, i) + cost of a shard (i, j)

for n shards over the coldest points up to j, then the gateway with every row below cut j. A
shard's cost has its calls, gathers, partial vectors at both ends and whole replicas, so on the
path's points this is exact but for one thing: what a shard adds to the gateway's load is taken at
its price, not rounded to the gateway's replicas; the gateway is sized exactly at the end. Several
prices are worked out at once, as one more axis of each array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from erless.plan.costs.cost import ROUNDING, CostTerms
from erless.plan.costs.layout import Demand
from erless.plan.nodes.hull import Price
from erless.plan.search.cut_path import CutPath
from erless.plan.search.frontier import SearchLimits

__all__ = ["PricedRuns", "cheapest_runs"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PricedRuns:
    """The best runs of a path at K prices, for 0 … N-1 shards.

    Args:
        costs: (K, N, 2) of the best of all runs, and of the best without resident rows; inf where
            there is none. Where shards share a path of cut tables, each counts as a holder of all.
        floors: (K, N, 2) the same runs' costs, with one shard counted as the holder of a table.
        ends: (K, N, 2) the point where the coldest rows of the gateway begin.
        origins: N-1 arrays (K, P): where the last shard of n + 1 that end at a point begins.
    """

    costs: Floats
    floors: Floats
    ends: Ints
    origins: tuple[Ints, ...]

    def points(self, price: int, number: int, ending: int) -> tuple[int, ...]:
        """The cuts of these runs, coldest first: begins with 0, the gateway has those below."""
        points = [int(self.ends[price, number, ending])]
        for origin in reversed(self.origins[:number]):
            points.append(int(origin[price, points[-1]]))
        return tuple(points[::-1])


def cheapest_runs(
    path: CutPath, demand: Demand, terms: CostTerms, prices: Sequence[Price], limits: SearchLimits
) -> PricedRuns:
    """For each price and number of shards the least cost and its runs."""
    vcpu = np.array([price.vcpu for price in prices])[:, None, None]
    memory = np.array([price.memory for price in prices])[:, None, None]
    # arrays are (K, j, i): a shard from point i to point j, so that the best i lies in one row
    shard = _shard_costs(path, demand, terms, limits, vcpu, memory)
    sent = np.ascontiguousarray(path.partials.T)
    per_vcpu = vcpu / terms.utilisation
    # more load is more replicas, each with the gateway's own memory
    each = terms.gateway_memory_bytes / (terms.utilisation * terms.max_vcpu)
    per_vcpu = per_vcpu + memory * each
    handling = demand.qps * (terms.remote_call_s + terms.partial_s * sent)
    step = shard + per_vcpu * handling
    last = len(path.cuts) - 1
    points = np.arange(last + 1)
    price = np.arange(len(prices))[:, None]
    value = np.where(points == 0, 0.0, np.inf) + np.zeros((len(prices), 1))
    own, partials = value.copy(), np.zeros_like(value)
    owns, counts, origins = [own], [partials], []
    for _ in range(min(limits.max_shards, last)):
        through = value[:, None, :] + step
        origin = np.argmin(through, axis=2)
        origins.append(origin)
        value = through[price, points, origin]
        own = own[price, origin] + shard[price, points, origin]
        partials = partials[price, origin] + sent[points, origin]
        owns.append(own)
        counts.append(partials)
    shards, sent = np.stack(owns, axis=1), np.stack(counts, axis=1)
    both = (_gateway_costs(path, demand, terms, sent, vcpu, memory, every) for every in (1, 0))
    whole, least = (shards + gateway for gateway in both)
    ends = np.stack([np.argmin(whole, axis=2), np.full(whole.shape[:2], last)], axis=2)
    costs = np.take_along_axis(whole, ends, axis=2)
    costs[:, :, 1][ends[:, :, 0] == last] = np.inf  # the same runs
    return PricedRuns(costs, np.take_along_axis(least, ends, axis=2), ends, tuple(origins))


def _shard_costs(
    path: CutPath,
    demand: Demand,
    terms: CostTerms,
    limits: SearchLimits,
    vcpu: Floats,
    memory: Floats,
) -> Floats:
    """(K, P, P): a shard from point i to point j at [j, i], all replicas; inf where none can be."""
    seconds = terms.call_s + (path.load[:, None] - path.load[None, :])
    seconds = seconds + terms.partial_s * path.partials.T
    size = terms.shard_memory_bytes + path.size[:, None] - path.size[None, :]
    need, held = _sized(demand.qps * seconds, size, demand, terms)
    cost = vcpu * need + memory * held
    none = size > limits.max_shard_bytes
    none[np.triu_indices(len(none))] = True
    cost[:, none] = np.inf
    return np.asarray(cost, np.float64)


def _gateway_costs(
    path: CutPath,
    demand: Demand,
    terms: CostTerms,
    partials: Floats,
    vcpu: Floats,
    memory: Floats,
    every_row: int,
) -> Floats:
    """(K, N, P): a gateway beside 0 … N-1 shards, with every row below each cut.

    With `every_row` all shards may hold rows of each table, else only one of them does.
    """
    number = np.arange(partials.shape[1])[:, None]
    seconds = terms.call_s + demand.tower_s + path.resident_load + terms.route_s * path.gathers
    seconds = seconds + number * terms.remote_call_s + terms.partial_s * partials
    rows, held = path.cuts[0], path.cuts > 0
    cut = path.cuts < rows
    at_home, others = ((cut & held) * rows).sum(axis=1), ((cut & ~held) * rows).sum(axis=1)
    most = partials.shape[1] if every_row and not path.whole_tables else 2
    shards = np.minimum(np.arange(partials.shape[1]), most - 1)
    beside, apart = (
        np.array([terms.routing_bytes(int(count), home) for count in shards])[:, None]
        for home in (True, False)
    )
    size = terms.gateway_memory_bytes + path.resident_size + beside * at_home + apart * others
    need, size = _sized(demand.qps * seconds, size, demand, terms)
    return np.asarray(vcpu * need + memory * size, np.float64)


def _sized(load: Floats, size: Floats, demand: Demand, terms: CostTerms) -> tuple[Floats, Floats]:
    """vCPU and bytes of the replicas that `load` vCPU need, of `size` bytes each."""
    room = terms.utilisation * terms.max_vcpu
    replicas = np.ceil(load / room * (1 - ROUNDING) - 1e-12)
    replicas = np.maximum(replicas, max(1, demand.min_replicas))
    vcpu = np.maximum(load / terms.utilisation, replicas * terms.least_vcpu)
    if terms.fixed_vcpu:
        vcpu = replicas * terms.max_vcpu
    return vcpu, replicas * size
