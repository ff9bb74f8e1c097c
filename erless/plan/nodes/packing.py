"""Whole nodes: containers are packed onto instance types, and a plan costs what the nodes cost.

Containers take vCPU and memory, and those of the disk tier a local disk's bytes and reads per
second. Bin packing of several dimensions is NP-hard; this is a heuristic with a bound beside it
(`bounds.dollars_bound`). For each instance type, nodes are filled largest container first, then
each node is replaced by the cheapest type that holds what is on it; the cheapest mix wins. A few
containers are packed exactly (`exact_packing`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import ge

from erless.plan.costs.layout import Layout
from erless.plan.nodes.exact_packing import pack_exactly, states
from erless.plan.nodes.groups import SLACK, Group, Needs, dimensions_of, groups_of
from erless.plan.nodes.prices import InstanceType, Prices

__all__ = ["Packing", "cheapest_possible", "pack", "pack_equal", "pack_groups"]

EXACT_STATES = 64
ROUNDING = (1e-6, 1.0, 1.0, 1e-3)  # of what containers on one node sum up to


@dataclass(frozen=True)
class Packing:
    """Nodes by type and what they cost."""

    nodes: tuple[tuple[InstanceType, int], ...]

    @property
    def count(self) -> int:
        """How many nodes there are."""
        return sum(number for _, number in self.nodes)

    @property
    def usd_per_month(self) -> float:
        """Dollars per month of whole nodes."""
        return sum(kind.usd_per_month * number for kind, number in self.nodes)


def cheapest_possible(layout: Layout, prices: Prices) -> float:
    """Dollars per month below which no packing of this layout can cost."""
    plain = [function for function in layout.functions if not function.gpus]
    cpu = sum(function.replicas * function.vcpu for function in plain)
    memory = sum(function.total_memory for function in plain)
    return prices.least_usd(cpu, memory)


def pack(layout: Layout, prices: Prices, exact_states: int = EXACT_STATES) -> Packing | None:
    """The cheapest packing found; None where a container fits on no type.

    Containers with a GPU get nodes of their own, one GPU each. Containers of at most `exact_states`
    different remainders are packed exactly.
    """
    best = pack_groups(groups_of(layout), prices, exact_states)
    dense = layout.dense
    if best is None or dense is None or not dense.gpus:
        return best
    choices = [
        (math.ceil(dense.replicas / each), kind)
        for kind in prices.gpu_types
        if (
            each := min(
                kind.gpu, int(kind.usable_vcpu / dense.vcpu), int(kind.usable_bytes / dense.memory)
            )
        )
    ]
    if not choices:
        return None
    count, kind = min(choices, key=lambda each: (each[0] * each[1].usd_per_hour, each[1].name))
    return Packing((*best.nodes, (kind, count)))


def pack_groups(
    groups: Sequence[Group], prices: Prices, exact_states: int = EXACT_STATES
) -> Packing | None:
    """The cheapest nodes found for containers without a GPU; None where one fits on no type."""
    if states(groups) <= exact_states:
        nodes = pack_exactly(groups, prices.types)
        return _packing(nodes) if nodes is not None else None
    best: Packing | None = None
    ladder = sorted(prices.types, key=lambda kind: (kind.usd_per_hour, kind.name))
    for kind in prices.types:
        packing = _fill(groups, kind, ladder)
        if packing and (best is None or packing.usd_per_month < best.usd_per_month - 1e-9):
            best = packing
    return best


def pack_equal(groups: Sequence[Group], kind: InstanceType) -> int | None:
    """How many nodes of one type hold all containers; None where one does not fit."""
    packing = _fill(groups, kind, [kind])
    return packing.count if packing else None


def _fill(
    groups: Sequence[Group], kind: InstanceType, ladder: Sequence[InstanceType]
) -> Packing | None:
    dimensions = dimensions_of(groups)
    room = kind.room[:dimensions]
    slack = SLACK[:dimensions]
    if any(
        need > have + extra
        for group in groups
        for need, have, extra in zip(group.needs, room, slack, strict=False)
    ):
        return None
    order = sorted(groups, key=lambda group: -_largest_share(group.needs, room))
    left = [group.number for group in order]
    nodes: Counter[InstanceType] = Counter()
    while any(left):
        free = list(room)
        placed = [0] * len(order)
        for index, group in enumerate(order):
            fits = min(
                left[index],
                *(
                    max(0, math.floor((have + extra) / need))
                    for have, need, extra in zip(free, group.needs, slack, strict=False)
                    if need
                ),
            )
            placed[index] = fits
            for dimension in range(dimensions):
                free[dimension] -= fits * group.needs[dimension]
        times = min(have // use for have, use in zip(left, placed, strict=True) if use)
        left = [have - times * use for have, use in zip(left, placed, strict=True)]
        used = [have - rest for have, rest in zip(room, free, strict=True)]
        nodes[_cheapest(used, ladder)] += times
    return _packing(nodes)


def _packing(nodes: Counter[InstanceType]) -> Packing:
    return Packing(tuple(sorted(nodes.items(), key=lambda entry: entry[0].name)))


def _largest_share(needs: Needs, room: Sequence[float]) -> float:
    return max(need / have for need, have in zip(needs, room, strict=False) if have)


def _cheapest(used: Sequence[float], ladder: Sequence[InstanceType]) -> InstanceType:
    needs = [need - slack for need, slack in zip(used, ROUNDING, strict=False)]
    return next(kind for kind in ladder if all(map(ge, kind.room, needs)))
