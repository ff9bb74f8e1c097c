"""Layouts cut to fill nodes: where one copy of the rows decides the price, not the traffic.

The tables stand in a row, each from its coldest rank to its hottest, and are cut wherever a node of
some type is full; so at most one table is cut at each border and the gateway's routing stays
small. A heuristic: nothing is promised of these layouts, they are candidates beside the others.
"""

from __future__ import annotations

from collections.abc import Sequence

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.layout import Demand, Layout, Slice
from erless.plan.nodes.prices import InstanceType
from erless.specs.plan import Precision

__all__ = ["node_shaped"]

MOST_NODES = 12  # of one type for one copy of the rows
WHY = "node: one more row would not fit on the node"


def node_shaped(
    demand: Demand,
    terms: CostTerms,
    types: Sequence[InstanceType],
    precision: Precision,
    resident: Precision,
    max_shard_bytes: float,
) -> list[Layout]:
    """For each node size below the model's: shards that fill such nodes, the rest as one more.

    The gateway stands beside the first shard, beside the last, or holds the last rows itself.
    """
    stored = [table.row_bytes(precision) + terms.index_bytes_per_row for table in demand.tables]
    whole = sum(
        table.rows * row_bytes for table, row_bytes in zip(demand.tables, stored, strict=True)
    )
    routing = terms.routing_bytes(2, False) * max(table.rows for table in demand.tables)
    sizes = {min(kind.usable_bytes, max_shard_bytes) for kind in types}
    layouts = []
    for size in sorted(size for size in sizes if whole / MOST_NODES < size < whole):
        room = size - terms.shard_memory_bytes
        if room < max(stored):
            continue
        borders = int(whole / room) + 1
        beside = terms.gateway_memory_bytes + routing * borders
        for first in (max(0.0, room - beside), room):
            chunks = _chunks(demand, stored, first, room)
            layouts.append(_layout(demand, terms, chunks, [], precision, resident))
        layouts.append(_layout(demand, terms, chunks[:-1], chunks[-1], precision, resident))
    return layouts


def _layout(
    demand: Demand,
    terms: CostTerms,
    chunks: list[list[Slice]],
    inside: list[Slice],
    precision: Precision,
    resident: Precision,
) -> Layout:
    heat = [
        sum(demand.tables[p.table].gathers_between(p.start, p.stop) for p in chunk)
        / sum(p.stop - p.start for p in chunk)
        for chunk in chunks
    ]
    order = sorted(range(len(chunks)), key=lambda index: -heat[index])
    return Layout.of(
        demand,
        terms,
        [chunks[index] for index in order],
        inside,
        precision,
        resident,
        [WHY] * len(chunks),
    )


def _chunks(
    demand: Demand, stored: Sequence[float], first: float, room: float
) -> list[list[Slice]]:
    """Slices of at most `first`, then `room` bytes each; every row once."""
    chunks: list[list[Slice]] = [[]]
    free = first
    for number, table in enumerate(demand.tables):
        stop = table.rows
        while stop:
            fits = min(stop, int(free / stored[number]))
            if not fits:
                chunks.append([])
                free = room
                continue
            chunks[-1].append(Slice(number, stop - fits, stop))
            stop, free = stop - fits, free - fits * stored[number]
    return [chunk for chunk in chunks if chunk]
