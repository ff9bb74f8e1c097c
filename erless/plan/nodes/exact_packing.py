"""The cheapest nodes for a few containers, by dynamic programming over how many are left.

    best(left) = min over what one node may hold, p ≤ left, of price(p) + best(left - p)

with price(p) of the cheapest type that holds p. Containers of one group are alike, so a state is a
number for each group.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from erless.plan.nodes.groups import SLACK, Group, dimensions_of
from erless.plan.nodes.prices import InstanceType

__all__ = ["pack_exactly", "states"]


def states(groups: Sequence[Group]) -> int:
    """Size of the programme."""
    return math.prod(group.number + 1 for group in groups)


def pack_exactly(
    groups: Sequence[Group], types: Sequence[InstanceType]
) -> Counter[InstanceType] | None:
    """The cheapest nodes that hold all containers; None where one fits on no type."""
    dimensions = dimensions_of(groups)
    held = np.indices([group.number + 1 for group in groups]).reshape(len(groups), -1).T
    used = held @ np.array([group.needs[:dimensions] for group in groups])
    room = np.array([kind.room[:dimensions] for kind in types]) + SLACK[:dimensions]
    fits = (room[None, :, :] >= used[:, None, :]).all(axis=2)
    prices = np.where(fits, [kind.usd_per_month for kind in types], np.inf)
    cheapest = prices.argmin(axis=1)
    price = prices.min(axis=1)
    nodes = 1 + np.flatnonzero(np.isfinite(price[1:]))  # what one node may hold
    best = np.zeros(len(held))
    taken = np.zeros(len(held), np.int64)
    for left in range(1, len(held)):
        parts = nodes[: np.searchsorted(nodes, left, side="right")]
        parts = parts[(held[parts] <= held[left]).all(axis=1)]
        # parts are no larger in any group, so numbers of states subtract as the states do
        costs = price[parts] + best[left - parts]
        if not len(parts):
            best[left] = np.inf
            continue
        pick = int(costs.argmin())
        best[left], taken[left] = costs[pick], parts[pick]
    if not np.isfinite(best[-1]):
        return None
    found: Counter[InstanceType] = Counter()
    left = len(held) - 1
    while left:
        found[types[int(cheapest[taken[left]])]] += 1
        left -= int(taken[left])
    return found
