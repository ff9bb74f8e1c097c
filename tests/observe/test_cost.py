"""A plan's dollars at the replicas that ran."""

from __future__ import annotations

from pathlib import Path

import pytest

from erless.observe.cost import priced, whole_model_usd
from erless.observe.loadtest.locust.process import Load
from erless.observe.loadtest.measure import Measuring, Run, fill
from erless.observe.loadtest.record import read_record
from erless.observe.loadtest.sampler import FunctionSample, Sample, Sampler
from erless.specs.plan import GatewayPlan, PolicyResult
from erless.specs.result import FunctionResult, Usage
from tests.observe.simulator.plans import plan, shard

GATEWAY = GatewayPlan(replicas=2, usd_per_month=100.0)
HOT = shard("hot", replicas=4, usd_per_month=80.0)
RESIDENT = shard("resident", tier="resident", replicas=2)
WHOLE = PolicyResult(
    policy="model-wise",
    memory_bytes=1,
    memory_reduction=1,
    memory_utility=0.1,
    functions=1,
    containers=4,
    fan_out=0,
    vcpu=4,
    nodes=2,
    usd_per_month=800.0,
    predicted_p95_ms=1,
    lower_bound=1,
    lower_bound_gap=0,
)


def ran(name: str, replicas: float) -> FunctionResult:
    return FunctionResult(name=name, replicas=Usage(mean=replicas, peak=replicas))


def test_dollars_follow_the_replicas() -> None:
    found = priced(
        [ran("gateway", 3), ran("hot", 0.5), ran("other", 9)], plan(HOT, RESIDENT, gateway=GATEWAY)
    )
    assert [each.usd_per_month for each in found] == [150, 10, 0]


def test_a_whole_model_costs_what_was_reckoned() -> None:
    assert whole_model_usd(plan(HOT, policies=(WHOLE,))) == 200
    assert whole_model_usd(plan(HOT)) == 0


@pytest.mark.parametrize("reckoned", [True, False])
def test_a_measured_run_has_dollars(tmp_path: Path, reckoned: bool) -> None:
    record = tmp_path / "record"
    record.write_text("# start 1000.0\n0.5\t0.01\t\tnan\t\n1.5\t0.01\t\tnan\t\n")

    def sample(at_s: float, replicas: int) -> Sample:
        found = FunctionSample("hot", "sparse", "hot", replicas, replicas, 1.0, None, 100)
        return Sample(at_s, (found,), 1000 * replicas)

    sampler = Sampler(None)
    sampler.samples = [sample(1000.2, 1), sample(1001.2, 3)]
    loaded = plan(HOT, gateway=GATEWAY, policies=(WHOLE,) if reckoned else ())
    run = Run(Load("http://host", 2.0), read_record(record), sampler, interrupted=False)
    result = fill(tmp_path, run, Measuring(plan=loaded))
    assert result.usd_per_month == 2 * 20
    assert result.model_wise is not None
    assert result.model_wise.replicas == Usage(mean=2, peak=3)
    assert result.model_wise.usd_per_month == (400 if reckoned else 0)
