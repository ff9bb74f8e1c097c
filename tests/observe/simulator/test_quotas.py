"""CFS quotas against a queue that is stepped call by call, and autoscalers that change sizes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from erless.observe.simulator.fleet import Terms
from erless.observe.simulator.outcome import Simulation, run_simulation
from erless.observe.simulator.policies import POLICIES, PolicyName
from erless.observe.simulator.quotas import PERIOD_S, advance
from erless.specs.traffic import parse_traffic
from tests.observe.simulator.plans import plan, shard
from tests.observe.simulator.test_simulator import quantile

CALL_S = 0.004  # CPU seconds


def exact(rate: float, vcpu: float, seconds: float) -> np.ndarray:
    """Sojourn times at one replica, first come first served, under a quota."""
    generator = np.random.default_rng(3)
    due = np.sort(generator.random(generator.poisson(rate * seconds)) * seconds)
    allowance, free, spent, period = vcpu * PERIOD_S, 0.0, 0.0, 0
    found = []
    for at in due:
        now, left = max(free, at), CALL_S
        while left > 1e-12:
            if int(now / PERIOD_S + 1e-9) > period:
                period, spent = int(now / PERIOD_S + 1e-9), 0.0
            room = min(left, allowance - spent, (period + 1) * PERIOD_S - now)
            now, left, spent = now + room, left - room, spent + room
            if left > 1e-12 and spent >= allowance - 1e-12:
                now = (period + 1) * PERIOD_S
        found.append(now - at)
        free = now
    return np.array(found)


def held(vcpu: float, replicas: int = 1, **scaling: float) -> Simulation:
    fixed = shard(
        rate=vcpu / CALL_S,
        vcpu=vcpu,
        replicas=replicas,
        scaling={"min_scale": replicas, "max_scale": replicas, **scaling},
    )
    load = parse_traffic(f"constant:{replicas * 0.7 * vcpu / CALL_S}", 3000)
    return run_simulation(plan(fixed), load, Terms(hop_s=0.0), None, seed=1)


@pytest.mark.parametrize("vcpu", [0.25, 0.6])
def test_latency_under_a_quota_agrees_with_an_exact_queue(vcpu: float) -> None:
    truth = exact(0.7 * vcpu / CALL_S, vcpu, 3000)
    simulated = held(vcpu, replicas=3)
    for part in (0.5, 0.95):
        expected = float(np.quantile(truth, part))
        assert quantile(simulated, part) == pytest.approx(expected, rel=0.15, abs=5e-4), part


def test_what_a_period_cannot_serve_waits_for_the_next() -> None:
    work = np.zeros((1, 20))
    work[0, :3] = 0.03, 0.0, 0.01
    served = advance(work, np.array([0.005]), np.array([0.02]))
    assert served.ahead[0, :5] == pytest.approx([0.005, 0.015, 0.0, 0.0, 0.0])
    assert served.throttled[0] == pytest.approx(1 / 20)
    assert served.used_vcpu[0] * 2.0 == pytest.approx(0.045)


def run(name: PolicyName, traffic: str = "step:40,160,40", **terms: Any) -> Simulation:
    small = shard(rate=50.0, vcpu=0.2, replicas=1, scaling={"max_scale": 20})
    load = parse_traffic(traffic, 900)
    return run_simulation(plan(small), load, Terms(autoscaler=name, **terms), None, seed=2)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_serves_steps_of_traffic(name: PolicyName) -> None:
    done = run(name, growth=8.0)
    answered = 1 - done.trace.failed.sum() / done.trace.arrived.sum()
    assert answered > 0.99
    assert math.isfinite(quantile(done, 0.95)) and done.trace.backlog_s[-1].max() < 0.5
    kept = np.unique(done.trace.vcpu[:, 1])
    assert (len(kept) == 1) == name.startswith("kpa")


def test_status_grows_before_it_adds_replicas() -> None:
    status, kpa = run("status", growth=8.0), run("kpa")
    assert status.trace.ready[:, 1].max() <= 2 < kpa.trace.ready[:, 1].max()
    assert status.memory.mean() < kpa.memory.mean()


def test_lost_scrapes_leave_gaps_of_the_share_asked_for() -> None:
    done = run("kpa", "constant:160", lost_scrapes=0.3)
    assert done.trace.ready[-1, 1] == pytest.approx(160 / 35, abs=1)
    assert run("kpa-partial", "constant:160", lost_scrapes=0.3).trace.failed.sum() == 0
