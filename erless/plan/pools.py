"""Pools: for each policy the layouts of which the best is taken, at every container size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from erless.plan.costs.cost import CostTerms
from erless.plan.costs.disk import DiskTerms
from erless.plan.costs.layout import Demand, Layout
from erless.plan.nodes.hull import MEMORY
from erless.plan.nodes.prices import Prices
from erless.plan.policies.baselines import model_wise, one_remote, table_wise
from erless.plan.policies.demanded import demanded_layouts
from erless.plan.policies.disk import disk_layouts, whole_on_disk
from erless.plan.policies.elasticrec import elasticrec
from erless.plan.policies.joint import joint_layouts
from erless.plan.policies.node_mix import mixed_nodes
from erless.plan.policies.node_sized import node_shaped
from erless.plan.policies.proposals import Proposal, having
from erless.plan.policies.run_layouts import paths, run_proposals
from erless.plan.request import PlanRequest, Policy, StoredAs
from erless.plan.search import exact
from erless.plan.search.bounds import memory_bound
from erless.plan.search.frontier import SearchLimits
from erless.specs.plan import Precision

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
        disk: what reads of a local disk cost, where rows may lie there.
    """

    request: PlanRequest
    places: Sequence[Demand]
    terms: CostTerms
    prices: Prices
    shard_bytes: float
    coarse: bool = False
    disk: DiskTerms | None = None

    def of(self, policy: Policy, per_table: int | None = None) -> list[Layout | Proposal]:
        """Layouts of one policy; `per_table` cuts of each table for ElasticRec's."""
        numbers = range(len(self.places))
        if policy == "joint":
            return [layout for place in numbers for layout in self._joint(place)]
        return [layout for place in numbers for layout in self._baseline(policy, place, per_table)]

    def demanded(self, free: Sequence[Layout | Proposal]) -> list[Layout | Proposal]:
        """Layouts of the demanded shape: those made for it, and those of `free` that have it."""
        pool: list[Layout | Proposal] = [
            Proposal(self._floor(demand, stored), partial(self._shaped, demand, stored))
            for demand in self.places
            for stored in self.request.stored
        ]
        if not self.request.freezes and self.request.resident_share is None:
            room = self.request.max_resident_bytes
            limit = math.inf if room is None else room
            pool += having(free, None, lambda layout: layout.gateway.row_bytes <= limit)
        return having(pool, self.request.shards, lambda layout: True)

    def _shaped(self, demand: Demand, stored: StoredAs) -> list[Layout]:
        """Layouts made for the demanded shape, at every container size."""
        return demanded_layouts(demand, self.sizes, self.request, stored)

    @cached_property
    def sizes(self) -> list[CostTerms]:
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

    def _baseline(
        self, policy: Policy, place: int, per_table: int | None = None
    ) -> Sequence[Layout]:
        """Layouts of a policy other than joint, made once."""
        key = (policy, place, per_table)
        if key not in self._known:
            demand = self.places[place]
            makers: dict[Policy, Callable[[CostTerms], Layout]] = {
                "table-wise": lambda terms: table_wise(demand, terms),
                "elasticrec": lambda terms: elasticrec(demand, terms, per_table),
            }
            self._known[key] = (
                list(self._model_wise(demand))
                if policy == "model-wise"
                else [makers[policy](terms) for terms in self.sizes]
            )
        return self._known[key]

    @property
    def _whole_precisions(self) -> Sequence[Precision]:
        """Of model-wise rows: the paper's are fp32."""
        if self.request.equal_containers:
            return (Precision.FP32,)
        return self.request.resident_precisions

    def _model_wise(self, demand: Demand) -> Iterator[Layout]:
        """The whole model in each replica, with the same freedoms as joint's rows."""
        for kind in self._whole_precisions:
            for terms in self.sizes:
                yield model_wise(demand, terms, kind)
            if self.disk is not None:
                for terms in self._disk_sizes:
                    yield from whole_on_disk(demand, terms, self.disk, StoredAs(kind, kind))

    @property
    def _disk_sizes(self) -> list[CostTerms]:
        """Container sizes to try with rows on disks."""
        return self.sizes[:: max(1, len(self.sizes) // 2)]

    @cached_property
    def _known(self) -> dict[tuple[Policy, int, int | None], list[Layout]]:
        """What was made already, by policy, place of the tower and cuts of each table."""
        return {}

    def _joint(self, place: int) -> Iterator[Proposal]:
        """Joint's own layouts, and the other policies', which it is never worse than."""
        demand = self.places[place]
        for stored in self.request.stored:
            yield Proposal(self._floor(demand, stored), partial(self._stored, demand, stored))
            if self.disk is not None:
                floor = self._disk_floor(demand, stored)
                yield Proposal(floor, partial(self._on_disks, demand, stored))
        wholes = [StoredAs(kind, kind) for kind in self._whole_precisions]
        floor = min(self._floor(demand, stored) for stored in wholes)
        if self.disk is not None:
            floor = min(self._disk_floor(demand, stored) for stored in wholes)
        yield Proposal(floor, partial(self._baseline, "model-wise", place))
        floor = self._remote_floor(demand)
        yield Proposal(floor, partial(self._baseline, "table-wise", place))
        yield Proposal(floor, partial(self._baseline, "elasticrec", place))

    def _floor(self, demand: Demand, stored: StoredAs) -> float:
        """Bytes, or dollars, below which no layout of these precisions costs."""
        if self.request.tier_precision:  # may lower what the layouts had
            return 0.0
        if self.request.aim == "memory":
            return memory_bound(demand, self.terms, *stored)
        seconds, size = self.terms.call_s + demand.tower_s, self.terms.gateway_memory_bytes
        for table in demand.tables:
            seconds += table.gathers * min(self.terms.beta_for(table, kind) for kind in stored)
            size += table.rows * min(table.row_bytes(kind) for kind in stored)
        return self.prices.least_usd(demand.qps * seconds / self.terms.utilisation, size)

    def _remote_floor(self, demand: Demand) -> float:
        """The same of layouts with a function or more for each table, and no row in the gateway."""
        whole = table_wise(demand, self.terms)
        if self.request.aim == "memory":
            return whole.gateway.memory + sum(shard.memory for shard in whole.shards)
        seconds = sum(function.service_s for function in whole.functions if not function.gpus)
        size = sum(function.memory for function in whole.functions)
        return self.prices.least_usd(demand.qps * seconds / self.terms.utilisation, size)

    def _stored(self, demand: Demand, stored: StoredAs) -> list[Layout | Proposal]:
        """Layouts whose rows have these precisions."""
        pool: list[Layout | Proposal] = []
        few = sum(table.rows for table in demand.tables) <= exact.MOST_ROWS
        for terms in self.sizes:
            pool.append(model_wise(demand, terms, stored.resident))
            pool.append(one_remote(demand, terms, stored.shards))
            if terms.fixed_vcpu or few:
                pool += self._searched(demand, terms, stored)
        if not self.terms.fixed_vcpu:
            types = self.prices.types
            pool += node_shaped(demand, self.terms, types, *stored, self.shard_bytes)
            if self.request.aim == "dollars" and not self.coarse:
                pool += mixed_nodes(demand, self.terms, types, *stored, self.shard_bytes)
        return [*pool, *self._runs(demand, stored)]

    def _on_disks(self, demand: Demand, stored: StoredAs) -> list[Layout]:
        """Layouts with rows on local disks, at some container sizes."""
        if self.disk is None:
            return []
        return [
            layout
            for terms in self._disk_sizes
            for layout in disk_layouts(demand, terms, self.disk, stored, self.request.max_fan_out)
        ]

    def _disk_floor(self, demand: Demand, stored: StoredAs) -> float:
        """As `_floor`, of layouts whose rows need no memory."""
        if self.request.aim == "memory" or self.request.tier_precision:
            return 0.0
        seconds = self.terms.call_s + demand.tower_s
        for table in demand.tables:
            seconds += table.gathers * min(self.terms.beta_for(table, kind) for kind in stored)
        vcpu = demand.qps * seconds / self.terms.utilisation
        return self.prices.least_usd(vcpu, self.terms.gateway_memory_bytes)

    def _searched(self, demand: Demand, terms: CostTerms, stored: StoredAs) -> list[Layout]:
        """What the search for least memory finds."""
        return joint_layouts(
            demand,
            terms,
            SearchLimits(self.request.max_fan_out, self.shard_bytes),
            precision=stored.shards,
            resident_precision=stored.resident,
        )

    def _runs(self, demand: Demand, stored: StoredAs) -> list[Proposal]:
        by_memory = self.request.aim == "memory"
        return run_proposals(
            paths(demand, self.terms, *stored),
            demand,
            self.sizes,
            [MEMORY] if by_memory else self.prices.hull,
            SearchLimits(self.request.max_fan_out, self.shard_bytes),
            RUNS_KEPT,
        )
