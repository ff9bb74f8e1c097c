"""Of many layouts the one to take: on whole nodes, within the constraints, of least cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from erless.errors import InfeasibleError
from erless.plan.costs.layout import Layout
from erless.plan.nodes.constraints import no_node, violations
from erless.plan.nodes.packing import Packing, cheapest_possible, pack
from erless.plan.nodes.prices import Prices
from erless.plan.policies.joint import joint_memory
from erless.plan.policies.tiers import with_tiers
from erless.plan.request import PlanRequest, Policy

__all__ = ["Candidate", "Selection"]

HEADROOM = (1.0, 0.75, 0.5, 0.3)  # of the planned utilisation, where the SLA needs it


@dataclass(frozen=True)
class Candidate:
    """A layout and the nodes that hold it."""

    policy: Policy
    layout: Layout
    packing: Packing


class _Packed(NamedTuple):
    """A layout on nodes; of several the one of the least `key` is best."""

    key: tuple[float, ...]
    legal: bool
    dollars: float
    candidate: Candidate


@dataclass(frozen=True)
class Selection:
    """What layouts are judged by: the request, node prices, and the most bytes of one shard."""

    request: PlanRequest
    prices: Prices
    shard_bytes: float

    def best(self, policy: Policy, pool: Sequence[Layout], strict: bool) -> Candidate | None:
        """The cheapest layout that meets the constraints; for a baseline, else the cheapest.

        Raises:
            InfeasibleError: `strict`, and no layout fits on nodes or meets the constraints.
        """
        sized = [with_tiers(self._in_time(layout), policy, self.request) for layout in pool]
        by_memory = self.request.aim == "memory"
        packed = self._by_memory(policy, sized) if by_memory else self._by_dollars(policy, sized)
        if not packed:
            if strict:
                raise no_node(sized, self.prices)
            return None
        best = min(packed, key=lambda entry: entry.key)
        if not best.legal and strict:
            layouts = [entry.candidate.layout for entry in packed]
            near = min(layouts, key=lambda layout: (len(self._violations(layout)), layout.p95_s))
            lines = tuple(self._violations(near))
            raise InfeasibleError(f"no {policy} plan meets the constraints", lines)
        return best.candidate

    def _by_memory(self, policy: Policy, pool: Sequence[Layout]) -> list[_Packed]:
        """The layouts on nodes, least memory first, up to the first that is legal."""
        pool = sorted(pool, key=lambda layout: layout.memory)
        legal = [layout for layout in pool if not self._violations(layout)]
        if policy == "joint" and legal:
            pool = [joint_memory(legal), *pool]
        packed = []
        for rank, layout in enumerate(pool):
            entry = self._packed(policy, layout, cheapest_possible(layout, self.prices), rank)
            if entry is not None:
                packed.append(entry)
                if entry.legal:
                    break
        return packed

    def _by_dollars(self, policy: Policy, pool: Sequence[Layout]) -> list[_Packed]:
        """The layouts on nodes that may be the cheapest legal one.

        No packing is cheaper than the layout's floor, so floors are tried in rising order until
        they exceed the dollars of a legal layout.
        """
        floors = [cheapest_possible(layout, self.prices) for layout in pool]
        packed = []
        least = math.inf
        for index in np.argsort(floors, kind="stable").tolist():
            if floors[index] > least + 1e-6:
                break
            entry = self._packed(policy, pool[index], floors[index])
            if entry is not None:
                packed.append(entry)
                least = min(least, entry.dollars) if entry.legal else least
        return packed

    def _packed(
        self, policy: Policy, layout: Layout, floor: float, rank: float = 0.0
    ) -> _Packed | None:
        """The layout on nodes, with what it is judged by; None where no node holds it."""
        packing = pack(layout, self.prices)
        if packing is None:
            return None
        legal, dollars = not self._violations(layout), round(packing.usd_per_month, 6)
        taste = (_loss(layout), len(layout.shards), round(floor, 2), layout.memory)
        key = (not legal, rank, dollars, *taste)
        return _Packed(key, legal, dollars, Candidate(policy, layout, packing))

    def _in_time(self, layout: Layout) -> Layout:
        """The layout, with as much more vCPU per container as its p95 needs to meet the SLA."""
        sla = self.request.sla_p95_ms
        if sla is None or layout.terms.fixed_vcpu or layout.p95_s * 1e3 <= sla:
            return layout
        for share in HEADROOM:
            roomy = replace(
                layout.terms,
                utilisation=layout.terms.utilisation * share,
                least_vcpu=min(1.0, layout.terms.max_vcpu),
            )
            sized = layout.resized(roomy)
            if sized.p95_s * 1e3 <= sla:
                break
        return sized

    def _violations(self, layout: Layout) -> list[str]:
        return violations(layout, self.request, self.shard_bytes)


def _loss(layout: Layout) -> int:
    """Minus the bytes of the most compact rows: at equal dollars, precision is not given up."""
    kinds = [function.precision for function in layout.functions if function.rows]
    return max((-kind.row_bytes(1024) for kind in kinds), default=-(1 << 30))
