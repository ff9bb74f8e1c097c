"""The planner: check the request, lay out every policy, choose, bound, and write it down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from erless.errors import InfeasibleError, PlanError
from erless.plan.costs.cost import DEFAULT_TERMS, PAPER_TERMS, CostTerms
from erless.plan.costs.curves import TableLoad
from erless.plan.costs.disk import DiskTerms
from erless.plan.costs.layout import Demand, Layout
from erless.plan.costs.measured import MeasuredSpeed, disk_terms, measured_terms
from erless.plan.costs.tower import TowerCost, gpu_cost, tower_cost
from erless.plan.nodes.constraints import check_request, check_used, shard_bytes
from erless.plan.nodes.packing import pack
from erless.plan.nodes.prices import Prices, read_prices
from erless.plan.policies.dense import placements
from erless.plan.policies.frozen import split_frozen
from erless.plan.policies.proposals import Proposal
from erless.plan.policies.tiers import with_tiers
from erless.plan.pools import Pools
from erless.plan.request import PlanRequest, Policy
from erless.plan.search.bounds import dollars_bound, memory_bound
from erless.plan.selection import Candidate, Selection
from erless.specs.model import ModelSpec
from erless.specs.plan import Precision

__all__ = ["POLICIES", "Candidate", "Outcome", "Planner"]

DISK_SHARE_OF_SLA = 0.25  # the reads of one query may take

POLICIES: tuple[Policy, ...] = ("model-wise", "table-wise", "elasticrec", "joint")


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
    disk: DiskTerms | None = None
    free: Candidate | None = None  # joint's own choice, where the request demands a shape

    def value(self, candidate: Candidate) -> float:
        """The objective: bytes or dollars per month."""
        return _value(self.request, candidate)


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
        self._given = model, tables, prices, measured
        self.prices = (prices or read_prices()).limited(request.arch, request.spot)
        measured = measured or MeasuredSpeed()
        self.disk = _disk_terms(request, measured)
        if self.disk is not None:
            self.prices = replace(self.prices, disks=True)
        self.terms = _terms(request, measured)
        self.tower = tower_cost(
            model,
            request.batch,
            self.terms,
            given_ms=request.tower_ms,
            curves=() if request.equal_containers else measured.towers,
            archive_bytes=measured.archive_bytes,
        )
        idle = Demand(tuple(tables), 0.0, self.tower.seconds, request.batch, request.floor)
        qps = request.qps
        if qps is None:
            qps = request.traffic / idle.monolith_s(self.terms)
        if not (math.isfinite(qps) and qps > 0):
            raise PlanError(f"traffic is {qps:g} queries/s: it must be above 0 to plan for it")
        self.demand = replace(idle, qps=qps)
        biggest = max(kind.usable_vcpu for kind in self.prices.types)
        if not self.terms.fixed_vcpu:
            self.terms = self.terms.on(min(request.max_vcpu or biggest, biggest))
        gpu = gpu_cost(model, request.batch, self.tower, measured.gpus)
        self.places = placements(request, self.demand, self.tower, gpu, self.terms, self.prices)
        room = shard_bytes(request, self.terms, self.prices)
        self.selection = Selection(request, self.prices, room)
        self.pools = Pools(request, self.places, self.terms, self.prices, room, coarse, self.disk)
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
        pools = {policy: self.pools.of(policy) for policy in wanted}
        if "elasticrec" in wanted and self.request.shards is not None:
            pools["elasticrec"] = self.pools.of("elasticrec", self.request.shards)
        best: dict[Policy, Candidate] = {}
        for policy in wanted:
            found = self._chosen(policy, pools[policy])
            if found:
                best[policy] = found
        if self.disk is not None and "joint" in wanted:
            best |= self._in_memory(best.get("joint"))
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
            self.disk,
            free,
        )

    def _in_memory(self, found: Candidate | None) -> dict[Policy, Candidate]:
        """The joint plan without disks, where it costs less than the one that was found with them.

        Both are found by trying what looks good first, so either may be missed by the other.
        """
        model, tables, prices, measured = self._given
        asked = self.request.model_copy(update={"disk": False})
        try:
            planner = Planner(model, tables, asked, prices, measured, self.coarse)
            plain = planner._chosen("joint", planner.pools.of("joint"))
        except InfeasibleError:
            return {}
        if plain is None or (found and _value(asked, plain) >= _value(asked, found) - 1e-9):
            return {}
        return {"joint": plain}

    def _chosen(self, policy: Policy, pool: Sequence[Layout | Proposal]) -> Candidate | None:
        """The best of `pool`, whatever shape is demanded; None where nothing is feasible.

        Raises:
            InfeasibleError: nothing is, and it is the policy asked for.
        """
        found = self.selection.best(
            policy, pool, policy == self.request.policy, free=policy == "joint"
        )
        return self._frozen(found) if found and policy == "joint" else found

    def _frozen(self, candidate: Candidate) -> Candidate:
        """With its idle rows in a function of their own, where frozen rows are wanted."""
        if not self.request.freezes:
            return candidate
        split = split_frozen(candidate.layout, self.request)
        layout = with_tiers(split, candidate.policy, self.request)
        packing = pack(layout, self.prices)
        return Candidate(candidate.policy, layout, packing) if packing else candidate

    def _demanded(self, free: Sequence[Layout | Proposal]) -> Candidate:
        """The best layout of the demanded shape, of those made for it and of `free` ones.

        Raises:
            InfeasibleError: no layout has that shape within the constraints.
        """
        pool = self.pools.demanded(free)
        shaped = self.selection.best("joint", pool, strict=True)
        if shaped is None:
            line = (
                f"shards: {self.request.shards} remote functions need as many groups of rows "
                "outside the gateway: lower shards or the resident share"
            )
            raise InfeasibleError("no plan has the demanded shape", (line,))
        return shaped

    def _bound(self) -> float:
        request = self.request
        if self.disk is not None:
            return self._bound_on_disks()
        if request.aim == "memory":
            return min(self._memory_bound(demand) for demand in self.places)
        return min(
            dollars_bound(demand, self.terms, *request.smallest, self.prices)
            for demand in self.places
        )

    def _bound_on_disks(self) -> float:
        """Rows need no memory: the gateway's, or the vCPU of all calls, gathers and towers."""
        terms = self.terms
        if self.request.aim == "memory":
            return terms.gateway_memory_bytes
        seconds = min(
            terms.call_s
            + place.tower_s
            + sum(
                table.gathers * min(terms.beta_for(table, kind) for kind in Precision)
                for table in place.tables
            )
            for place in self.places
        )
        vcpu = self.demand.qps * seconds / terms.utilisation
        types = self.prices.types
        least = min(kind.usd_per_month for kind in types)
        return max(least, vcpu * min(kind.usd_per_month / kind.usable_vcpu for kind in types))

    def _memory_bound(self, place: Demand) -> float:
        """A CPU function for the tower is a gateway without rows beside a shard: no new bound."""
        request, dense = self.request, place.dense
        fan_out = min(254, request.max_fan_out + (dense is not None))
        on_gpu = dense is not None and dense.device == "cuda"
        least = memory_bound(
            place if on_gpu else self.demand,
            self.terms,
            *request.smallest,
            fan_out,
        )
        return least + (dense.memory_bytes if on_gpu and dense else 0.0)


def _value(request: PlanRequest, candidate: Candidate) -> float:
    if request.aim == "memory":
        return candidate.layout.memory
    return candidate.packing.usd_per_month


def _disk_terms(request: PlanRequest, measured: MeasuredSpeed) -> DiskTerms | None:
    """What reads of a disk cost, where they are wanted; those of a query within the SLA's share."""
    if not request.disk:
        return None
    terms = disk_terms(measured)
    if request.sla_p95_ms is None:
        return terms
    return replace(terms, wait_s=DISK_SHARE_OF_SLA * request.sla_p95_ms / 1e3)


def _terms(request: PlanRequest, measured: MeasuredSpeed) -> CostTerms:
    """The paper's terms, or erless's with the measured curves."""
    if request.equal_containers:
        return PAPER_TERMS
    terms = measured_terms(DEFAULT_TERMS, measured)
    if request.utilisation:
        terms = replace(terms, utilisation=request.utilisation)
    return terms
