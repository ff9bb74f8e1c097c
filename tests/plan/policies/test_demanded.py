"""Shapes that users demand: so many functions, so large a resident tier, frozen or not."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from erless.errors import InfeasibleError
from erless.plan.costs.cost import DEFAULT_TERMS
from erless.plan.planner import POLICIES, Outcome, Planner
from erless.plan.policies.demanded import fluid_cuts
from erless.plan.report.document import plan_document, policy_results
from erless.plan.request import PlanRequest
from erless.plan.source import workload_tables
from erless.specs.plan import Plan, Tier
from erless.specs.planning import Policy
from tests.plan.instances import assert_covers

DIGEST = "0" * 64


def outcome(policies: Sequence[Policy] = ("joint",), rows: int = 200_000, **knobs: Any) -> Outcome:
    model, tables = workload_tables("rm1", 0.9, 32, rows)
    return Planner(model, tables, PlanRequest(**knobs)).outcome(policies)


def plan(**knobs: Any) -> Plan:
    found = outcome(**knobs)
    for each in found.best.values():
        assert_covers(each.layout)
    return plan_document(found, DIGEST, DIGEST)


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_so_many_shards_as_demanded(shards: int, equal: bool) -> None:
    document = plan(shards=shards, equal_containers=equal)
    remote = [each for each in document.shards if each.tier != Tier.RESIDENT]
    assert len(remote) == shards
    heat = [each.gathers / each.rows for each in remote]
    assert heat == sorted(heat, reverse=True)
    assert any("the shape was demanded" in note for note in document.notes)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_the_resident_tier_takes_the_share_demanded(share: float) -> None:
    document = plan(shards=4, resident_share=share)
    inside = sum(each.share for each in document.shards if each.tier == Tier.RESIDENT)
    assert share - 0.058 < inside <= share + 1e-9  # the hottest row of a table takes 5.7 %


def test_resident_bytes_are_a_limit() -> None:
    limit = 20e6
    for knobs in ({}, {"shards": 3}, {"resident_share": 0.9}):
        document = plan(max_resident_bytes=limit, **knobs)
        inside = sum(each.row_data_bytes for each in document.shards if each.tier == Tier.RESIDENT)
        assert inside <= limit


def test_four_tiers_with_a_cold_and_a_frozen_function_that_sleep() -> None:
    document = plan(shards=4, resident_share=0.8, frozen=True)
    tiers = {each.name: each for each in document.shards}
    assert set(tiers) == {"resident", "hot-0", "warm-0", "cold-0", "frozen"}
    floors = {name: each.scaling.min_scale for name, each in tiers.items()}
    assert (floors["cold-0"], floors["frozen"]) == (0, 0)
    assert (floors["hot-0"], floors["warm-0"]) == (1, 1)
    assert any(note.startswith("frozen:") for note in document.notes)


def test_replicas_by_tier_are_a_floor_and_are_paid_for() -> None:
    few = plan(shards=3, resident_share=0.8)
    many = plan(shards=3, resident_share=0.8, tier_replicas={"cold": 2, "hot": 3})
    by_name = {each.name: each for each in many.shards}
    assert by_name["cold-0"].replicas == by_name["cold-0"].scaling.min_scale == 2
    assert by_name["hot-0"].replicas == by_name["hot-0"].min_replicas == 3
    assert many.result is not None
    assert few.result is not None
    assert many.result.memory_bytes > few.result.memory_bytes


def test_elasticrec_cuts_each_table_as_often_as_demanded() -> None:
    found = outcome(POLICIES, shards=4)
    rows = {each.policy: each for each in policy_results(found)}
    assert rows["elasticrec"].fan_out == 40
    assert rows["joint"].fan_out == 4
    sizes = [each.rows for each in found.best["elasticrec"].layout.shards[:4]]
    assert min(sizes) > 1


def test_more_shards_than_rows_is_said() -> None:
    with pytest.raises(InfeasibleError, match="demanded shape"):
        outcome(shards=4, resident_share=1.0)


def test_nothing_frozen_is_said() -> None:
    document = plan(frozen=True)
    assert any("nothing is frozen" in note for note in document.notes)


def test_fluid_cuts_equal_brute_force() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 4):
        load = np.concatenate([[0.0], np.cumsum(rng.uniform(0, 1e-3, 9))])
        size = np.concatenate([[0.0], np.cumsum(rng.uniform(0, 1e9, 9))])

        def cost(points: list[int], load: np.ndarray = load, size: np.ndarray = size) -> float:
            total: float = sum(
                (DEFAULT_TERMS.call_s + load[b] - load[a])
                * (DEFAULT_TERMS.shard_memory_bytes + size[b] - size[a])
                for a, b in itertools.pairwise(points)
            )
            return total

        every = [[0, *inner, 9] for inner in itertools.combinations(range(1, 9), count - 1)]
        best = min(every, key=cost)
        assert fluid_cuts(load, size, count, DEFAULT_TERMS) == best


def test_a_largest_shard_is_kept_to() -> None:
    document = plan(shards=4, resident_share=0.0, max_shard_bytes=0.165e9)
    assert len(document.shards) == 4
    assert all(each.memory_bytes <= 0.165e9 for each in document.shards)


def test_tables_stay_whole_outside_the_gateway_where_that_saves_partial_vectors() -> None:
    layout = outcome(shards=4, resident_share=0.8).best["joint"].layout
    homes = [part.table for shard in layout.shards for part in shard.slices]
    assert sorted(homes) == list(range(10))
    assert sum(each.partials for each in layout.shards) <= 10 * 32


def test_more_shards_than_tables_cut_tables() -> None:
    layout = outcome(shards=12, resident_share=0.8).best["joint"].layout
    homes = [part.table for shard in layout.shards for part in shard.slices]
    assert len(layout.shards) == 12
    assert len(homes) > 10


def test_equally_hot_shards_are_named_in_order() -> None:
    document = plan(shards=4, resident_share=0.8)
    names = [each.name for each in document.shards if each.tier != Tier.RESIDENT]
    assert names == ["hot-0", "warm-0", "warm-1", "cold-0"]
