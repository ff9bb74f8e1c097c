"""Tiers: what each shard is for, and how few replicas of it may run.

Hot: replicated, or the hottest of three or more. Cold: the coldest that is awake. Warm: the rest.
A cold or frozen function of the joint policy may scale to zero: with traffic it stays up, since
its own requests hold it; without, its memory is free. The baselines keep one replica, as they do
where they are deployed today.
"""

from __future__ import annotations

from dataclasses import replace

from erless.plan.costs.cost import vcpu_each
from erless.plan.costs.layout import Layout, PlannedFunction, Role
from erless.plan.request import PlanRequest, Policy
from erless.specs.plan import Tier

__all__ = ["floor_of", "tiers_of", "with_tiers"]


def tiers_of(layout: Layout) -> list[Tier]:
    """The tier of each shard, in the layout's order."""
    awake = [shard for shard in layout.shards if shard.role is not Role.FROZEN]
    # of equally hot ones the first is the hottest, the last the coldest
    by_heat = sorted(awake, key=lambda shard: -float(f"{shard.gathers / shard.rows:.6g}"))
    hottest = by_heat[0] if len(by_heat) > 2 else None
    coldest = by_heat[-1] if by_heat else None
    return [_tier(shard, coldest, hottest) for shard in layout.shards]


def _tier(
    shard: PlannedFunction, coldest: PlannedFunction | None, hottest: PlannedFunction | None
) -> Tier:
    if shard.role is Role.FROZEN:
        return Tier.FROZEN
    if shard is coldest:
        return Tier.COLD
    return Tier.HOT if shard.replicas > 1 or shard is hottest else Tier.WARM


def floor_of(tier: Tier, policy: Policy, request: PlanRequest) -> int:
    """Fewest running replicas of a shard of this tier."""
    if tier in request.tier_replicas:
        return request.tier_replicas[tier]
    sleeps = policy == "joint" and tier in (Tier.COLD, Tier.FROZEN)
    return 0 if sleeps and request.floor == 1 else request.floor


def with_tiers(layout: Layout, policy: Policy, request: PlanRequest) -> Layout:
    """The layout with the precision that its tiers ask for, and their fewest replicas."""
    tiers = tiers_of(layout)
    precisions = [
        request.tier_precision.get(tier, shard.precision)
        for shard, tier in zip(layout.shards, tiers, strict=True)
    ]
    if policy == "joint" and any(
        precision is not shard.precision
        for shard, precision in zip(layout.shards, precisions, strict=True)
    ):
        layout = layout.resized(precisions=precisions)
    if not request.tier_replicas:
        return layout
    gateway, *shards = (
        _raised(function, floor_of(tier, policy, request), layout)
        for function, tier in zip(
            (layout.gateway, *layout.shards), (Tier.RESIDENT, *tiers), strict=True
        )
    )
    return Layout(layout.demand, layout.terms, gateway, tuple(shards))


def _raised(function: PlannedFunction, least: int, layout: Layout) -> PlannedFunction:
    if function.replicas >= least:
        return function
    vcpu = vcpu_each(function.load, least, layout.terms)
    return replace(function, replicas=least, vcpu=vcpu)
