"""Borders between functions moved: every row stays in one place, and memory only falls."""

from typing import Any

import numpy as np
import pytest

from erless.plan.costs.layout import Layout
from erless.plan.planner import Planner
from erless.plan.policies.borders import filled, other_borders
from erless.plan.policies.proposals import every_layout
from erless.plan.request import PlanRequest
from erless.plan.source import workload_tables
from tests.plan.instances import assert_covers


def planner(name: str = "rm1", rows: int = 20_000_000, **asked: Any) -> Planner:
    model, tables = workload_tables(name, 0.9, 32, rows)
    return Planner(model, tables, PlanRequest(**asked))


def cut_runs() -> Layout:
    """The layout of least memory, as the search cuts it."""
    pool = planner(objective="memory", traffic=64, max_vcpu=1.0, allowed=("int8",)).pools.of(
        "joint"
    )
    runs = [layout for layout in every_layout(pool[:1]) if layout.shards]
    least = min(runs, key=lambda layout: layout.memory)
    assert len(least.shards) > 2
    return least


def test_a_shard_is_filled_until_one_more_row_needs_a_replica() -> None:
    layout = cut_runs()
    anew = filled(layout)
    assert_covers(anew)
    assert anew.memory < layout.memory
    room = layout.terms.max_vcpu * layout.terms.utilisation
    for before, after in zip(layout.shards, anew.shards, strict=True):
        assert after.replicas <= before.replicas
        assert after.load <= after.replicas * room * (1 + 1e-9)
    fullest = [shard.load / shard.replicas / room for shard in anew.shards]
    assert min(fullest[1:]) > 0.9999  # the hottest takes what is left


def test_of_other_borders_only_both_neighbours_hold_other_rows() -> None:
    layout = cut_runs()
    held = [function.rows for function in (layout.gateway, *layout.shards)]
    others = list(other_borders(layout))
    assert others
    dropped = 0
    for other in others:
        assert_covers(other)
        dropped += len(other.shards) < len(layout.shards)
        if len(other.shards) == len(layout.shards):
            now = [function.rows for function in (other.gateway, *other.shards)]
            changed = np.flatnonzero(np.array(held) != now)
            assert len(changed) in (0, 2)
            assert not len(changed) or changed[1] - changed[0] == 1
    assert dropped


def test_rows_on_disks_and_layouts_without_shards_stay_as_they_are() -> None:
    plan = planner(traffic=1, disk=True, objective="dollars")
    disks = [
        layout
        for layout in every_layout(plan.pools.of("joint"))
        if any(shard.disk for shard in layout.shards)
    ]
    whole = plan.pools.of("model-wise")[0]
    assert disks
    assert isinstance(whole, Layout)
    for layout in (disks[0], whole):
        assert filled(layout) is layout
        assert not list(other_borders(layout))


@pytest.mark.parametrize("max_vcpu", [1.0, 8.0])
def test_moved_borders_make_a_plan_cheaper(max_vcpu: float) -> None:
    plan = planner(
        rows=200_000_000, objective="dollars", traffic=16, max_vcpu=max_vcpu, allowed=("int8",)
    )
    pool = plan.pools.of("joint")
    cut, moved = (plan.selection.best("joint", pool, True, free=free) for free in (False, True))
    assert cut is not None
    assert moved is not None
    assert_covers(moved.layout)
    assert moved.packing.usd_per_month < cut.packing.usd_per_month
