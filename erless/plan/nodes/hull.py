"""What a vCPU and a byte cost on the cheapest mix of node types.

The price of nodes that hold V vCPU and M bytes is, but for whole nodes, the largest of a few sums
v·V + m·M: one pair (v, m) for each edge of the hull of the node types.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

__all__ = ["MEMORY", "Price", "hull_prices"]


@dataclass(frozen=True)
class Price:
    """What a vCPU and a byte cost, in one unit."""

    vcpu: float
    memory: float


MEMORY = Price(0.0, 1.0)


def hull_prices(points: Iterable[tuple[float, float]]) -> list[Price]:
    """Prices (v, m) for which no type sells below v·vCPU + m·bytes, and two, or one, sell at it.

    Args:
        points: vCPU and bytes per dollar of each type. The prices are edges of the points' hull.
    """
    ordered = sorted(set(points), key=lambda point: (-point[0], -point[1]))
    hull: list[tuple[float, float]] = []
    for point in ordered:
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
