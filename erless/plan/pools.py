"""Pools: for each policy the layouts of which the best is taken, at every container size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.layout import Demand, Layout
from erless.plan.nodes.prices import Prices
from erless.plan.policies.baselines import model_wise, one_remote, table_wise
from erless.plan.policies.demanded import demanded_layouts
from erless.plan.policies.elasticrec import elasticrec
from erless.plan.policies.joint import joint_layouts
from erless.plan.policies.node_sized import node_shaped
from erless.plan.policies.run_layouts import MEMORY, hull_prices, paths, run_layouts
from erless.plan.request import PlanRequest, Policy, StoredAs
from erless.plan.search.frontier import SearchLimits

__all__ = ["Pools"]

MANY_TABLES = 64  # beyond this many, policies try fewer container sizes
RUNS_KEPT = 6  # of each price, container size and pair of precisions


@dataclass(frozen=True)
class Pools:
    """What layouts are made for.

    Args:
        request: all knobs.
        places: the demand, once for each place of the dense tower worth trying.
        terms: what a function costs, at the largest container.
        prices: instance types.
        shard_bytes: most bytes of one shard's container.
        coarse: try every other container size only.
    """

    request: PlanRequest
    places: Sequence[Demand]
    terms: CostTerms
    prices: Prices
    shard_bytes: float
    coarse: bool = False

    def of(self, policy: Policy, per_table: int | None = None) -> list[Layout]:
        """Layouts of one policy; `per_table` cuts of each table for ElasticRec's."""
        return [
            layout for demand in self.places for layout in self._made(policy, demand, per_table)
        ]

    def demanded(self, free: Sequence[Layout]) -> list[Layout]:
        """Layouts of the demanded shape: those made for it, and those of `free` that have it."""
        pool = [
            layout
            for demand in self.places
            for terms in self._sizes
            for stored in self.request.stored
            for layout in demanded_layouts(demand, terms, self.request, stored)
        ]
        pool += [layout for layout in free if self._has_shape(layout)]
        return [layout for layout in pool if self.request.shards in (None, len(layout.shards))]

    def _has_shape(self, layout: Layout) -> bool:
        """Whether a layout that was not made for the demand meets it all the same."""
        request = self.request
        if request.freezes or request.resident_share is not None:
            return False
        room = request.max_resident_bytes
        return room is None or layout.gateway.row_bytes <= room

    @cached_property
    def _sizes(self) -> list[CostTerms]:
        """Container sizes to try: the usable vCPU of each node type."""
        most = self.terms.max_vcpu
        if self.terms.fixed_vcpu:
            return [self.terms]
        known = {kind.usable_vcpu for kind in self.prices.types} | {1.0}
        sizes = sorted({min(size, most) for size in known})
        if len(self.places[0].tables) > MANY_TABLES:
            sizes = sizes[:: max(1, len(sizes) // 3)]
        if self.coarse:
            sizes = sorted(sizes[::-2])
        return [self.terms.on(size) for size in sizes]

    def _made(self, policy: Policy, demand: Demand, per_table: int | None) -> Iterator[Layout]:
        if policy == "joint":
            yield from self._joint(demand)
            return
        for terms in self._sizes:
            if policy == "model-wise":
                yield model_wise(demand, terms)
            elif policy == "table-wise":
                yield table_wise(demand, terms)
            else:
                yield elasticrec(demand, terms, per_table)

    def _joint(self, demand: Demand) -> Iterator[Layout]:
        for terms in self._sizes:
            for kind in self.request.resident_precisions:
                yield model_wise(demand, terms, kind)
            for stored in self.request.stored:
                yield one_remote(demand, terms, stored.shards)
                if stored.resident is self.request.resident_precisions[0]:
                    yield from self._searched(demand, terms, stored)
        for stored in self.request.stored:
            yield from self._runs(demand, stored)
            if not self.terms.fixed_vcpu:
                yield from node_shaped(
                    demand, self.terms, self.prices.types, *stored, self.shard_bytes
                )

    def _searched(self, demand: Demand, terms: CostTerms, stored: StoredAs) -> Iterator[Layout]:
        """What the search for least memory finds."""
        for hot in (True,) if terms.fixed_vcpu or self.coarse else (True, False):
            found = joint_layouts(
                demand,
                terms,
                SearchLimits(self.request.max_fan_out, self.shard_bytes, resident_hot=hot),
                precision=stored.shards,
                resident_precision=stored.resident,
                shards_wanted=12 if terms.fixed_vcpu else 6,
            )
            yield from found if terms.fixed_vcpu else _least_of_each_number(found)

    def _runs(self, demand: Demand, stored: StoredAs) -> list[Layout]:
        by_memory = self.request.aim == "memory"
        return run_layouts(
            paths(demand, self.terms, *stored),
            demand,
            self._sizes,
            [MEMORY] if by_memory else hull_prices(self.prices.types),
            SearchLimits(self.request.max_fan_out, self.shard_bytes),
            RUNS_KEPT,
        )


def _least_of_each_number(layouts: Sequence[Layout]) -> list[Layout]:
    """Of the layouts with equally many shards the one of least memory."""
    chosen: dict[int, Layout] = {}
    for layout in layouts:
        known = chosen.get(len(layout.shards))
        if known is None or layout.memory < known.memory:
            chosen[len(layout.shards)] = layout
    return list(chosen.values())
