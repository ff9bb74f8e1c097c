"""A path of cut vectors from all rows to none, with what every run between two of them takes.

`frontier` knows a function's calls and gathers; a path knows its partial vectors too, because they
depend on both ends of a run. It is a grid, so what is best on it is best among its points only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.curves import partial_vectors
from erless.plan.costs.layout import Demand
from erless.plan.search.merged_order import MergedOrder
from erless.specs.plan import Precision

__all__ = ["MOST_TABLE_POINTS", "CutPath", "merged_path", "table_path"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MOST_CELLS = 1_000_000  # of the array of partial vectors: pairs of points times tables
MOST_POINTS, FEWEST_POINTS = 120, 40
MOST_TABLE_POINTS = 256  # of whole tables, one by one up to here: else several between two points


@dataclass(frozen=True)
class CutPath:
    """Points p = 0 … P-1: a shard of run (i, j) holds ranks cuts[j] … cuts[i]-1 of each table.

    Args:
        cuts: (P, T) int64, falling from all rows.
        precision: of the rows in shards.
        resident: precision of the rows below a cut, which the gateway holds.
        load: (P,) seconds of one vCPU per query to gather the ranks from a cut on.
        size: (P,) their bytes in shards, with their index.
        gathers: (P,) gathers per query of them.
        partials: (P, P) vectors that a run sends back per query; 0 where i ≥ j.
        resident_load: (P,) seconds to gather the ranks below a cut in the gateway.
        resident_size: (P,) their bytes there.
        whole_tables: no two shards hold rows of one table.
    """

    cuts: Ints
    precision: Precision
    resident: Precision
    load: Floats
    size: Floats
    gathers: Floats
    partials: Floats
    resident_load: Floats
    resident_size: Floats
    whole_tables: bool = False

    @classmethod
    def of(
        cls,
        demand: Demand,
        terms: CostTerms,
        cuts: Ints,
        precision: Precision,
        resident: Precision,
        whole_tables: bool = False,
    ) -> CutPath:
        """The path through `cuts`."""
        tables = demand.tables
        curves: dict[tuple[int, bytes], Floats] = {}
        gathered = np.empty(cuts.shape)
        for number, table in enumerate(tables):
            column = cuts[:, number]
            same = (id(table.curve), column.tobytes())
            if same not in curves:
                curves[same] = 1.0 - table.curve.cdf(column) if table.gathers else np.zeros(1)
            gathered[:, number] = table.gathers * curves[same]
        whole = np.array([table.gathers for table in tables])
        rows = np.array([table.rows for table in tables])

        def each(kind: Precision) -> tuple[Floats, Floats]:
            return (
                np.array([terms.beta_for(table, kind) for table in tables]),
                np.array([table.row_bytes(kind) for table in tables], np.float64),
            )

        beta, width = each(precision)
        resident_beta, resident_width = each(resident)
        bags = demand.batch * np.array([table.bags for table in tables])
        sent = _whole_partials if whole_tables else _partials
        return cls(
            cuts,
            precision,
            resident,
            gathered @ beta,
            (rows - cuts) @ (width + terms.index_bytes_per_row),
            gathered.sum(axis=1),
            sent(gathered, bags),
            (whole - gathered) @ resident_beta,
            cuts @ resident_width,
            whole_tables,
        )


def _partials(gathered: Floats, bags: Floats) -> Floats:
    """Σ over tables of `partial_vectors` of the run's gathers, for runs (i, j) with i < j.

    Args:
        gathered: (P, T) gathers per query up to each point.
        bags: (T,) bags per query.
    """
    points, _ = gathered.shape
    columns, counts = np.unique(np.vstack([gathered, bags]), axis=1, return_counts=True)
    sent = np.zeros((points, points))
    for column, own, count in zip(columns[:-1].T, columns[-1], counts, strict=True):
        between = np.maximum(column[None, :] - column[:, None], 0.0)
        sent += count * partial_vectors(between, own)
    return np.triu(sent, 1)


def _whole_partials(gathered: Floats, bags: Floats) -> Floats:
    """The same where a run has all that a table has outside the gateway, or nothing: by sums."""
    points, _ = gathered.shape
    upto = np.zeros(points)
    for own in np.unique(bags):
        upto += partial_vectors(gathered[:, bags == own], float(own)).sum(axis=1)
    return np.triu(upto[None, :] - upto[:, None], 1)


def merged_path(
    demand: Demand,
    terms: CostTerms,
    order: MergedOrder,
    precision: Precision,
    resident: Precision,
) -> CutPath:
    """Along the merged order: points spaced evenly by load, and by bytes from the hot end."""
    different = len({(id(table.curve), table.spec.dim, table.bags) for table in demand.tables})
    points = int(np.sqrt(MOST_CELLS / different))
    points = max(FEWEST_POINTS, min(MOST_POINTS, points))
    even = np.linspace(0.0, order.total_load, points // 2)
    hottest = order.total_size * np.geomspace(1e-6, 1.0, points // 2)
    by_size = order.load_at(order.total_size - hottest)
    loads = np.unique(np.concatenate([even, by_size]))
    cuts = [order.table_rows, *(order.cut(float(load)) for load in loads[1:-1])]
    return CutPath.of(
        demand, terms, _falling([*cuts, np.zeros_like(order.table_rows)]), precision, resident
    )


def table_path(
    demand: Demand,
    terms: CostTerms,
    inside: Ints,
    precision: Precision,
    resident: Precision,
) -> CutPath:
    """Whole tables, coldest first: from each table's rows to its cut `inside`, one after another.

    A run then holds all rows outside the gateway of its tables, so a bag comes back as one vector.
    """
    rows = np.array([table.rows for table in demand.tables], np.int64)
    gathered = demand.gathers_between(inside, rows)
    load = np.array(
        [
            gathers * terms.beta_for(table, precision)
            for table, gathers in zip(demand.tables, gathered, strict=True)
        ]
    )
    width = np.array([table.row_bytes(precision) for table in demand.tables], np.float64)
    size = (rows - inside) * width
    coldest = np.argsort(load / np.maximum(1.0, size), kind="stable")
    cuts, now, before = [rows], rows, 0
    for end in _table_points(load[coldest], size[coldest]):
        now = now.copy()
        now[coldest[before:end]] = inside[coldest[before:end]]
        cuts.append(now)
        before = end
    return CutPath.of(demand, terms, _falling(cuts), precision, resident, whole_tables=True)


def _table_points(load: Floats, size: Floats) -> list[int]:
    """After how many tables a path has its points: after each, or evenly by load and by bytes."""
    count = len(load)
    if count < MOST_TABLE_POINTS:
        return list(range(1, count + 1))
    step = np.linspace(0.0, 1.0, MOST_TABLE_POINTS // 2)[1:]
    hottest = 1.0 - np.geomspace(1e-6, 1.0, MOST_TABLE_POINTS // 2)
    ends = [np.array([count])]
    for taken, shares in ((np.cumsum(load), step), (np.cumsum(size), hottest)):
        ends.append(np.searchsorted(taken, shares * taken[-1]) + 1)
    points = np.unique(np.minimum(np.concatenate(ends), count))
    return [int(point) for point in points]


def _falling(cuts: Sequence[Ints]) -> Ints:
    """The cut vectors without repetitions, each at most the one before it."""
    array = np.minimum.accumulate(np.array(cuts), axis=0)
    changed = np.any(np.diff(array, axis=0) != 0, axis=1)
    return np.asarray(array[np.concatenate([[True], changed])], np.int64)
