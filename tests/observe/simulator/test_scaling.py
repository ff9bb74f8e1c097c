"""What the planner tells the autoscaler, tried in the simulator: steps of the planned traffic."""

from __future__ import annotations

import numpy as np
import pytest

from erless.observe.simulator.fleet import Terms
from erless.observe.simulator.outcome import Simulation, run_simulation
from erless.plan.planner import Planner
from erless.plan.report.document import plan_document
from erless.plan.request import PlanRequest
from erless.plan.source import workload_tables
from erless.specs.plan import Plan
from erless.specs.traffic import parse_traffic

STEPS = (0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25)


def planned(policy: str) -> Plan:
    model, tables = workload_tables("rm1", 0.9, 32)
    request = PlanRequest(policy=policy, traffic=16.0, equal_containers=True, sla_p95_ms=400.0)
    return plan_document(Planner(model, tables, request).outcome(), "m" * 64, "p" * 64)


def late_share(run: Simulation, limit_s: float) -> float:
    values = run.samples.latency_s
    weight = np.broadcast_to(run.samples.weight[:, None], values.shape)
    return float(weight[np.isnan(values) | (values > limit_s)].sum() / weight.sum())


def test_gateways_follow_without_overshooting() -> None:
    plan = planned("joint")
    rate, p95_s = (
        plan.gateway.qps_per_replica,
        (plan.result or pytest.fail()).predicted_p95_ms / 1e3,
    )
    assert plan.gateway.scaling.target == pytest.approx(max(1.0, 2 * rate * p95_s))
    rates = ",".join(f"{part * plan.qps:.1f}" for part in STEPS)
    run = run_simulation(plan, parse_traffic(f"step:{rates}", 2100), Terms())
    assert late_share(run, 0.4) < 0.01
    assert run.trace.ready[:, 0].mean() < 1.2 * plan.gateway.replicas


def test_the_baseline_keeps_the_papers_rule() -> None:
    plan = planned("elasticrec")
    assert plan.gateway.scaling.target == pytest.approx(0.65 * 0.4 * plan.gateway.qps_per_replica)
