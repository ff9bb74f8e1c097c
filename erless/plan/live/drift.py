"""How far live heat has moved from what a plan was cut for, and what that costs.

What the gateways counted lately is a `Seen`, shard by shard. A share has drifted where it differs
from the planned one by more than the tolerance, and by more than three standard errors of a share
among as many samples: a handful of queries proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from erless.errors import PlanError
from erless.plan.live.placed import Placement, candidate_of, placed_shards
from erless.plan.planner import Planner
from erless.plan.selection import Candidate
from erless.specs.heat import Seen
from erless.specs.plan import Plan, Tier

__all__ = ["Drift", "ShardDrift", "compare"]

STANDARD_ERRORS = 3.0
IDLE_S = 60.0  # frozen: odds that nobody asks for so long
AWAKE = 0.5  # below such odds a frozen function is hardly ever at zero


@dataclass(frozen=True)
class ShardDrift:
    """One shard, planned against seen. `load` is seen ÷ planned share."""

    name: str
    tier: Tier
    planned_share: float
    seen_share: float
    planned_touch: float
    seen_touch: float
    planned_idle: float | None
    seen_idle: float | None
    drifted: bool

    @property
    def load(self) -> float:
        """Gathers, seen ÷ planned."""
        return self.seen_share / self.planned_share if self.planned_share else math.inf


@dataclass(frozen=True)
class Drift:
    """A plan under live heat.

    Args:
        planned_resident, seen_resident: shares of all gathers.
        vcpu, usd_per_month: of the deployed layout under live heat; None where no node holds it.
        planned_vcpu, planned_usd: as the plan says.
    """

    planned_resident: float
    seen_resident: float
    shards: tuple[ShardDrift, ...]
    queries: int
    seconds: float
    qps: float
    planned_qps: float
    tolerance: float
    vcpu: float | None
    usd_per_month: float | None
    planned_vcpu: float
    planned_usd: float

    @property
    def drifted(self) -> bool:
        """Whether a plan for the heat of now would be another."""
        return any(shard.drifted for shard in self.shards)

    def document(self) -> dict[str, Any]:
        """As JSON types."""
        fields = asdict(self)
        for shard, entry in zip(self.shards, fields["shards"], strict=True):
            entry["load"] = None if math.isinf(shard.load) else shard.load
        return {"drifted": self.drifted, **fields}

    def lines(self) -> list[str]:
        """What it comes to, in words."""
        lines = [
            f"the gateway answers {self.seen_resident:.1%} of the gathers itself, planned were "
            f"{self.planned_resident:.1%}"
        ]
        for shard in self.shards:
            if not shard.drifted or shard.tier is Tier.RESIDENT:
                continue
            line = (
                f"{shard.name} ({shard.tier}) gets {shard.seen_share:.2%} of them, planned were "
                f"{shard.planned_share:.2%}"
            )
            if shard.seen_idle is not None and shard.planned_idle is not None:
                line += (
                    f"; it is idle for a minute with odds of {shard.seen_idle:.0%}, it was frozen "
                    f"on {shard.planned_idle:.0%}"
                )
            lines.append(line)
        if self.vcpu is None or self.usd_per_month is None:
            lines.append("under this heat no node holds one of its functions")
        else:
            lines.append(
                f"it takes {self.vcpu:,.2f} vCPU and {self.usd_per_month:,.2f} $ a month, planned "
                f"were {self.planned_vcpu:,.2f} and {self.planned_usd:,.2f}"
            )
        return lines


def compare(planner: Planner, plan: Plan, seen: Seen, tolerance: float) -> Drift:
    """The plan against what was seen.

    Args:
        planner: of the model under live heat.
        plan: that is deployed.
        seen: of its shards, in its order.
        tolerance: difference of a share that is none.

    Raises:
        PlanError: nothing was seen, or the plan predicts nothing.
    """
    if not seen.queries or not seen.gathers.sum():
        raise PlanError(f"no query was sampled in the last {seen.seconds:,.0f} s")
    if not any(shard.share for shard in plan.shards):
        raise PlanError("the plan does not say which share of the gathers each shard takes")
    by_shard = seen.gathers.sum(axis=1)
    shares = by_shard / by_shard.sum()
    shards = tuple(
        _shard(plan, number, float(shares[number]), seen, tolerance)
        for number in range(len(plan.shards))
    )
    candidate = candidate_of(planner, plan, placement_of(plan, planner, seen))
    return Drift(
        planned_resident=_resident(plan, [shard.share for shard in plan.shards]),
        seen_resident=_resident(plan, shares.tolist()),
        shards=shards,
        queries=seen.queries,
        seconds=seen.seconds,
        qps=seen.qps,
        planned_qps=plan.qps,
        tolerance=tolerance,
        vcpu=candidate.layout.vcpu if candidate else None,
        usd_per_month=_dollars(candidate),
        planned_vcpu=plan.result.vcpu if plan.result else 0.0,
        planned_usd=plan.result.usd_per_month if plan.result else 0.0,
    )


def placement_of(plan: Plan, planner: Planner, seen: Seen) -> Placement:
    """The deployed plan's rows, with the gathers that were seen."""
    names = [table.spec.name for table in planner.demand.tables]
    rows = np.zeros(seen.gathers.shape, np.int64)
    for number, shard in enumerate(plan.shards):
        for part in shard.slices:
            rows[number, names.index(part.table)] += part.rows
    whole = seen.gathers.sum(axis=0)
    shares = seen.gathers / np.maximum(whole, 1)
    return Placement(placed_shards(plan), rows, shares, np.zeros_like(rows))


def _dollars(candidate: Candidate | None) -> float | None:
    return round(candidate.packing.usd_per_month, 2) if candidate else None


def _resident(plan: Plan, shares: Sequence[float]) -> float:
    pairs = zip(plan.shards, shares, strict=True)
    return sum(share for shard, share in pairs if shard.tier is Tier.RESIDENT)


def _shard(plan: Plan, number: int, share: float, seen: Seen, tolerance: float) -> ShardDrift:
    shard = plan.shards[number]
    touch = float(seen.touched[number] / seen.queries)
    planned_idle = seen_idle = None
    drifted = abs(share - shard.share) > max(tolerance, _noise(shard.share, seen, plan))
    if shard.tier is Tier.FROZEN:
        planned_idle = math.exp(-plan.qps * shard.touch_probability * IDLE_S)
        seen_idle = math.exp(-seen.qps * touch * IDLE_S)
        drifted = drifted or (seen_idle < AWAKE <= planned_idle)
    return ShardDrift(
        name=shard.name,
        tier=shard.tier,
        planned_share=shard.share,
        seen_share=share,
        planned_touch=shard.touch_probability,
        seen_touch=touch,
        planned_idle=planned_idle,
        seen_idle=seen_idle,
        drifted=drifted,
    )


def _noise(share: float, seen: Seen, plan: Plan) -> float:
    """Three standard errors of a share, one access of each sample taken as independent."""
    samples = max(1, seen.queries * plan.batch)
    return STANDARD_ERRORS * math.sqrt(max(share * (1 - share), 1 / samples) / samples)
