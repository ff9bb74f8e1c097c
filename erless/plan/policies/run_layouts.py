"""Joint layouts from priced runs: what pays at the price of a vCPU and of a byte.

The price of nodes that hold V vCPU and M bytes is, but for whole nodes, the largest of a few sums
v·V + m·M: one pair (v, m) for each edge of the hull of the node types. The cheapest layout is
cheapest at one of these pairs, or lies between two that are; so each pair's best runs are tried.
With memory as the objective a byte costs 1 and a vCPU nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.layout import Demand, Layout, cover
from erless.plan.nodes.prices import InstanceType
from erless.plan.search.cut_path import CutPath, merged_path, table_path
from erless.plan.search.frontier import SearchLimits
from erless.plan.search.merged_order import MergedOrder
from erless.plan.search.priced import Price, cheapest_runs
from erless.specs.plan import Precision

__all__ = ["MEMORY", "hull_prices", "paths", "run_layouts"]

MEMORY = Price(0.0, 1.0)
HOTTEST = (0.5, 0.8, 0.9)  # shares of the load inside the gateway beside whole tables outside
MOST_SHARDS = 12
WHY = "price: a cut elsewhere costs more at the price of a vCPU and of a byte"


def hull_prices(types: Sequence[InstanceType]) -> list[Price]:
    """Prices (v, m) for which no type sells below v·vCPU + m·bytes, and two, or one, sell at it.

    Per dollar each type gives a point (vCPU, bytes); these are the edges of the points' hull.
    """
    points = sorted(
        {
            (kind.usable_vcpu / kind.usd_per_month, kind.usable_bytes / kind.usd_per_month)
            for kind in types
        },
        key=lambda point: (-point[0], -point[1]),
    )
    hull: list[tuple[float, float]] = []
    for point in points:
        if hull and point[1] <= hull[-1][1]:
            continue
        while len(hull) > 1 and _turns_in(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    prices = [Price(1.0 / hull[0][0], 0.0), Price(0.0, 1.0 / hull[-1][1])]
    for (cpu, memory), (less, more) in pairwise(hull):
        both = np.linalg.solve([[cpu, memory / 1e9], [less, more / 1e9]], [1.0, 1.0])
        prices.append(Price(float(both[0]), float(both[1]) / 1e9))
    return prices


def _turns_in(
    first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]
) -> bool:
    """Whether `middle` lies on or below the line from `first` to `last`."""
    above = (middle[1] - first[1]) * (last[0] - first[0]) - (last[1] - first[1]) * (
        middle[0] - first[0]
    )
    return above >= 0  # last[0] - first[0] is negative


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


def run_layouts(
    paths: Sequence[CutPath],
    demand: Demand,
    sizes: Sequence[CostTerms],
    prices: Sequence[Price],
    limits: SearchLimits,
    kept: int,
) -> list[Layout]:
    """The layouts of the `kept` cheapest runs at each price and container size, each once."""
    limits = replace(limits, max_shards=min(limits.max_shards, MOST_SHARDS))
    return [
        layout_of(path, demand, terms, points)
        for terms in sizes
        for path, points in _distinct(paths, demand, terms, prices, limits, kept)
    ]


def _distinct(
    paths: Sequence[CutPath],
    demand: Demand,
    terms: CostTerms,
    prices: Sequence[Price],
    limits: SearchLimits,
    kept: int,
) -> Iterator[tuple[CutPath, list[int]]]:
    seen = set()
    for price in prices:
        found = [
            (value, number, points)
            for number, path in enumerate(paths)
            for value, points in cheapest_runs(path, demand, terms, price, limits)
        ]
        for _, number, points in sorted(found)[:kept]:
            if (number, *points) not in seen:
                seen.add((number, *points))
                yield paths[number], points


def layout_of(path: CutPath, demand: Demand, terms: CostTerms, points: Sequence[int]) -> Layout:
    """The layout whose shards are the runs between `points`, the gateway holding the rest."""
    cuts: list[NDArray[np.int64]] = [path.cuts[point] for point in points]
    inside = cover([cuts[-1], np.zeros_like(cuts[-1])])[0]
    shards = cover(cuts)[::-1]
    why = [WHY] * len(shards)
    return Layout.of(demand, terms, shards, inside, path.precision, path.resident, why)
