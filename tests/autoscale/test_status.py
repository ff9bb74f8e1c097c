"""Status-aware scaling: what it decides on plain series, and what must always hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erless.autoscale.kpa import TICK_S, Decision, Observation
from erless.autoscale.status import (
    FULL,
    LARGEST_CUT,
    SMALLEST_CUT,
    THROTTLED,
    Sizing,
    StatusScaler,
)
from erless.autoscale.trend import LoadPoint, fit
from erless.specs.plan import Scaling

SIZING = Sizing(requests_per_vcpu_s=100.0, most_vcpu=2.0)
SCALING = Scaling(max_scale=50)


def play(
    rates: list[float],
    scaling: Scaling = SCALING,
    sizing: Sizing = SIZING,
    throttled: float = 0.0,
    ready: int = 1,
) -> list[tuple[int, Decision]]:
    """(ready, decision) per tick; what is wanted is ready at the next one."""
    scaler, rows = StatusScaler(scaling, sizing, 0.0, ready), []
    for tick, rate in enumerate(rates, 1):
        waiting = not ready and rate > 0
        seen = Observation(tick * TICK_S, rate, ready, waiting, True, rate, throttled)
        decision = scaler.observe(seen)
        rows.append((ready, decision))
        ready = decision.wanted
    return rows


def vcpu(decision: Decision) -> float:
    assert decision.vcpu is not None
    return decision.vcpu


def test_a_line_is_found_with_its_noise() -> None:
    rising = fit(tuple(LoadPoint(t, 1000 + 3 * t + (5 if t % 4 else -5)) for t in range(0, 30, 2)))
    assert rising is not None
    assert rising.slope == pytest.approx(3, abs=0.2)
    assert rising.highest(28.0, 10.0) == pytest.approx(1000 + 3 * 38, abs=10)
    assert rising.noise == pytest.approx((rising.level / 2) ** 0.5)  # counting is noisier
    assert fit((LoadPoint(0, 1), LoadPoint(2, 1))) is None


def test_steady_load_gets_the_vcpu_it_needs_and_no_replica() -> None:
    *_, (ready, last) = play([70.0] * 60)
    assert ready == 1 and last.reason.startswith("stable")
    assert 1.0 <= vcpu(last) <= 1.5  # 70 ÷ (100 · 0.7), and the margin for counting noise


def test_a_burst_grows_the_replica_at_once() -> None:
    rows = play([40.0] * 30 + [110.0])
    calm, burst = vcpu(rows[-2][1]), rows[-1][1]
    assert burst.reason.startswith("burst") and burst.panic
    assert vcpu(burst) > 2 * calm and burst.wanted >= 1


def test_replicas_come_when_the_largest_size_is_nearly_full_and_the_others_then_shrink() -> None:
    rows = play([40.0] * 20 + [300.0] * 40)
    grown = rows[20][1]
    assert grown.wanted > 1 and f"pass {FULL:.0%}" in grown.reason
    assert vcpu(grown) == SIZING.most_vcpu  # the one replica bears what it can meanwhile
    assert vcpu(rows[-1][1]) < SIZING.most_vcpu


def test_an_ebb_is_followed_before_the_line_is() -> None:
    rows = play([200.0] * 30 + [40.0] * 5)
    assert any(decision.reason.startswith("ebb") for _, decision in rows[30:])


def test_a_cut_that_throttles_is_undone_and_not_tried_again_at_once() -> None:
    scaler = StatusScaler(SCALING, SIZING, 0.0, 1)
    sizes, reasons = [], []
    for tick in range(1, 60):
        tight = vcpu_of(scaler) < 1.5
        seen = Observation(
            tick * TICK_S, 40.0, 1, requests_s=40.0, throttled=2 * THROTTLED if tight else 0.0
        )
        decision = scaler.observe(seen)
        sizes.append(vcpu(decision))
        reasons.append(decision.reason)
    undone = [reason for reason in reasons if "again:" in reason]
    assert 1 <= len(undone) <= 59 * TICK_S / SCALING.window_s + 1
    assert max(sizes[5:]) >= 1.5
    assert any("kept since it throttled" in reason for reason in reasons)


def test_a_replica_that_is_slower_than_was_told_is_not_starved() -> None:
    """It answers a twentieth of what its plan says, so that load alone asks for too little."""
    scaler, real = StatusScaler(SCALING, SIZING, 0.0, 1, 0.05), SIZING.requests_per_vcpu_s / 20
    offered, ready, served = 25.0, 1, 0.0
    for tick in range(1, 60):
        capacity = ready * scaler.state.vcpu * real
        served = min(offered, capacity)
        seen = Observation(
            tick * TICK_S,
            served,
            ready,
            requests_s=served,
            throttled=1.0 if offered >= capacity else 0.0,
        )
        ready = scaler.observe(seen).wanted
    assert served == offered
    assert ready * SIZING.most_vcpu * real >= offered


def vcpu_of(scaler: StatusScaler) -> float:
    return scaler.state.vcpu


def test_silence_ends_at_zero_in_three_steps_and_a_call_wakes() -> None:
    scaling = Scaling(min_scale=0, max_scale=9)
    rows = play([5.0] * 10 + [0.0] * 90, scaling)
    assert rows[-1][1].wanted == 0 and rows[-1][1].reason.endswith("at zero")
    assert any("inactive from now on" in decision.reason for _, decision in rows)
    assert play([5.0] * 10 + [0.0] * 90 + [3.0], scaling)[-1][1].wanted == 1


def test_without_data_nothing_changes() -> None:
    scaler = StatusScaler(SCALING, SIZING, 0.0, 1)
    for tick in range(1, 30):
        last = scaler.observe(Observation(tick * TICK_S, 150.0, 1, requests_s=150.0))
    after = scaler.observe(Observation(60.0, None, 1))
    assert (after.wanted, after.vcpu, after.reason) == (
        last.wanted,
        last.vcpu,
        "no data: as before",
    )


rates = st.lists(st.floats(0, 3000) | st.just(0.0), min_size=1, max_size=80)
sizings = st.builds(
    Sizing,
    requests_per_vcpu_s=st.floats(1, 500),
    most_vcpu=st.floats(0.1, 16),
    utilisation=st.floats(0.3, 1),
    cold_start_s=st.floats(0, 120),
    z=st.floats(0, 5),
)
scalings = st.builds(
    lambda low, span: Scaling(min_scale=low, max_scale=low + span, initial_scale=low),
    st.integers(0, 3),
    st.integers(1, 30),
)


@given(scalings, sizings, rates, st.floats(0, 1))
def test_what_always_holds(
    scaling: Scaling, sizing: Sizing, series: list[float], throttled: float
) -> None:
    rows = play(series, scaling, sizing, throttled)
    before = sizing.most_vcpu
    for (ready, decision), rate in zip(rows, series, strict=True):
        size = vcpu(decision)
        assert scaling.min_scale <= decision.wanted <= scaling.max_scale
        assert sizing.least_vcpu <= size <= sizing.most_vcpu
        if size < before:  # down by at least a tenth, and at most by half
            assert size <= before * (1 - SMALLEST_CUT) * 1.001
            assert size >= before * LARGEST_CUT * 0.999
        # what was seen is borne at once, as far as the largest size allows
        serving = max(1, min(ready, decision.wanted))
        borne = serving * size * sizing.requests_per_vcpu_s
        assert borne >= min(rate, serving * sizing.most_vcpu * sizing.requests_per_vcpu_s) * 0.999
        assert decision.reason
        before = size
