"""The same functions with a border elsewhere: rows move to the colder or the hotter neighbour.

Runs are cut at the points of a grid (`search/cut_path.py`), so a shard is seldom full to its last
row, and what is left over on whole nodes is not known there. So what is nearly the cheapest is cut
anew: for memory each shard is filled while that needs no further replica, for dollars one border
at a time is moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from erless.plan.costs.contents import contents_of
from erless.plan.costs.cost import replicas
from erless.plan.costs.layout import Layout, PlannedFunction, Role, cover
from erless.plan.search.merged_order import MergedOrder
from erless.specs.plan import Precision

__all__ = ["filled", "other_borders"]

Ints = NDArray[np.int64]
HALVINGS = 30  # of the load between two borders, for the last row that fits
PARTS = (1.0, 0.5, 0.25, 0.1, 0.04)  # of a function's load that moves to its neighbour
MOST_TABLES = 64  # of which single ones move


def filled(layout: Layout) -> Layout:
    """Each shard, the coldest first, with all rows that its replicas have vCPU for."""
    chain = _Chain.of(layout)
    if chain is None:
        return layout
    cuts = list(chain.cuts)
    for border, shard in enumerate(reversed(layout.shards), 1):
        cuts[border] = chain.full(shard, cuts[border - 1], cuts[border], cuts[border + 1])
    return chain.layout(cuts)


def other_borders(layout: Layout) -> Iterator[Layout]:
    """Layouts that differ in one border: rows of all tables, or of one, in the next function."""
    chain = _Chain.of(layout)
    if chain is None:
        return
    for border in range(1, len(chain.cuts) - 1):
        for cut in chain.places(border):
            yield chain.layout([*chain.cuts[:border], cut, *chain.cuts[border + 1 :]])


@dataclass(frozen=True)
class _Chain:
    """A layout whose functions hold runs of each table's ranks, one after another.

    Args:
        old: the layout.
        cuts: (T,) each, from all rows to none: the shard of run i holds cuts[i+1] … cuts[i]-1, the
            gateway the last one.
    """

    old: Layout
    cuts: Sequence[Ints]

    @classmethod
    def of(cls, layout: Layout) -> _Chain | None:
        """None where there are no such runs, or where rows lie on disks or are frozen."""
        plain = all(shard.role is Role.SHARD and not shard.disk for shard in layout.shards)
        if not layout.shards or not plain:
            return None
        rows = np.array([table.rows for table in layout.demand.tables], np.int64)
        cuts = [rows]
        for function in (*reversed(layout.shards), layout.gateway):
            cut = cuts[-1].copy()
            for part in function.slices:
                if part.stop != cut[part.table]:
                    return None
                cut[part.table] = part.start
            cuts.append(cut)
        return None if cuts[-1].any() else cls(layout, cuts)

    @property
    def _kind(self) -> Precision:
        """Of the rows in shards; where theirs differ, of the hottest."""
        return self.old.shards[0].precision

    @cached_property
    def order(self) -> MergedOrder:
        """All rows, by their heat in shards."""
        old = self.old
        return MergedOrder.of(old.demand.tables, old.terms, self._kind, old.gateway.precision)

    def layout(self, cuts: Sequence[Ints]) -> Layout:
        """The same functions, cut there."""
        old = self.old
        *shards, inside = cover(cuts)
        return Layout.of(
            old.demand,
            old.terms,
            shards[::-1],
            inside,
            resident_precision=old.gateway.precision,
            why=[shard.why for shard in old.shards],
            precisions=[shard.precision for shard in old.shards],
        )

    def full(self, shard: PlannedFunction, colder: Ints, cut: Ints, hotter: Ints) -> Ints:
        """The cut down to which `shard` has rows that need no further replica."""
        demand, terms = self.old.demand, self.old.terms
        low, high = self._seconds(cut), self._seconds(hotter)
        best = np.minimum(cut, colder)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            tried = np.clip(self.order.cut(middle), hotter, best)
            rows = cover([colder, tried])[0]
            held = contents_of(demand, terms, rows, shard.precision)
            seconds = terms.call_s + held.seconds + terms.partial_s * held.partials
            if replicas(demand.qps * seconds, terms, demand.min_replicas) > shard.replicas:
                high = middle
            else:
                low, best = middle, tried
        return best

    def places(self, border: int) -> Iterator[Ints]:
        """Other cuts between the two neighbours of a border."""
        colder, cut, hotter = self.cuts[border - 1 : border + 2]
        load = self._seconds(cut)
        for end in (self._seconds(colder), self._seconds(hotter)):
            for part in PARTS:
                yield np.clip(self.order.cut(load + part * (end - load)), hotter, colder)
        if len(cut) > MOST_TABLES:
            return
        seen = set()
        for number, table in enumerate(self.old.demand.tables):
            alike = (id(table.curve), table.spec.dim, table.gathers, table.bags, cut[number])
            for ranks in (colder[number], hotter[number]):
                if ranks != cut[number] and (*alike, ranks) not in seen:
                    seen.add((*alike, ranks))
                    moved = cut.copy()
                    moved[number] = ranks
                    yield moved

    def _seconds(self, cut: Ints) -> float:
        """Seconds of one vCPU per query of the ranks from `cut` on, as the order counts them."""
        demand, kind = self.old.demand, self._kind
        gathered = demand.gathers_between(cut, self.cuts[0])
        beta = [self.old.terms.beta_for(table, kind) for table in demand.tables]
        return float(np.dot(gathered, beta))
