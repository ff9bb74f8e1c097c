"""The planner: check the request, lay out every policy, choose, bound, and write it down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from erless.errors import InfeasibleError, PlanError
from erless.plan.costs.cost import DEFAULT_TERMS, PAPER_TERMS, CostTerms
from erless.plan.costs.curves import TableLoad
from erless.plan.costs.layout import Demand, Layout
from erless.plan.costs.measured import MeasuredSpeed, measured_terms
from erless.plan.costs.tower import TowerCost, tower_cost
from erless.plan.nodes.constraints import check_request, check_used, shard_bytes
from erless.plan.nodes.packing import pack
from erless.plan.nodes.prices import Prices, read_prices
from erless.plan.policies.baselines import model_wise, table_wise
from erless.plan.policies.demanded import demanded_layouts
from erless.plan.policies.dense import placements
from erless.plan.policies.elasticrec import elasticrec
from erless.plan.policies.frozen import split_frozen
from erless.plan.policies.joint import joint_layouts
from erless.plan.policies.node_sized import node_shaped
from erless.plan.policies.tiers import with_tiers
from erless.plan.request import PlanRequest, Policy
from erless.plan.search.bounds import dollars_bound, memory_bound
from erless.plan.search.frontier import SearchLimits
from erless.plan.selection import Candidate, Selection
from erless.specs.model import ModelSpec

__all__ = ["POLICIES", "Candidate", "Outcome", "Planner"]

POLICIES: tuple[Policy, ...] = ("model-wise", "table-wise", "elasticrec", "joint")
MANY_TABLES = 64  # beyond this many, policies try fewer container sizes


@dataclass(frozen=True)
class Outcome:
    """The best layout of each policy asked for, and the lower bound of the objective."""

    request: PlanRequest
    demand: Demand
    terms: CostTerms
    tower: TowerCost
    prices: Prices
    bound: float
    best: dict[Policy, Candidate]
    free: Candidate | None = None  # joint's own choice, where the request demands a shape

    def value(self, candidate: Candidate) -> float:
        """The objective: bytes or dollars per month."""
        if self.request.aim == "memory":
            return candidate.layout.memory
        return candidate.packing.usd_per_month


class Planner:
    """Plans one model's traffic.

    Args:
        model: tables and tower.
        tables: the same tables with their traffic.
        request: all knobs.
        prices: instance types; None takes those that ship.
        measured: curves of the profile; None takes the shipped defaults.
        coarse: try every other container size only; four times as fast, at most dearer,
            and the outcome has no bound (NaN).

    Raises:
        PlanError: λ is not above 0, or a value contradicts another.
        InfeasibleError: no plan can meet the constraints; lists each shortfall.
    """

    def __init__(
        self,
        model: ModelSpec,
        tables: Sequence[TableLoad],
        request: PlanRequest,
        prices: Prices | None = None,
        measured: MeasuredSpeed | None = None,
        coarse: bool = False,
    ) -> None:
        self.request, self.coarse = request, coarse
        self.prices = prices or read_prices()
        measured = measured or MeasuredSpeed()
        self.terms = _terms(request, measured)
        self.tower = tower_cost(
            model,
            request.batch,
            self.terms,
            given_ms=request.tower_ms,
            curves=() if request.equal_containers else measured.towers,
            archive_bytes=measured.archive_bytes,
        )
        idle = Demand(tuple(tables), 0.0, self.tower.seconds, request.batch, request.min_replicas)
        qps = request.qps
        if qps is None:
            qps = request.traffic / idle.monolith_s(self.terms)
        if not (math.isfinite(qps) and qps > 0):
            raise PlanError(f"traffic is {qps:g} queries/s: it must be above 0 to plan for it")
        self.demand = replace(idle, qps=qps)
        biggest = max(kind.usable_vcpu for kind in self.prices.types)
        if not self.terms.fixed_vcpu:
            self.terms = self.terms.on(min(request.max_vcpu or biggest, biggest))
        self.places = placements(request, self.demand, self.tower, self.terms, self.prices)
        self.shard_bytes = shard_bytes(request, self.terms, self.prices)
        self.selection = Selection(request, self.prices, self.shard_bytes)
        least = min(self.places, key=lambda demand: demand.least_s(self.terms))
        check_request(request, least, self.terms, self.prices)

    def outcome(self, policies: Sequence[Policy] | None = None) -> Outcome:
        """Lay out the policies (default: only the one asked for) and bound them all.

        Raises:
            PlanError: a knob of the request belongs to none of the policies.
            InfeasibleError: the policy asked for has no feasible plan.
        """
        wanted = tuple(dict.fromkeys((*(policies or ()), self.request.policy)))
        check_used(self.request, wanted)
        need = POLICIES if "joint" in wanted else wanted
        pools = {policy: self._pool(policy) for policy in need}
        if "joint" in pools:
            pools["joint"] = [layout for pool in pools.values() for layout in pool]
        if "elasticrec" in wanted and self.request.shards is not None:
            pools["elasticrec"] = self._pool("elasticrec", self.request.shards)
        best: dict[Policy, Candidate] = {}
        for policy in wanted:
            found = self.selection.best(policy, pools[policy], policy == self.request.policy)
            if found:
                best[policy] = self._frozen(found) if policy == "joint" else found
        free = best.get("joint") if self.request.shaped else None
        if free:
            best["joint"] = self._demanded(pools["joint"])
        return Outcome(
            self.request,
            self.demand,
            self.terms,
            self.tower,
            self.prices,
            math.nan if self.coarse else self._bound(),
            best,
            free,
        )

    def _frozen(self, candidate: Candidate) -> Candidate:
        """With its idle rows in a function of their own, where frozen rows are wanted."""
        if not self.request.freezes:
            return candidate
        split = split_frozen(candidate.layout, self.request)
        layout = with_tiers(split, candidate.policy, self.request)
        packing = pack(layout, self.prices)
        return Candidate(candidate.policy, layout, packing) if packing else candidate

    def _demanded(self, free: Sequence[Layout]) -> Candidate:
        """The best layout of the demanded shape, of those made for it and of `free` ones.

        Raises:
            InfeasibleError: no layout has that shape within the constraints.
        """
        pool = [
            layout
            for demand in self.places
            for size in self._sizes()
            for kind in self.request.precisions
            for layout in demanded_layouts(demand, self.terms.on(size), self.request, kind)
        ]
        pool += [layout for layout in free if self._has_shape(layout)]
        pool = [layout for layout in pool if self.request.shards in (None, len(layout.shards))]
        found = self.selection.best("joint", pool, strict=True) if pool else None
        if found is None:
            line = (
                f"shards: {self.request.shards} remote functions need as many groups of rows "
                "outside the gateway: lower shards or the resident share"
            )
            raise InfeasibleError("no plan has the demanded shape", (line,))
        return found

    def _has_shape(self, layout: Layout) -> bool:
        """Whether a layout that was not made for the demand meets it all the same."""
        request = self.request
        if request.freezes or request.resident_share is not None:
            return False
        room = request.max_resident_bytes
        fits = room is None or layout.gateway.row_bytes <= room
        return fits and request.shards in (None, len(layout.shards))

    def _sizes(self) -> list[float]:
        """Container sizes to try: the usable vCPU of each node type."""
        if self.terms.fixed_vcpu:
            return [self.terms.max_vcpu]
        sizes = sorted({kind.usable_vcpu for kind in self.prices.types} | {1.0})
        sizes = [min(size, self.terms.max_vcpu) for size in sizes]
        sizes = sorted(set(sizes))
        if len(self.demand.tables) > MANY_TABLES:
            sizes = sizes[:: max(1, len(sizes) // 3)]
        largest_first = sizes[::-1]
        return sorted(largest_first[::2]) if self.coarse else sizes

    def _pool(self, policy: Policy, per_table: int | None = None) -> list[Layout]:
        layouts: list[Layout] = []
        for demand in self.places:
            for size in self._sizes():
                terms = self.terms.on(size)
                if policy == "model-wise":
                    layouts.append(model_wise(demand, terms))
                elif policy == "table-wise":
                    layouts.append(table_wise(demand, terms))
                elif policy == "elasticrec":
                    layouts.append(elasticrec(demand, terms, per_table))
                else:
                    layouts += self._joint(demand, terms)
            if policy == "joint":
                layouts += self._node_shaped(demand)
        return layouts

    def _joint(self, demand: Demand, terms: CostTerms) -> list[Layout]:
        chosen: list[Layout] = []
        for precision in self.request.precisions:
            for hot in (True,) if terms.fixed_vcpu or self.coarse else (True, False):
                found = joint_layouts(
                    demand,
                    terms,
                    SearchLimits(self.request.max_fan_out, self.shard_bytes, resident_hot=hot),
                    precision=precision,
                    resident_precision=self.request.resident_precision,
                    shards_wanted=12 if terms.fixed_vcpu else 6,
                )
                chosen += found if terms.fixed_vcpu else _least_of_each_number(found)
        return chosen

    def _node_shaped(self, demand: Demand) -> list[Layout]:
        """Shards that fill one node of some type, where the model is larger than that node."""
        if self.terms.fixed_vcpu:
            return []
        return [
            layout
            for kind in self.request.precisions
            for layout in node_shaped(
                demand,
                self.terms,
                self.prices.types,
                kind,
                self.request.resident_precision,
                self.shard_bytes,
            )
        ]

    def _bound(self) -> float:
        request = self.request
        if request.aim == "memory":
            return min(self._memory_bound(demand) for demand in self.places)
        return min(
            dollars_bound(
                demand, self.terms, request.smallest, request.resident_precision, self.prices
            )
            for demand in self.places
        )

    def _memory_bound(self, place: Demand) -> float:
        """A CPU function for the tower is a gateway without rows beside a shard: no new bound."""
        request, dense = self.request, place.dense
        fan_out = min(254, request.max_fan_out + (dense is not None))
        on_gpu = dense is not None and dense.device == "cuda"
        least = memory_bound(
            place if on_gpu else self.demand,
            self.terms,
            request.smallest,
            request.resident_precision,
            fan_out,
        )
        return least + (dense.memory_bytes if on_gpu and dense else 0.0)


def _least_of_each_number(layouts: Sequence[Layout]) -> list[Layout]:
    """Of the layouts with equally many shards the one of least memory."""
    chosen: dict[int, Layout] = {}
    for layout in layouts:
        known = chosen.get(len(layout.shards))
        if known is None or layout.memory < known.memory:
            chosen[len(layout.shards)] = layout
    return list(chosen.values())


def _terms(request: PlanRequest, measured: MeasuredSpeed) -> CostTerms:
    """The paper's terms, or erless's with the measured curves."""
    if request.equal_containers:
        return PAPER_TERMS
    terms = measured_terms(DEFAULT_TERMS, measured)
    if request.utilisation:
        terms = replace(terms, utilisation=request.utilisation)
    return terms
