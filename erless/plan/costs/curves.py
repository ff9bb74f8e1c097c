"""Access curves: how a table's accesses spread over its ranks, as a concave piecewise-linear CDF.

A curve has breakpoints over ranks (hottest first); within a bin all rows are equally hot. The
first rows have bins of their own, later bins grow geometrically, so a curve of 20 million rows has
about 1,700 bins and differs from the closed form by less than 1e-6 of the accesses.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.workload import PowerLaw
from erless.specs.model import TableSpec
from erless.specs.plan import Precision

__all__ = ["AccessCurve", "TableLoad", "breakpoint_ratio", "partial_vectors"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RATIO = 1.01  # neighbouring breakpoints; the chord then lies ≤ RATIO-dependent 1e-6 under F
MANY_CURVES, MANY_RATIO = 200, 1.05  # from so many on coarser ones keep planning within its time
MOST_POINTS = 600_000  # of all curves together: planning time and memory grow with them


def breakpoint_ratio(rows: Sequence[int]) -> float:
    """The ratio of neighbouring breakpoints for tables of so many rows: no finer than they need.

    >>> breakpoint_ratio([1000, 2000]), round(breakpoint_ratio([10**6] * 10**4), 2)
    (1.01, 1.26)
    """
    least = RATIO if len(rows) < MANY_CURVES else MANY_RATIO
    return max(least, math.exp(sum(math.log(number) for number in rows) / MOST_POINTS))


def breakpoints(rows: int, ratio: float = RATIO) -> Ints:
    """Ranks 0, 1, 2, … and then geometrically up to `rows`."""
    steps = int(np.ceil(np.log(max(rows, 2)) / np.log(ratio))) + 1
    ranks = np.rint(np.geomspace(1, rows, steps)).astype(np.int64)
    return np.unique(np.concatenate([np.array([0, rows], np.int64), ranks]))


@dataclass(frozen=True)
class AccessCurve:
    """F(x) over breakpoints.

    Args:
        ranks: (n+1,) int64, 0 … rows.
        share: (n+1,) float64, F at `ranks`: 0 … 1, concave; all zero for a table never accessed.
    """

    ranks: Ints
    share: Floats

    @classmethod
    def power_law(cls, rows: int, locality: float, ratio: float = RATIO) -> AccessCurve:
        """The closed form F(x) = (x/rows)^α on breakpoints (`PowerLaw`)."""
        ranks = breakpoints(rows, ratio)
        return cls(ranks, PowerLaw(rows, locality).cdf(ranks.astype(np.float64)))

    @classmethod
    def cold(cls, rows: int) -> AccessCurve:
        """A table that the log never touched."""
        return cls(np.array([0, rows], np.int64), np.zeros(2))

    @classmethod
    def from_counts(cls, counts: NDArray[np.int64], rows: int, ratio: float = RATIO) -> AccessCurve:
        """The curve of measured `counts` (hottest first, int64), the rest of `rows` not in the log.

        A log has only part of the traffic: rows that are not in it get the Good-Turing mass (Good
        1953: the share of accesses that went to rows accessed once), at most a once-accessed row's
        rate.
        """
        logged = len(counts)
        if logged == 0 or int(counts[0]) == 0:
            return cls.cold(rows)
        marks = breakpoints(logged, ratio)
        sums = np.add.reduceat(counts, marks[:-1]).astype(np.float64)
        once = logged - int(np.searchsorted(-counts, -1, side="left"))
        return cls._measured(marks, sums, once, rows)

    @classmethod
    def from_histogram(
        cls, values: NDArray[np.int64], having: NDArray[np.int64], rows: int, ratio: float = RATIO
    ) -> AccessCurve:
        """The curve of `from_counts`, where only how many rows have each count is known: the same.

        Rows of one count are equally hot, so between two counts the sum of accesses is linear.

        Args:
            values: (v,) distinct counts above zero, descending.
            having: (v,) how many rows have that count.
            rows: of the table.
            ratio: of neighbouring breakpoints.

        >>> AccessCurve.from_histogram(np.array([6, 2]), np.array([1, 2]), 3).share.tolist()
        [0.0, 0.6, 0.8, 1.0]
        """
        if not len(values):
            return cls.cold(rows)
        ends = np.cumsum(having)
        marks = breakpoints(int(ends[-1]), ratio)
        place = np.searchsorted(ends, marks, side="left")  # of the count that a mark falls into
        before = np.concatenate([[0], np.cumsum(values * having)])
        begins = np.concatenate([[0], ends])
        reached = (
            before[place] + (marks - begins[place]) * values[np.minimum(place, len(values) - 1)]
        )
        once = int(having[-1]) if int(values[-1]) == 1 else 0
        return cls._measured(marks, np.diff(reached).astype(np.float64), once, rows)

    @classmethod
    def _measured(cls, marks: Ints, sums: Floats, once: int, rows: int) -> AccessCurve:
        """From accesses between `marks`, of which `once` rows had one."""
        total = float(sums.sum())
        not_logged = rows - int(marks[-1])
        if not_logged <= 0:
            share = np.concatenate([[0.0], np.cumsum(sums)]) / total
            return cls(marks, share)
        missing = min(once / total, not_logged / (total + not_logged))
        logged_share = np.concatenate([[0.0], np.cumsum(sums)]) / total * (1 - missing)
        return cls(np.append(marks, rows), np.append(logged_share, 1.0))

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return int(self.ranks[-1])

    @property
    def most_under(self) -> float:
        """How far below the counts' own share `cdf` may lie at most, between two breakpoints.

        The counts fall, so what they add up to lies below its neighbouring chords prolonged: for
        slopes a ≥ b ≥ c of three bins, the middle one w wide, w·(a - b)·(b - c) / (a - c) above b.
        """
        width = np.diff(self.ranks).astype(np.float64)
        slope = np.minimum.accumulate(np.diff(self.share) / width)  # but for rounding they fall
        falls = -np.diff(slope, append=0.0)
        before = np.concatenate([[np.inf], falls[:-1]])  # what comes before the first is not known
        with np.errstate(all="ignore"):
            above = falls / (1.0 + falls / before)
        return float(np.where((width > 1) & (falls > 0), width * above, 0.0).max(initial=0.0))

    def cdf(self, ranks: Floats | Ints | float) -> Floats:
        """Share of accesses that the hottest `ranks` rows take."""
        return np.asarray(np.interp(ranks, self.ranks, self.share), np.float64)

    @cached_property
    def _points(self) -> tuple[list[int], list[float]]:
        return self.ranks.tolist(), self.share.tolist()

    def at(self, rank: int) -> float:
        """F(rank) for one whole rank: equal to `cdf`, without an array's overhead."""
        ranks, share = self._points
        right = bisect_left(ranks, rank)
        if ranks[right] == rank:
            return share[right]
        width, rise = ranks[right] - ranks[right - 1], share[right] - share[right - 1]
        return share[right - 1] + rise * (rank - ranks[right - 1]) / width

    def touched(self, accesses: float, start: int = 0, stop: int | None = None) -> float:
        """Expected distinct rows among ranks start … stop-1 that `accesses` draws touch.

        Σ over rows 1 - (1-p)^accesses, p the row's share.
        """
        end = self.rows if stop is None else stop
        edges = np.clip(self.ranks, start, end)
        rows = np.diff(edges).astype(np.float64)
        width = np.diff(self.ranks).astype(np.float64)
        chance = np.clip(np.diff(self.share) / width, 0.0, 1.0 - 1e-15)
        return float((rows * -np.expm1(accesses * np.log1p(-chance))).sum())


