"""How hot rows are, as a chart: the share of accesses that a table's hottest rows take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.pages.charts import Axis, ChartLine, line_chart

__all__ = ["HotnessCurve", "access_chart", "hotness_curve"]

POINTS = 160
COLOURS = 8
ALIKE = 0.01  # of the height: less than a line is broad


@dataclass(frozen=True)
class HotnessCurve:
    """A table's hottest `ranks` rows, ascending (n,), take `share` of its accesses (n,)."""

    table: str
    ranks: NDArray[np.float64]
    share: NDArray[np.float64]

    def share_at(self, rank: float) -> float:
        """Share that the hottest `rank` rows take, between the curve's points."""
        known = np.append(0.0, self.ranks), np.append(0.0, self.share)
        return float(np.interp(rank, *known))

    def rows_for(self, share: float) -> float:
        """Rows that take `share` of the accesses, between the curve's points."""
        at = int(np.searchsorted(self.share, share - 1e-12))
        if at == 0:
            return float(self.ranks[0])
        part = (share - self.share[at - 1]) / (self.share[at] - self.share[at - 1])
        return float(self.ranks[at - 1] + part * (self.ranks[at] - self.ranks[at - 1]))


def hotness_curve(table: str, rows: int, counts: NDArray[Any]) -> HotnessCurve:
    """The curve of a table of `rows` rows, of the `counts` of those that were accessed.

    Args:
        table: its name.
        rows: of the table, those that nobody asked for among them.
        counts: accesses of each row, hottest first, (touched,); they may be mapped.
    """
    begins = np.unique(np.rint(np.geomspace(1, len(counts), POINTS)).astype(np.int64)) - 1
    sums = np.add.reduceat(counts, begins, dtype=np.int64)
    ends = np.append(begins[1:], len(counts))
    share = np.cumsum(sums) / max(1, int(sums.sum()))
    if rows > len(counts):  # rows that the log never touched
        ends, share = np.append(ends, rows), np.append(share, 1.0)
    return HotnessCurve(table, ends.astype(np.float64), share)


def access_chart(curves: Sequence[HotnessCurve], marks: Sequence[tuple[float, str]] = ()) -> str:
    """The curves, those that would hide each other once, and marks (rank, name).

    Of curves beyond the page's colours none is drawn: the first come first.
    """
    lines = [
        ChartLine(_named(names), curve.ranks, curve.share, colour)
        for colour, (curve, names) in enumerate(_told_apart(curves)[:COLOURS])
    ]
    name = f"share of accesses of {lines[0].name}" if len(lines) == 1 else "share of accesses"
    return line_chart(
        lines,
        Axis("rows, hottest first (count)", log=True),
        Axis(name, text=lambda share: f"{share:.0%}"),
        marks=marks,
    )


def _named(tables: Sequence[str]) -> str:
    """Tables of one curve, in a legend.

    >>> _named(["user", "item"]), _named(["a", "b", "c", "d"])
    ('user, item', 'a and 3 like it')
    """
    return ", ".join(tables) if len(tables) < 4 else f"{tables[0]} and {len(tables) - 1} like it"


def _told_apart(curves: Sequence[HotnessCurve]) -> list[tuple[HotnessCurve, list[str]]]:
    """Curves, each with the names of the tables whose curve nobody could tell from it."""
    groups: list[tuple[HotnessCurve, list[str]]] = []
    for curve in curves:
        for first, names in groups:
            same = np.interp(np.log(curve.ranks), np.log(first.ranks), first.share)
            if curve.ranks[-1] == first.ranks[-1] and np.abs(same - curve.share).max() < ALIKE:
                names.append(curve.table)
                break
        else:
            groups.append((curve, [curve.table]))
    return groups
