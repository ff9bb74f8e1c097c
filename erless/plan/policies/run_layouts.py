"""Joint layouts from priced runs: what pays at the price of a vCPU and of a byte.

The cheapest layout on the cheapest mix of nodes is cheapest at one of the hull's prices
(`nodes/hull.py`), or lies between two that are; so each price's best runs are proposed. With memory
as the objective a byte costs 1 and a vCPU nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.layout import Demand, Layout, cover
from erless.plan.nodes.hull import Price
from erless.plan.policies.proposals import Proposal
from erless.plan.search.cut_path import CutPath, merged_path, table_path
from erless.plan.search.frontier import SearchLimits
from erless.plan.search.merged_order import MergedOrder
from erless.plan.search.priced import cheapest_runs
from erless.specs.plan import Precision

__all__ = ["layout_of", "paths", "run_proposals"]

HOTTEST = (0.5, 0.8, 0.9)  # shares of the load inside the gateway beside whole tables outside
MOST_SHARDS = 12
WHY = "price: a cut elsewhere costs more at the price of a vCPU and of a byte"


class _Run(NamedTuple):
    """One choice of cuts, and what it costs at least at the price that it is best at."""

    floor: float
    path: int
    points: tuple[int, ...]


def paths(
    demand: Demand, terms: CostTerms, precision: Precision, resident: Precision
) -> list[CutPath]:
    """The merged order, and whole tables beside some shares of the hottest rows."""
    order = MergedOrder.of(demand.tables, terms, precision, resident)
    found = [merged_path(demand, terms, order, precision, resident)]
    if len(demand.tables) > 1:
        none = np.zeros_like(order.table_rows)
        inside = [order.cut((1 - share) * order.total_load) for share in HOTTEST]
        found += [table_path(demand, terms, cut, precision, resident) for cut in [none, *inside]]
    return found


def run_proposals(
    paths: Sequence[CutPath],
    demand: Demand,
    sizes: Sequence[CostTerms],
    prices: Sequence[Price],
    limits: SearchLimits,
    kept: int,
) -> list[Proposal]:
    """The layouts of the `kept` cheapest runs at each price and container size, each once."""
    limits = replace(limits, max_shards=min(limits.max_shards, MOST_SHARDS))
    return [
        Proposal(
            run.floor,
            partial(_single, paths[run.path], demand, terms, run.points),
            len(run.points) - 1,
        )
        for terms in sizes
        for run in _distinct(paths, demand, terms, prices, limits, kept)
    ]


def _distinct(
    paths: Sequence[CutPath],
    demand: Demand,
    terms: CostTerms,
    prices: Sequence[Price],
    limits: SearchLimits,
    kept: int,
) -> Iterator[_Run]:
    """The best runs at each price, once each."""
    tables = [cheapest_runs(path, demand, terms, prices, limits) for path in paths]
    seen = set()
    for price in range(len(prices)):
        costs = [table.costs[price].ravel() for table in tables]
        owner = np.repeat(np.arange(len(tables)), [len(cost) for cost in costs])
        place = np.concatenate([np.arange(len(cost)) for cost in costs])
        every = np.concatenate(costs)
        for index in np.argsort(every, kind="stable")[:kept]:
            if not np.isfinite(every[index]):
                break
            number, ending = divmod(int(place[index]), 2)
            path = int(owner[index])
            points = tables[path].points(price, number, ending)
            if (path, points) not in seen:
                seen.add((path, points))
                yield _Run(float(tables[path].floors[price, number, ending]), path, points)


def _single(path: CutPath, demand: Demand, terms: CostTerms, points: Sequence[int]) -> list[Layout]:
    return [layout_of(path, demand, terms, points)]


def layout_of(path: CutPath, demand: Demand, terms: CostTerms, points: Sequence[int]) -> Layout:
    """The layout whose shards are the runs between `points`, the gateway holding the rest."""
    cuts: list[NDArray[np.int64]] = [path.cuts[point] for point in points]
    inside = cover([cuts[-1], np.zeros_like(cuts[-1])])[0]
    shards = cover(cuts)[::-1]
    why = [WHY] * len(shards)
    return Layout.of(demand, terms, shards, inside, path.precision, path.resident, why)