@dataclass(frozen=True)
class TableLoad:
    """One table with its traffic.

    Args:
        gathers: rows read per query (batch × pooling factor).
        bags: vectors that a sample wants of it: one for each feature that pools, infinite where
            each row read is a vector of its own.
        floor: least exact precision that its rows may have, whatever the function's.
    """

    spec: TableSpec
    gathers: float
    curve: AccessCurve
    bags: float = 1.0
    floor: Precision = Precision.INT4

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return self.spec.rows

    def kept(self, precision: Precision) -> Precision:
        """How its rows are stored in a function of this precision."""
        return precision.at_least(self.floor)

    def row_bytes(self, precision: Precision) -> int:
        """Bytes of one of its rows in a function of this precision."""
        return self.kept(precision).row_bytes(self.spec.dim)

    def gathers_between(self, start: int, stop: int) -> float:
        """Gathers per query that fall on ranks start … stop-1."""
        return self.gathers * max(0.0, self.curve.at(stop) - self.curve.at(start))

    def between(self, start: int, stop: int) -> TableLoad:
        """Ranks start … stop-1 as a table of their own."""
        marks = self.curve.ranks
        ranks = np.concatenate([[start], marks[(marks > start) & (marks < stop)], [stop]])
        share = self.curve.cdf(ranks) - self.curve.cdf(start)
        if share[-1] > 0:
            share = share / share[-1]
        spec = self.spec.model_copy(update={"rows": stop - start})
        curve = AccessCurve(ranks.astype(np.int64) - start, share)
        return TableLoad(spec, self.gathers_between(start, stop), curve, self.bags, self.floor)


def partial_vectors(gathered: Floats, bags: float) -> Floats:
    """Vectors that a shard sends back for `gathered` rows per query, strewn over `bags` bags.

    A bag without a row sends none: bags·(1 - exp(-gathered / bags)), which tends to `gathered`.

    >>> partial_vectors(np.array([2.0]), np.inf)
    array([2.])
    """
    if np.isinf(bags):
        return gathered
    vectors: Floats = -bags * np.expm1(-gathered / bags)
    return vectors
