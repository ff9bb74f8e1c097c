"""What a plan expects of shards that are hardly ever asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from erless.specs.plan import Plan, ShardPlan, Tier
from erless.specs.release import ReleaseManifest

__all__ = ["WATCHED_TIERS", "ShardOdds", "release_odds"]

WATCHED_TIERS = (Tier.COLD, Tier.FROZEN)


@dataclass(frozen=True, slots=True)
class ShardOdds:
    """What the plan expects: its share of all gathers, and rows in a call that reaches it."""

    share: float
    rows_per_call: float

    @classmethod
    def of(cls, planned: ShardPlan) -> Self:
        """Those of a shard of a plan."""
        touched = planned.touch_probability
        return cls(planned.share, planned.gathers / touched if touched else 1.0)


def release_odds(release: ReleaseManifest, plan: Plan) -> dict[str, ShardOdds]:
    """Those of the release's watched shards, by digest; none of a plan that knows no shares."""
    planned = {shard.name: shard for shard in plan.shards}
    if not any(shard.share for shard in plan.shards):
        return {}
    return {
        shard.digest: ShardOdds.of(planned[shard.name])
        for shard in release.remote
        if shard.tier in WATCHED_TIERS
    }
