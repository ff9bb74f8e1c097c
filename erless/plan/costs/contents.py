"""What a function holds of a demand's tables: gathers, rows, bytes, partial vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.demand import Demand
from erless.plan.costs.many_tables import AllTables, Slices
from erless.plan.costs.planned import PlannedFunction, Slice
from erless.specs.plan import Precision

__all__ = ["Contents", "contents_of", "routing_bytes"]


class Contents(NamedTuple):
    """What a function holds: gathers per query, rows, their bytes, seconds of gathering, partials.

    Partials are vectors per query: of each slice, the bags that are likely to gather from it.
    """

    gathers: float
    rows: int
    row_bytes: float
    seconds: float
    partials: float


def contents_of(
    demand: Demand, terms: CostTerms, slices: Sequence[Slice], precision: Precision
) -> Contents:
    """Sum up `slices` of the demand's tables, their rows at this precision."""
    if demand.many is not None:
        return _of_many(demand, demand.many, terms, Slices.of(slices), precision)
    rows = 0
    gathers = row_bytes = seconds = partials = 0.0
    widths: dict[tuple[int, Precision], tuple[int, float]] = {}
    for part in slices:
        table = demand.tables[part.table]
        dim, floor = table.spec.dim, table.floor
        if (dim, floor) not in widths:
            widths[dim, floor] = table.row_bytes(precision), terms.beta_for(table, precision)
        width, beta = widths[dim, floor]
        gathered = table.gathers_between(part.start, part.stop)
        gathers += gathered
        rows += part.stop - part.start
        row_bytes += (part.stop - part.start) * width
        seconds += gathered * beta
        bags = table.bags * demand.batch  # see partial_vectors; numbers alone are quicker in math
        partials += gathered if math.isinf(bags) else -bags * math.expm1(-gathered / bags)
    return Contents(gathers, rows, row_bytes, seconds, partials)


def _of_many(
    demand: Demand, many: AllTables, terms: CostTerms, slices: Slices, precision: Precision
) -> Contents:
    """The same in arrays."""
    rows = slices.stop - slices.start
    gathered = many.gathers(slices)
    return Contents(
        float(gathered.sum()),
        int(rows.sum()),
        float(rows @ many.row_bytes(precision)[slices.table]),
        float(gathered @ many.beta(terms, precision)[slices.table]),
        float(many.partials(slices, gathered, demand.batch).sum()),
    )


def routing_bytes(
    demand: Demand,
    terms: CostTerms,
    resident: Sequence[Slice],
    shards: Sequence[PlannedFunction],
) -> float:
    """Bytes in each gateway to tell where the rows of cut tables are."""
    if not terms.routing:
        return 0.0
    if demand.many is not None:
        count = len(demand.tables)
        remote_of = np.zeros(count, np.int64)
        for shard in shards:
            remote_of[np.unique(Slices.of(shard.slices).table)] += 1
        home = np.bincount(Slices.of(resident).table, minlength=count) > 0
        numbers = range(int(remote_of.max()) + 1)
        each = np.array(
            [[terms.routing_bytes(n, inside) for n in numbers] for inside in (False, True)]
        )
        return float(demand.many.rows @ each[home.astype(np.int64), remote_of])
    remote = [0] * len(demand.tables)
    for shard in shards:
        for number in {part.table for part in shard.slices}:
            remote[number] += 1
    at_home = {part.table for part in resident}
    return sum(
        table.rows * terms.routing_bytes(holders, number in at_home)
        for number, (table, holders) in enumerate(zip(demand.tables, remote, strict=True))
    )
