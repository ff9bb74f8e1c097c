"""The autoscaler against recorded traces, Knative's own cases, and what must always hold."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erless.autoscale.kpa import (
    Decision,
    Observation,
    Phase,
    Scaler,
    State,
    decide,
    desire,
    panic_window_s,
)
from erless.autoscale.window import WindowedLoad
from erless.specs.plan import Scaling
from tests.autoscale.traces import SPARSE, TABLES, TRACES, play, table


@pytest.mark.parametrize("name", TRACES)
def test_decides_as_recorded(name: str) -> None:
    assert table(name) == (TABLES / f"{name}.txt").read_text()


def test_every_trace_is_served_in_the_end() -> None:
    for name, (scaling, load) in TRACES.items():
        *_, (now, _, ready, decision) = play(scaling, load)
        needed = load(now) / (scaling.target * scaling.target_utilisation)
        assert ready >= min(needed, scaling.max_scale), name
        assert decision.wanted <= scaling.max_scale


def test_idle_functions_reach_zero_in_three_steps() -> None:
    reasons = [each.reason for *_, each in play(*TRACES["idle"], seconds=160)]
    steps = ["idle: inactive from now on", "idle: 28 s of grace left", "idle: to zero", "at zero"]
    places = [reasons.index(step) for step in steps]
    assert places == sorted(places)


# The cases of knative/serving pkg/autoscaler/scaling/autoscaler_test.go: target already includes
# the utilisation; (stable, burst, ready) → desired


def core(target: float, **more: float) -> Scaling:
    return Scaling(target=target, target_utilisation=1, **{"max_scale_up_rate": 10, **more})


def desired(scaling: Scaling, state: State, *seen: float, ready: int = 1) -> tuple[State, int]:
    now, stable, burst = seen
    state, wanted, _ = desire(scaling, state, Observation(now, stable, ready), stable, burst)
    return state, wanted


def begin(scaling: Scaling, ready: int = 0) -> State:
    return State.begin(scaling, 0.0, ready)


@pytest.mark.parametrize(
    ("target", "more", "stable", "burst", "ready", "expected"),
    [
        pytest.param(10, {}, 50, 10, 1, 5, id="stable mode increases"),
        pytest.param(10, {}, 100, 10, 1, 10, id="stable mode increases to the rate"),
        pytest.param(10, {}, 50, 50, 8, 5, id="stable mode decreases"),
        pytest.param(10, {}, 1, 0, 1, 1, id="any load keeps one"),
        pytest.param(10, {}, 0, 0, 1, 0, id="no load wants none"),
        pytest.param(10, {"activation_scale": 2}, 0, 0, 1, 0, id="activation scale: no load"),
        pytest.param(10, {"activation_scale": 2}, 1, 0, 1, 2, id="activation scale: any load"),
        pytest.param(10, {}, 1000, 1001, 1, 10, id="rate limits the way up"),
        pytest.param(10, {}, 1000, 1001, 10, 100, id="rate limits the way up, from 10"),
        pytest.param(10, {"max_scale_down_rate": 10}, 1, 1, 100, 10, id="and the way down"),
        pytest.param(10, {"max_scale_down_rate": 10}, 1, 1, 10, 1, id="and down, from 10"),
        pytest.param(1, {"max_scale_up_rate": 1.1}, 3, 3, 2, 3, id="grows by one at least"),
        pytest.param(
            10, {"max_scale_down_rate": 1.1}, 99, 99, 11, 10, id="shrinks by one at least"
        ),
    ],
)
def test_knative_cases(
    target: float, more: dict[str, float], stable: float, burst: float, ready: int, expected: int
) -> None:
    scaling = core(target, **more)
    assert desired(scaling, begin(scaling), 2, stable, burst, ready=ready)[1] == expected


def test_knative_unpanics_after_a_slow_increase() -> None:
    scaling = core(1)
    state, wanted = desired(scaling, begin(scaling), 2, 11, 25, ready=10)
    assert (wanted, state.panic_since_s) == (25, 2)
    state, wanted = desired(scaling, state, 32, 30, 41, ready=40)
    assert (wanted, state.panic_since_s) == (41, 2)
    state, wanted = desired(scaling, state, 64, 50, 56, ready=55)
    assert (wanted, state.panic_since_s) == (50, None)


def test_knative_extends_panic_while_the_surge_lasts() -> None:
    scaling = core(1)
    state, _ = desired(scaling, begin(scaling), 2, 11, 25, ready=10)
    state, wanted = desired(scaling, state, 32, 30, 80, ready=40)
    assert (wanted, state.panic_since_s) == (80, 32)


def test_knative_tracks_an_exponential_surge() -> None:
    scaling = core(1)
    state = begin(scaling)
    for now, (load, ready) in enumerate([(6, 1), (36, 6), (216, 36), (1296, 216), (1296, 1296)]):
        state, wanted = desired(scaling, state, now, load, load, ready=ready)
        assert wanted == load


def test_knative_starts_in_panic_with_several_replicas() -> None:
    scaling = core(10)
    state, wanted = desired(scaling, begin(scaling, ready=5), 2, 0, 0, ready=5)
    assert (wanted, state.panic_since_s) == (5, 0)
    assert begin(scaling, ready=1).panic_since_s is None


def test_knative_delays_the_way_down() -> None:
    scaling = core(
        10, scale_down_delay_s=300, max_scale_down_rate=10, panic_threshold_percentage=1000
    )
    state, wanted = desired(scaling, begin(scaling), 2, 40, 40)
    assert wanted == 4
    for now, expected in ((62, 4), (290, 4), (302, 0)):
        state, wanted = desired(scaling, state, now, 0, 0)
        assert wanted == expected
    away = Observation(64, 0, 1, reachable=False)
    assert desire(scaling, begin(scaling), away, 0, 0)[1] == 0


@pytest.mark.parametrize("series", json.loads((TABLES / "knative.json").read_text()))
def test_averages_and_replicas_are_what_knatives_own_code_gave(series: dict[str, Any]) -> None:
    """Recorded from `TimedFloat64Buckets` and `autoscaler.Scale`: a record a second, ticks of 2 s.

    A value of None: no replica and no call, so that nothing was recorded. Wanted is -1 where
    Knative had no data to decide on.
    """
    scaling = Scaling(
        target=series["Target"],
        target_utilisation=1,
        window_s=series["Window"],
        panic_window_percentage=series["Percent"],
        panic_threshold_percentage=series["Threshold"],
        max_scale_up_rate=series["Up"],
        max_scale_down_rate=series["Down"],
        scale_down_delay_s=series["Delay"],
    )
    state, load = State.begin(scaling, 0.0), WindowedLoad.begin(0.0)
    for tick, (value, ready, stable, burst, wanted) in enumerate(series["Rows"], 1):
        now = tick * 2.0
        if value is None:
            load = load.record_nothing(now)
        else:
            load = load.record(now, value, scaling.window_s)
        averages = load.average(scaling.window_s), load.average(panic_window_s(scaling))
        assert averages == pytest.approx((stable, burst), abs=2e-6), tick
        if wanted >= 0:
            seen = Observation(now, value, ready)
            state, replicas, _ = desire(scaling, state, seen, stable, burst)
            assert replicas == wanted, tick


def test_a_burst_after_idling_is_seen_whole() -> None:
    scaling = core(0.425, max_scale=99)
    scaler = Scaler(scaling, 0.0)
    for tick in range(1, 91):
        scaler.observe(Observation(2.0 * tick, 0.0, 0))
    assert scaler.observe(Observation(182.0, 3.825, 1)).wanted == 9


# What must always hold

scalings = st.builds(
    lambda low, span, initial, **more: Scaling(
        min_scale=low,
        max_scale=low + span,
        initial_scale=min(initial, low + span),
        **more,
    ),
    low=st.integers(0, 3),
    span=st.integers(1, 30),
    target=st.floats(0.5, 50),
    window_s=st.sampled_from([6.0, 20.0, 60.0]),
    max_scale_up_rate=st.sampled_from([1.5, 3, 1000]),
    max_scale_down_rate=st.sampled_from([1.5, 2, 10]),
    scale_down_delay_s=st.sampled_from([0, 30]),
    initial=st.integers(0, 4),
    activation_scale=st.integers(1, 3),
    grace_s=st.sampled_from([0, 10, 30]),
    retention_s=st.sampled_from([0, 20]),
)
loads = st.lists(st.floats(0, 2000) | st.just(0.0) | st.none(), min_size=1, max_size=80)


def run(scaling: Scaling, values: list[float | None]) -> list[tuple[int, State, Decision]]:
    """(ready, state after, decision) with replicas that are ready at the next tick."""
    state, ready, rows = State.begin(scaling, 0.0), 0, []
    for tick, value in enumerate(values, 1):
        seen = Observation(tick * 2.0, value, ready, waiting=not ready and bool(value))
        state, decision = decide(scaling, state, seen)
        rows.append((ready, state, decision))
        ready = decision.wanted
    return rows


@given(scalings, loads)
def test_stays_within_bounds(scaling: Scaling, values: list[float | None]) -> None:
    for _, _, decision in run(scaling, values):
        assert min(scaling.min_scale, scaling.max_scale) <= decision.wanted <= scaling.max_scale


@given(scalings, loads)
def test_never_goes_down_in_panic(scaling: Scaling, values: list[float | None]) -> None:
    decisions = [decision for *_, decision in run(scaling, values)]
    taken = [each for each in decisions if not each.reason.startswith("no data")]
    for first, second in pairwise(taken):
        if first.panic and second.panic and not first.reason.startswith("initial scale"):
            assert second.wanted >= first.wanted


@given(scalings, loads)
def test_rates_hold(scaling: Scaling, values: list[float | None]) -> None:
    for ready, state, decision in run(scaling, values):
        most = scaling.max_scale_up_rate * max(1, ready) + 1
        floor = (scaling.min_scale, scaling.initial_scale, scaling.activation_scale)
        assert decision.wanted <= max(most, *floor, state.panic_wanted, _peak(state))
        if decision.wanted == 0 and ready:
            assert state.phase is Phase.INACTIVE


def _peak(state: State) -> int:
    return state.peaks[0][1] if state.peaks else 0


@given(scalings.filter(lambda each: each.min_scale == 0), st.lists(st.floats(0, 99), max_size=40))
def test_silence_ends_at_zero_and_a_call_wakes(scaling: Scaling, values: list[float]) -> None:
    *_, (ready, state, last) = run(scaling, [*values, *[0.0] * 200])
    assert (last.wanted, ready) == (0, 0)
    state, decision = decide(scaling, state, Observation(10_000.0, 0.0, 0, waiting=True))
    assert decision.wanted == max(1, min(scaling.activation_scale, scaling.max_scale))


@given(st.lists(st.tuples(st.floats(0.1, 5), st.floats(0, 100)), min_size=1, max_size=60))
def test_averages_cover_uneven_polls(polls: list[tuple[float, float]]) -> None:
    load, now, seconds = WindowedLoad.begin(0.0), 0.0, []
    for gap, value in polls:
        now += gap
        load = load.record(now, value, 20.0)
        seconds.append((now - gap, now, value))
    for window in (20.0, 2.0):
        start = max(0.0, now - window)
        area = sum(value * max(0, end - max(begin, start)) for begin, end, value in seconds)
        assert load.average(window) == pytest.approx(area / (now - start), abs=2e-5)
    assert load.points[0].at_s <= max(0.0, now - 20.0)


def test_an_observation_without_data_changes_nothing() -> None:
    scaler = Scaler(SPARSE, 0.0, ready=1)
    for tick in range(1, 60):
        wanted = scaler.observe(Observation(2.0 * tick, 30.0, 5)).wanted
    for tick in range(60, 90):
        decision = scaler.observe(Observation(2.0 * tick, None, 5))
        assert (decision.wanted, decision.reason) == (wanted, "no data: as before")
