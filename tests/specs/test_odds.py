"""What a plan expects of shards that are hardly ever asked."""

from __future__ import annotations

from erless.specs.odds import release_odds
from erless.specs.plan import Plan
from tests.releases import Made


def test_cold_and_frozen_shards_have_odds(packed_release: Made) -> None:
    plan = Plan.load(packed_release.plan)
    shares = {"resident": 0.6, "hot": 0.3, "cold": 0.1, "frozen": 0.0}
    known = plan.model_copy(
        update={
            "shards": tuple(
                shard.model_copy(
                    update={"share": shares[shard.name], "gathers": 2.0, "touch_probability": 0.5}
                )
                for shard in plan.shards
            )
        }
    )
    odds = release_odds(packed_release.release, known)
    names = {shard.digest: shard.name for shard in packed_release.release.shards}
    assert {names[digest]: each.share for digest, each in odds.items()} == {
        "cold": 0.1,
        "frozen": 0.0,
    }
    assert {each.rows_per_call for each in odds.values()} == {4.0}


def test_a_plan_that_knows_no_shares_expects_nothing(packed_release: Made) -> None:
    """All of a cluster's ordinary traffic was an alarm under such a plan."""
    plan = Plan.load(packed_release.plan)
    assert not any(shard.share for shard in plan.shards)
    assert release_odds(packed_release.release, plan) == {}
