"""The merged order: all rows of all tables by accesses per byte, coldest first.

Replicating a row r times costs r times its bytes, and a shard of r replicas carries a bounded
load; so of two rows the one with more load per byte belongs where there are more replicas.
Rows of one table keep their rank order (curves are concave), so a run of the merged order is one
contiguous `RankRange` per table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.curves import TableLoad
from erless.specs.plan import Precision

__all__ = ["MergedOrder"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class MergedOrder:
    """Segments (bins of tables), coldest first.

    `load` and `size` are cumulative and start at 0: seconds of one vCPU per query, stored bytes.
    """

    table: Ints
    start: Ints
    stop: Ints
    load: Floats
    size: Floats
    table_rows: Ints
    resident_load_ratio: float  # smallest over tables: β resident ÷ β shard
    resident_size_ratio: float

    @classmethod
    def of(
        cls,
        tables: Sequence[TableLoad],
        terms: CostTerms,
        precision: Precision,
        resident: Precision,
    ) -> MergedOrder:
        """Sort all bins by load per byte. O(n log n) in the number of bins."""
        curves = [traffic.curve for traffic in tables]
        counts = [len(curve.ranks) - 1 for curve in curves]
        table = np.repeat(np.arange(len(tables)), counts)
        start = np.concatenate([curve.ranks[:-1] for curve in curves])
        stop = np.concatenate([curve.ranks[1:] for curve in curves])
        row_size = np.array([_stored(traffic, terms, precision) for traffic in tables])
        beta = np.array([terms.beta_for(traffic, precision) for traffic in tables])
        gathers = np.concatenate(
            [np.diff(traffic.curve.share) * traffic.gathers for traffic in tables]
        )
        load = np.maximum(gathers, 0.0) * beta[table]
        size = (stop - start) * row_size[table]
        # noise of summed shares must not put a hotter rank of a table below a colder one
        ends = np.cumsum(counts)
        heat = np.concatenate(
            [np.minimum.accumulate(part) for part in np.split(load / size, ends[:-1])]
        )
        order = np.lexsort((table, -start, heat))
        above = np.array([terms.beta_for(traffic, resident) for traffic in tables])
        wider = np.array([traffic.row_bytes(resident) for traffic in tables])
        return cls(
            table[order],
            start[order],
            stop[order],
            np.concatenate([[0.0], np.cumsum(load[order])]),
            np.concatenate([[0.0], np.cumsum(size[order])]),
            np.array([traffic.rows for traffic in tables], np.int64),
            float((above / beta).min()),
            float((wider / row_size).min()),
        )

    @property
    def total_load(self) -> float:
        """Seconds of one vCPU per query for all gathers."""
        return float(self.load[-1])

    @property
    def total_size(self) -> float:
        """Bytes of one copy of all rows."""
        return float(self.size[-1])

    def size_at(self, load: Floats | float) -> Floats:
        """H: the most bytes that can be served with `load`; concave, rows taken as divisible."""
        keep = np.searchsorted(self.load, self.load[-1] * 1e-18, side="right") - 1
        return np.asarray(np.interp(load, self.load[keep:], self.size[keep:]), np.float64)

    def load_at(self, size: Floats | float) -> Floats:
        """The least load of the coldest `size` bytes (inverse of H)."""
        return np.asarray(np.interp(size, self.size, self.load), np.float64)

    def cut(self, load: float) -> Ints:
        """First rank per table of the coldest whole rows whose load is at most `load`."""
        ranks = self.table_rows.copy()
        segment = int(np.searchsorted(self.load, load * (1 + 1e-12), side="right")) - 1
        ranks[self.table[:segment]] = self.start[:segment]  # later (hotter) segments win
        if segment < len(self.table):
            rows = int(self.stop[segment] - self.start[segment])
            row_load = (self.load[segment + 1] - self.load[segment]) / rows
            rows_taken = (
                int((load - self.load[segment]) / row_load + 1e-9) if row_load > 0 else rows
            )
            ranks[self.table[segment]] = self.stop[segment] - max(0, min(rows, rows_taken))
        return ranks


def _stored(table: TableLoad, terms: CostTerms, precision: Precision) -> float:
    return table.row_bytes(precision) + terms.index_bytes_per_row
