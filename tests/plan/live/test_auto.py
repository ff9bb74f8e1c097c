"""Automatic replanning: drift that lasts, not bursts; not too often; within the day's bytes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from erless.plan.live.auto import DAY_S, AutoReplan, Replanning


def test_a_burst_does_not_trigger_it_and_drift_that_lasts_does() -> None:
    auto = AutoReplan(after_s=600, at_most_every_s=3600, bytes_a_day=1e9)
    for minute in range(60):  # bursts of nine minutes, a minute apart
        burst = minute % 10 != 9
        assert auto.look(60.0 * minute, burst) in (Replanning.WAIT, Replanning.CALM)
    decisions = [auto.look(3600.0 + 60 * minute, True) for minute in range(12)]
    assert decisions.index(Replanning.ACT) == 10
    auto.changed(4200.0, 100)
    assert auto.look(4260.0, True) is Replanning.WAIT
    assert auto.look(4260.0 + 600, True) is Replanning.REST
    assert auto.look(4200.0 + 3600, True) is Replanning.ACT


def test_the_bytes_of_a_day_are_not_exceeded() -> None:
    auto = AutoReplan(after_s=0, at_most_every_s=0, bytes_a_day=100)
    assert auto.affords(0, 60)
    auto.changed(0, 60)
    assert not auto.affords(10, 60)
    assert auto.look(10, True) is Replanning.ACT
    auto.put_off(10)
    assert auto.affords(DAY_S, 60)


@given(st.lists(st.tuples(st.integers(1, 900), st.booleans()), max_size=200))
def test_changes_are_as_far_apart_as_asked_for(looks: list[tuple[int, bool]]) -> None:
    auto, now, changes = AutoReplan(after_s=600, at_most_every_s=7200, bytes_a_day=1e9), 0, []
    calm_since = 0
    for seconds, drifted in looks:
        now += seconds
        if not drifted:
            calm_since = now
        if auto.look(now, drifted) is Replanning.ACT:
            assert now - calm_since >= 600
            auto.changed(now, 1)
            changes.append(now)
    assert all(b - a >= 7200 for a, b in pairwise(changes))
