"""All tables of a model at once: what a layout takes of each, as arrays.

A layout of 10^4 tables has as many slices in each of its functions, and a plan weighs hundreds of
layouts. Slice by slice in Python that is minutes and gigabytes; as arrays it is seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.curves import TableLoad
from erless.plan.costs.planned import Slice
from erless.specs.plan import Precision

__all__ = ["MANY_TABLES", "AllTables", "Slices"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MANY_TABLES = 256  # from here on arrays are quicker than numbers alone


class Slices(Sequence[Slice]):
    """Slices in three arrays, (n,) int64 each: a fifth of the bytes of as many `Slice`."""

    __slots__ = ("start", "stop", "table")

    def __init__(self, table: Ints, start: Ints, stop: Ints) -> None:
        self.table, self.start, self.stop = table, start, stop

    @classmethod
    def of(cls, slices: Sequence[Slice]) -> Slices:
        """These slices, in their order, but those without rows."""
        if not isinstance(slices, Slices):
            numbers = ((part.table, part.start, part.stop) for part in slices)
            flat = np.fromiter(numbers, np.dtype((np.int64, 3)), len(slices))
            slices = cls(*np.ascontiguousarray(flat.T))
        held = slices.stop > slices.start
        if held.all():
            return slices
        return cls(slices.table[held], slices.start[held], slices.stop[held])

    @classmethod
    def between(cls, below: Ints, above: Ints) -> Slices:
        """Of each table the ranks from `below` on and before `above`, (T,) each."""
        table = np.flatnonzero(above > below)
        return cls(table, below[table], above[table])

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> Slice: ...
    @overload
    def __getitem__(self, index: slice) -> Slices: ...
    def __getitem__(self, index: int | slice) -> Slice | Slices:
        if isinstance(index, slice):
            return Slices(self.table[index], self.start[index], self.stop[index])
        return Slice(int(self.table[index]), int(self.start[index]), int(self.stop[index]))

    def __iter__(self) -> Iterator[Slice]:
        parts = (self.table.tolist(), self.start.tolist(), self.stop.tolist())
        return map(Slice, *parts)


@dataclass(frozen=True)
class AllTables:
    """The tables of one demand, end to end."""

    tables: Sequence[TableLoad]

    @cached_property
    def rows(self) -> Ints:
        """(T,) rows of each."""
        return np.array([table.rows for table in self.tables], np.int64)

    @cached_property
    def _gathers(self) -> Floats:
        return np.array([table.gathers for table in self.tables])

    @cached_property
    def _bags(self) -> Floats:
        return np.array([table.bags for table in self.tables])

    @cached_property
    def _kinds(self) -> tuple[list[TableLoad], Ints]:
        """A table of each width and floor, and for each table which of them it is like."""
        numbers: dict[tuple[int, Precision], int] = {}
        alike: list[TableLoad] = []
        kinds = np.empty(len(self.tables), np.int64)
        for place, table in enumerate(self.tables):
            kind = (table.spec.dim, table.floor)
            if kind not in numbers:
                numbers[kind] = len(alike)
                alike.append(table)
            kinds[place] = numbers[kind]
        return alike, kinds

    @cached_property
    def _points(self) -> tuple[Ints, Floats, Ints, Ints]:
        """All curves' ranks and shares; these ranks so that they rise from table to table too,
        and what each table's are raised by.
        """
        curves = [table.curve for table in self.tables]
        base = np.concatenate([[0], np.cumsum(self.rows[:-1] + 1)])
        ranks = np.concatenate([curve.ranks for curve in curves])
        share = np.concatenate([curve.share for curve in curves])
        raised = ranks + np.repeat(base, [len(curve.ranks) for curve in curves])
        return ranks, share, raised, base

    def row_bytes(self, precision: Precision) -> Floats:
        """(T,) bytes of a row in a function of this precision."""
        alike, kinds = self._kinds
        return np.array([table.row_bytes(precision) for table in alike], np.float64)[kinds]

    def beta(self, terms: CostTerms, precision: Precision) -> Floats:
        """(T,) seconds per gather in a function of this precision."""
        alike, kinds = self._kinds
        return np.array([terms.beta_for(table, precision) for table in alike])[kinds]

    def share(self, table: Ints, rank: Ints) -> Floats:
        """F of each table, given by number, at its rank: equal to `AccessCurve.at`."""
        ranks, share, raised, base = self._points
        right = np.searchsorted(raised, base[table] + rank)
        left = np.maximum(right - 1, 0)
        exact = ranks[right] == rank
        width = np.where(exact, 1, ranks[right] - ranks[left])
        between = share[left] + (share[right] - share[left]) * (rank - ranks[left]) / width
        return np.asarray(np.where(exact, share[right], between), np.float64)

    def gathers(self, slices: Slices) -> Floats:
        """(n,) gathers per query of each slice."""
        begin, end = (self.share(slices.table, rank) for rank in (slices.start, slices.stop))
        return np.asarray(self._gathers[slices.table] * np.maximum(0.0, end - begin), np.float64)

    def partials(self, slices: Slices, gathered: Floats, batch: int) -> Floats:
        """(n,) vectors per query of slices with so many gathers: see `partial_vectors`."""
        bags = self._bags[slices.table] * batch
        pooled = np.isfinite(bags)
        vectors = gathered.copy()
        vectors[pooled] = -bags[pooled] * np.expm1(-gathered[pooled] / bags[pooled])
        return vectors
