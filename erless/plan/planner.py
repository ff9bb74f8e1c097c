"""The planner: check the request, lay out every policy, choose, bound, and write it down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from erless.errors import InfeasibleError, PlanError
from erless.plan.baselines import model_wise, table_wise
from erless.plan.bounds import dollars_bound, memory_bound
from erless.plan.cost import DEFAULT_TERMS, PAPER_TERMS, Terms, tower_macs
from erless.plan.curves import TableLoad
from erless.plan.demanded import demanded_layouts
from erless.plan.elasticrec import elasticrec
from erless.plan.frozen import split_frozen
from erless.plan.joint import joint_layouts, joint_memory
from erless.plan.layout import Demand, Layout
from erless.plan.nodes import Packing, pack
from erless.plan.prices import Prices, read_prices
from erless.plan.request import PlanRequest, Policy
from erless.plan.tiers import with_floors
from erless.specs.model import ModelSpec
from erless.specs.profile import ThroughputCurve

__all__ = ["POLICIES", "Candidate", "Outcome", "Planner"]

POLICIES: tuple[Policy, ...] = ("model-wise", "table-wise", "elasticrec", "joint")
MANY_TABLES = 64  # beyond this many, policies try fewer container sizes
GB = 1e9


@dataclass(frozen=True)
class Candidate:
    """A layout and the nodes that hold it."""

    policy: Policy
    layout: Layout
    packing: Packing


@dataclass(frozen=True)
class Outcome:
    """The best layout of each policy asked for, and the lower bound of the objective."""

    request: PlanRequest
    demand: Demand
    terms: Terms
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
        curve: measured throughput; None takes the shipped default.

    Raises:
        PlanError: λ is not above 0, or a value contradicts another.
        InfeasibleError: no plan can meet the constraints; lists each shortfall.
    """

    def __init__(
        self, model: ModelSpec, tables: Sequence[TableLoad], request: PlanRequest,
        prices: Prices | None = None, curve: ThroughputCurve | None = None,
    ) -> None:  # fmt: skip
        self.request = request
        self.prices = prices or read_prices()
        self.terms = _terms(request, curve)
        tower = request.tower_ms / 1e3 if request.tower_ms is not None else None
        if tower is None:
            tower = tower_macs(model) * request.batch * self.terms.mac_s
        idle = Demand(tuple(tables), 0.0, tower, request.batch, request.min_replicas)
        qps = request.qps
        if qps is None:
            qps = request.traffic / idle.monolith_s(self.terms)
        if not (math.isfinite(qps) and qps > 0):
            raise PlanError(f"traffic is {qps:g} queries/s: it must be above 0 to plan for it")
        self.demand = replace(idle, qps=qps)
        biggest = max(kind.usable_vcpu for kind in self.prices.types)
        if not self.terms.fixed_vcpu:
            self.terms = self.terms.on(min(request.max_vcpu or biggest, biggest))
        self._check()

    @property
    def shard_bytes(self) -> float:
        """Most bytes of one container."""
        node = max(kind.usable_bytes for kind in self.prices.types)
        limit = self.request.max_shard_bytes or math.inf
        return min(limit, math.inf if self.terms.fixed_vcpu else node)

    def _check(self) -> None:
        """Constraints that no layout can meet, all at once."""
        wrong = []
        sla, demand, terms = self.request.sla_p95_ms, self.demand, self.terms
        floor = (terms.call_s + demand.tower_s) * 1e3
        if sla is not None and floor > sla:
            wrong.append(
                f"SLA: the dense tower and its call alone take {floor:.2f} ms on one vCPU, "
                f"{floor - sla:.2f} ms over the {sla:g} ms allowed: raise sla_p95_ms, shrink the "
                "batch or the tower"
            )
        widest = max(demand.tables, key=lambda table: table.spec.dim)
        row = self.request.precision.row_bytes(widest.spec.dim) + terms.shard_memory_bytes
        if row > self.shard_bytes:
            wrong.append(
                f"shard size: one row of {widest.spec.name} with the function's own memory needs "
                f"{row:,.0f} bytes, {row - self.shard_bytes:,.0f} over the {self.shard_bytes:,.0f} "
                "allowed: raise max_shard_bytes"
            )
        largest = max(kind.usable_bytes for kind in self.prices.types)
        if terms.gateway_memory_bytes > largest:
            wrong.append(
                f"nodes: a gateway without rows needs {terms.gateway_memory_bytes:,.0f} bytes, "
                f"the largest node type has {largest:,.0f}: add a larger type to the prices"
            )
        if terms.fixed_vcpu and terms.max_vcpu > max(k.usable_vcpu for k in self.prices.types):
            wrong.append("nodes: no type has a whole vCPU free: add a larger type to the prices")
        if wrong:
            raise InfeasibleError(wrong[0].split(": raise")[0], tuple(wrong))

    def outcome(self, policies: Sequence[Policy] | None = None) -> Outcome:
        """Lay out the policies (default: only the one asked for) and bound them all.

        Raises:
            InfeasibleError: the policy asked for has no feasible plan.
        """
        wanted = tuple(dict.fromkeys((*(policies or ()), self.request.policy)))
        need = POLICIES if "joint" in wanted else wanted
        pools = {policy: self._pool(policy) for policy in need}
        if "joint" in pools:
            pools["joint"] = [each for pool in pools.values() for each in pool]
        if "elasticrec" in wanted and self.request.shards is not None:
            pools["elasticrec"] = self._pool("elasticrec", self.request.shards)
        best: dict[Policy, Candidate] = {}
        for policy in wanted:
            found = self._choose(policy, pools[policy], policy == self.request.policy)
            if found:
                best[policy] = self._frozen(found) if policy == "joint" else found
        free = best.get("joint")
        if not (free and self.request.shaped):
            free = None
        else:
            best["joint"] = self._demanded()
        return Outcome(self.request, self.demand, self.terms, self.prices, self._bound(), best,
                       free)  # fmt: skip

    def _frozen(self, found: Candidate) -> Candidate:
        """With its idle rows in a function of their own, where frozen rows are wanted."""
        if not self.request.freezes:
            return found
        layout = split_frozen(found.layout, self.request)
        packing = pack(layout, self.prices.types)
        return Candidate(found.policy, layout, packing) if packing else found

    def _demanded(self) -> Candidate:
        """The best layout of the demanded shape.

        Raises:
            InfeasibleError: no layout has that shape within the constraints.
        """
        pool = [
            layout for size in self._sizes()
            for layout in demanded_layouts(self.demand, self.terms.on(size), self.request)
        ]  # fmt: skip
        found = self._choose("joint", pool, strict=True) if pool else None
        if found is None:
            wanted = self.request.shards
            line = (f"shards: {wanted} remote functions need as many groups of rows outside the "
                    "gateway: lower shards or the resident share")  # fmt: skip
            raise InfeasibleError("no plan has the demanded shape", (line,))
        return found

    def _sizes(self) -> list[float]:
        """Container sizes to try: the usable vCPU of each node type."""
        if self.terms.fixed_vcpu:
            return [self.terms.max_vcpu]
        sizes = sorted({kind.usable_vcpu for kind in self.prices.types} | {1.0})
        sizes = [min(size, self.terms.max_vcpu) for size in sizes]
        sizes = sorted(set(sizes))
        if len(self.demand.tables) > MANY_TABLES:
            sizes = sizes[:: max(1, len(sizes) // 3)]
        return sizes

    def _pool(self, policy: Policy, per_table: int | None = None) -> list[Layout]:
        layouts: list[Layout] = []
        for size in self._sizes():
            terms = self.terms.on(size)
            if policy == "model-wise":
                layouts.append(model_wise(self.demand, terms))
            elif policy == "table-wise":
                layouts.append(table_wise(self.demand, terms))
            elif policy == "elasticrec":
                layouts.append(elasticrec(self.demand, terms, per_table))
            else:
                layouts += self._joint(terms)
        return layouts

    def _joint(self, terms: Terms) -> list[Layout]:
        request = self.request
        chosen: list[Layout] = []
        for hot in (True,) if terms.fixed_vcpu else (True, False):
            layouts = joint_layouts(
                self.demand, terms, precision=request.precision,
                resident_precision=request.resident_precision, max_fan_out=request.max_fan_out,
                max_shard_bytes=self.shard_bytes, resident_hot=hot,
                shards_wanted=12 if terms.fixed_vcpu else 6,
            )  # fmt: skip
            if terms.fixed_vcpu:
                return layouts
            by_number: dict[int, Layout] = {}
            for each in layouts:
                known = by_number.get(len(each.shards))
                if known is None or each.memory < known.memory:
                    by_number[len(each.shards)] = each
            chosen += by_number.values()
        return chosen

    def _choose(self, policy: Policy, pool: Sequence[Layout], strict: bool) -> Candidate | None:
        """The cheapest layout that meets the constraints; for a baseline, else the cheapest."""
        pool = [with_floors(each, policy, self.request) for each in pool]
        if self.request.aim == "memory":
            pool = sorted(pool, key=lambda each: each.memory)
            legal = [each for each in pool if not self._violations(each)]
            head = [joint_memory(legal)] if policy == "joint" and legal else []
            pool = [*head, *pool]
        packed = []
        for rank, layout in enumerate(pool):
            packing = pack(layout, self.prices.types)
            if packing is None:
                continue
            legal_now = not self._violations(layout)
            key = (not legal_now, rank if self.request.aim == "memory" else 0.0,
                   round(packing.usd_per_month, 6), len(layout.shards), layout.memory)  # fmt: skip
            packed.append((key, Candidate(policy, layout, packing)))
            if self.request.aim == "memory" and legal_now:
                break
        if not packed:
            if strict:
                raise self._no_node(pool)
            return None
        key, found = min(packed, key=lambda entry: entry[0])
        if key[0] and strict:
            lines = self._violations(found.layout)
            raise InfeasibleError(f"no {policy} plan meets the constraints", tuple(lines))
        return found

    def _violations(self, layout: Layout) -> list[str]:
        """Constraints that this layout breaks: measured, allowed, what lifts it."""
        request, lines = self.request, []
        if request.sla_p95_ms is not None and layout.p95_s * 1e3 > request.sla_p95_ms:
            over = layout.p95_s * 1e3 - request.sla_p95_ms
            lines.append(f"SLA: predicted p95 {layout.p95_s * 1e3:.2f} ms, {over:.2f} ms over the "
                         f"{request.sla_p95_ms:g} ms allowed: raise sla_p95_ms or lower the "
                         "utilisation")  # fmt: skip
        if len(layout.shards) > request.max_fan_out:
            lines.append(f"fan-out: {len(layout.shards)} remote calls per query, "
                         f"{len(layout.shards) - request.max_fan_out} over the "
                         f"{request.max_fan_out} allowed: raise max_fan_out")  # fmt: skip
        for each in layout.shards:
            if each.memory > self.shard_bytes * (1 + 1e-9):
                lines.append(f"shard size: {each.name} has {each.memory:,.0f} bytes, "
                             f"{each.memory - self.shard_bytes:,.0f} over the "
                             f"{self.shard_bytes:,.0f} allowed: raise max_shard_bytes")  # fmt: skip
                break
        return lines

    def _no_node(self, pool: Sequence[Layout]) -> InfeasibleError:
        lowest = min(pool, key=lambda layout: max(each.memory for each in layout.functions))
        need = max(each.memory for each in lowest.functions)
        node = max(kind.usable_bytes for kind in self.prices.types)
        over = max(0.0, need - node)
        line = (f"nodes: the largest container needs {need:,.0f} bytes, {over:,.0f}"
                f" over what the largest node type has ({node:,.0f}): add a larger type to the "
                "prices, or set max_shard_bytes")  # fmt: skip
        return InfeasibleError("no node type fits", (line,))

    def _bound(self) -> float:
        request = self.request
        if request.aim == "memory":
            return memory_bound(self.demand, self.terms, request.precision,
                                request.resident_precision, request.max_fan_out)  # fmt: skip
        return dollars_bound(self.demand, self.terms, request.precision,
                             request.resident_precision, self.prices.types)  # fmt: skip


def _terms(request: PlanRequest, curve: ThroughputCurve | None) -> Terms:
    """The paper's terms, or erless's with the measured curve."""
    if request.equal_containers:
        return PAPER_TERMS
    terms = DEFAULT_TERMS
    if curve is not None:
        part = terms.gather_fixed + (1 - terms.gather_fixed) * curve.row_bytes / 128
        terms = replace(terms, curve=curve.name, curve_shipped=curve.shipped,
                        call_s=curve.overhead_s, gather_s=curve.gather_s / part)  # fmt: skip
    if request.utilisation:
        terms = replace(terms, utilisation=request.utilisation)
    return terms
