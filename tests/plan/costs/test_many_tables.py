"""Layouts of many tables are reckoned in arrays: the same numbers as slice by slice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erless.dlrm.workload import WORKLOADS
from erless.plan.costs.cost import DEFAULT_TERMS
from erless.plan.costs.curves import MOST_POINTS, AccessCurve, breakpoint_ratio, breakpoints
from erless.plan.costs.demand import Demand
from erless.plan.costs.layout import Layout, cover
from erless.plan.costs.many_tables import MANY_TABLES, AllTables, Slices
from erless.plan.costs.planned import Slice
from erless.plan.planner import Planner
from erless.plan.report.document import plan_document
from erless.plan.request import PlanRequest
from erless.plan.source import workload_tables
from erless.specs.plan import Precision
from tests.plan.instances import random_demand, table

DIGEST = "0" * 64


@pytest.fixture
def in_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of tables counts as many."""
    for module in ("demand", "layout"):
        monkeypatch.setattr(f"erless.plan.costs.{module}.MANY_TABLES", 1)


def random_cuts(demand: Demand, count: int, seed: int) -> list[np.ndarray]:
    """Falling cut vectors from all rows to none."""
    rng = np.random.default_rng(seed)
    rows = np.array([each.rows for each in demand.tables])
    between = np.sort(rng.uniform(0, 1, (count, len(rows))), axis=0)[::-1]
    return [rows, *(rows * between).astype(np.int64), np.zeros_like(rows)]


@pytest.mark.parametrize("seed", range(8))
def test_a_layout_takes_the_same_in_arrays(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    demand = random_demand(seed)
    pooled = [replace(each, bags=[1.0, 2.0, np.inf][n % 3]) for n, each in enumerate(demand.tables)]
    floors = [replace(each, floor=list(Precision)[n % 3]) for n, each in enumerate(pooled)]
    demand = replace(demand, tables=tuple(floors))
    cuts = random_cuts(demand, 3, seed)

    def layout() -> Layout:
        asked = replace(demand)  # nothing known of it yet
        *shards, inside = cover(cuts)
        return Layout.of(asked, DEFAULT_TERMS.on(7.9), shards, inside, Precision.INT8)

    plain = layout()
    for module in ("demand", "layout"):
        monkeypatch.setattr(f"erless.plan.costs.{module}.MANY_TABLES", 1)
    arrays = layout()
    for one, other in zip(plain.functions, arrays.functions, strict=True):
        assert isinstance(other.slices, Slices)
        assert list(one.slices) == list(other.slices)
        assert (one.rows, one.replicas, one.vcpu) == (other.rows, other.replicas, other.vcpu)
        for name in ("gathers", "row_bytes", "service_s", "load", "memory", "partials"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-12)
    assert plain.utility == pytest.approx(arrays.utility)


@pytest.mark.parametrize("knobs", [{}, {"equal_containers": True}, {"shards": 3}, {"frozen": True}])
def test_a_plan_is_the_same_in_arrays(
    knobs: dict[str, bool], request: pytest.FixtureRequest
) -> None:
    model, tables = workload_tables("rm2", 0.9, 32)

    def planned() -> dict[str, object]:
        outcome = Planner(model, tables, PlanRequest(traffic=32, **knobs)).outcome()
        shards = plan_document(outcome, DIGEST, DIGEST).model_dump()["shards"]
        return {shard["name"]: (shard["slices"], shard["replicas"]) for shard in shards}

    plain = planned()
    request.getfixturevalue("in_arrays")
    assert planned() == plain


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_shares_are_those_of_each_curve(seed: int) -> None:
    demand = random_demand(seed % 50)
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, len(demand.tables), 30)
    rows = np.array([each.rows for each in demand.tables])[numbers]
    ranks = np.concatenate([rng.integers(0, rows[:20] + 1), rows[20:25], np.zeros(5, np.int64)])
    found = AllTables(demand.tables).share(numbers, ranks)
    wanted = [
        demand.tables[number].curve.at(int(rank))
        for number, rank in zip(numbers, ranks, strict=True)
    ]
    assert found.tolist() == pytest.approx(wanted, abs=1e-15)


def test_slices_are_a_sequence_without_empty_ones() -> None:
    parts = [Slice(0, 3, 7), Slice(2, 5, 5), Slice(9, 0, 1)]
    slices = Slices.of(parts)
    assert list(slices) == [parts[0], parts[2]]
    assert (slices[1], list(slices[:1]), len(slices)) == (parts[2], [parts[0]], 2)
    assert Slices.of(slices) is slices
    assert not Slices.of([])


@given(
    counts=st.lists(st.integers(1, 9) | st.integers(1, 10**6), min_size=1, max_size=400),
    more=st.integers(0, 300),
    ratio=st.floats(1.05, 3.0),
)
def test_a_coarse_curve_tells_how_far_below_the_counts_it_lies(
    counts: list[int], more: int, ratio: float
) -> None:
    ranked = np.sort(np.array(counts, np.int64))[::-1].copy()
    rows = len(ranked) + more
    ranks = np.arange(rows + 1)
    exact = AccessCurve.from_counts(ranked, rows, 1.0000001).cdf(ranks)
    coarse = AccessCurve.from_counts(ranked, rows, ratio)
    below = exact - coarse.cdf(ranks)
    assert below.min() >= -1e-12
    assert below.max() <= coarse.most_under + 1e-12


def test_all_curves_together_have_bounded_points() -> None:
    rows = [int(n) for n in np.random.default_rng(0).lognormal(13, 2, 20_000) + 2]
    ratio = breakpoint_ratio(rows)
    points = sum(len(breakpoints(number, ratio)) for number in rows)
    assert points <= MOST_POINTS + 3 * len(rows)


def test_many_tables_are_planned_from_coarse_curves_as_told() -> None:
    """The layout found on coarse curves takes what it says, but for the told share of gathers."""
    rng = np.random.default_rng(1)
    count = MANY_TABLES + 20
    laws = [
        (int(10 ** rng.uniform(3, 7)), float(rng.uniform(0.5, 0.95)), float(rng.integers(1, 99)))
        for _ in range(count)
    ]
    fine, coarse = (
        [
            table(f"t{n}", 32 * pooling, AccessCurve.power_law(rows, place, ratio))
            for n, (rows, place, pooling) in enumerate(laws)
        ]
        for ratio in (1.01, 1.3)
    )
    told = sum(each.gathers * each.curve.most_under for each in coarse)
    total = sum(each.gathers for each in coarse)
    assert told < 0.01 * total
    model = WORKLOADS["rm1"].model()
    request = PlanRequest(qps=2000, shards=4)
    outcome = Planner(model, coarse, request).outcome()
    layout = outcome.best["joint"].layout
    assert len(layout.shards) == 4
    assert outcome.free is not None
    assert outcome.value(outcome.free) <= outcome.value(outcome.best["joint"]) + 1e-6
    exact = Layout.of(
        replace(layout.demand, tables=tuple(fine)),
        layout.terms,
        [shard.slices for shard in layout.shards],
        layout.gateway.slices,
    )
    hotter = planned = 0.0  # of the gateway, then of shards, hottest first
    for one, other in zip(layout.functions, exact.functions, strict=True):
        planned, hotter = planned + one.gathers, hotter + other.gathers
        assert -1e-6 * total <= hotter - planned <= told + 1e-6 * total
    best = Planner(model, fine, PlanRequest(qps=2000)).outcome().best["joint"]
    assert outcome.value(outcome.free) <= best.packing.usd_per_month * 1.01
