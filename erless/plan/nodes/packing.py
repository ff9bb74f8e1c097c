"""Whole nodes: containers are packed onto instance types, and a plan costs what the nodes cost.

Two-dimensional bin packing is NP-hard; this is a heuristic with a bound beside it
(`bounds.dollars_bound`). For each instance type, nodes are filled largest container first, then
each node is replaced by the cheapest type that holds what is on it; the cheapest mix wins.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from erless.plan.costs.layout import Layout
from erless.plan.nodes.prices import InstanceType, Prices

__all__ = ["Group", "Packing", "cheapest_possible", "pack", "pack_equal"]


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


Group = tuple[float, float, int]  # vCPU, bytes, how many


def cheapest_possible(layout: Layout, prices: Prices) -> float:
    """Dollars per month below which no packing of this layout can cost."""
    plain = [function for function in layout.functions if not function.gpus]
    cpu = sum(function.replicas * function.vcpu for function in plain)
    memory = sum(function.total_memory for function in plain)
    return prices.least_usd(cpu, memory)


def pack(layout: Layout, prices: Prices) -> Packing | None:
    """The cheapest packing found; None where a container fits on no type.

    Containers with a GPU get nodes of their own, one GPU each.
    """
    groups: list[Group] = [
        (function.vcpu, function.memory, function.replicas)
        for function in layout.functions
        if not function.gpus
    ]
    best: Packing | None = None
    ladder = sorted(prices.types, key=lambda kind: (kind.usd_per_hour, kind.name))
    for kind in prices.types:
        found = _fill(groups, kind, ladder)
        if found and (best is None or found.usd_per_month < best.usd_per_month - 1e-9):
            best = found
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


def pack_equal(groups: Sequence[Group], kind: InstanceType) -> int | None:
    """How many nodes of one type hold all containers; None where one does not fit."""
    packing = _fill(groups, kind, [kind])
    return packing.count if packing else None


def _fill(
    groups: Sequence[Group], kind: InstanceType, ladder: Sequence[InstanceType]
) -> Packing | None:
    cpu, memory = kind.usable_vcpu, kind.usable_bytes
    if any(group[0] > cpu + 1e-9 or group[1] > memory for group in groups):
        return None
    order = sorted(groups, key=lambda group: -max(group[0] / cpu, group[1] / memory))
    left = [group[2] for group in order]
    nodes: Counter[InstanceType] = Counter()
    while any(left):
        free_cpu, free_memory = cpu, memory
        placed = [0] * len(order)
        for index, (need_cpu, need_memory, _) in enumerate(order):
            fits = min(
                math.floor((free_cpu + 1e-9) / need_cpu),
                math.floor(free_memory / need_memory),
                left[index],
            )
            placed[index] = fits
            free_cpu -= fits * need_cpu
            free_memory -= fits * need_memory
        times = min(have // use for have, use in zip(left, placed, strict=True) if use)
        left = [have - times * use for have, use in zip(left, placed, strict=True)]
        nodes[_cheapest(cpu - free_cpu, memory - free_memory, ladder)] += times
    return Packing(tuple(sorted(nodes.items(), key=lambda entry: entry[0].name)))


def _cheapest(cpu: float, memory: float, ladder: Sequence[InstanceType]) -> InstanceType:
    return next(
        kind
        for kind in ladder
        if kind.usable_vcpu + 1e-6 >= cpu and kind.usable_bytes >= memory - 1
    )
