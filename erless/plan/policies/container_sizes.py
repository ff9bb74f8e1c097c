"""The same rows in the same functions, one function with containers of another size.

A layout's search sizes all functions for one largest container. On nodes of several types a
gateway may fill the cores that a shard leaves free, or a hot shard may need fewer copies on larger
nodes; so for a layout that is nearly the cheapest each function's replicas are varied alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from erless.plan.costs.cost import ROUNDING, vcpu_each
from erless.plan.costs.layout import Layout, PlannedFunction

__all__ = ["other_sizes"]

PARTS = (1, 2, 3)  # containers of one function that fill a node


def other_sizes(layout: Layout, sizes: Sequence[float]) -> Iterator[Layout]:
    """The layout with one function in containers that fill a node, or a part of one.

    Args:
        layout: functions on disks, on GPUs, and of fixed size stay as they are.
        sizes: vCPU of each node type.
    """
    if layout.terms.fixed_vcpu:
        return
    for place, function in enumerate((layout.gateway, *layout.shards)):
        if function.disk is not None:
            continue
        for count in _counts(layout, function, sizes):
            vcpu = vcpu_each(function.load, count, layout.terms)
            other = replace(function, replicas=count, vcpu=vcpu)
            if place == 0:
                yield Layout(layout.demand, layout.terms, other, layout.shards)
            else:
                shards = (*layout.shards[: place - 1], other, *layout.shards[place:])
                yield Layout(layout.demand, layout.terms, layout.gateway, shards)


def _counts(layout: Layout, function: PlannedFunction, sizes: Sequence[float]) -> list[int]:
    """Numbers of replicas that fill nodes, other than the function's own."""
    need = function.load / layout.terms.utilisation
    least = layout.demand.min_replicas
    counts = {
        max(least, math.ceil(need * part / size * (1 - ROUNDING)))
        for size in sizes
        for part in PARTS
    }
    return sorted(counts - {function.replicas})
