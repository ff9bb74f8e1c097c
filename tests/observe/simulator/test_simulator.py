"""The simulator against an exact event-driven queue, and what must hold in any simulation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erless.errors import PlanError
from erless.observe.report.result import write_report
from erless.observe.results import read_result
from erless.observe.simulator.fleet import NodeType, Terms, fleet_of
from erless.observe.simulator.latency import weighted_quantiles
from erless.observe.simulator.outcome import Simulation, run_simulation, write_simulation
from erless.specs.plan import Scaling, Tier
from erless.specs.traffic import Traffic, parse_traffic
from tests.conftest import Cli
from tests.observe.simulator.plans import GB, plan, shard

NODE = NodeType("n", 4.0, 10 * GB)


def run(traffic: str | Traffic, *shards: Any, seconds: float = 600, **terms: Any) -> Simulation:
    load = parse_traffic(traffic, seconds) if isinstance(traffic, str) else traffic
    return run_simulation(plan(*shards), load, Terms(**terms), terms.pop("node", None), seed=1)


def quantile(simulation: Simulation, part: float) -> float:
    samples = simulation.samples
    weight = np.broadcast_to(samples.weight[:, None], samples.latency_s.shape)
    return float(weighted_quantiles(samples.latency_s.ravel(), weight.ravel(), (part,))[0])


def exact(rate: float, service_s: float, replicas: int, seconds: float) -> np.ndarray:
    """Sojourn times in parallel queues under random routing, query by query (Lindley)."""
    generator = np.random.default_rng(7)
    found = []
    for _ in range(replicas):
        due = np.sort(generator.random(generator.poisson(rate / replicas * seconds)) * seconds)
        free = 0.0
        for at in due:
            free = max(free, at) + service_s
            found.append(free - at)
    return np.array(found)


@pytest.mark.parametrize("busy", [0.3, 0.6, 0.8, 0.9])
def test_latency_agrees_with_an_exact_queue(busy: float) -> None:
    replicas, rate = 4, 100.0
    fixed = shard(rate=rate, replicas=replicas, scaling={"min_scale": 4, "max_scale": 4})
    simulated = run(f"constant:{busy * rate * replicas}", fixed, seconds=4000, hop_s=0.0)
    truth = exact(busy * rate * replicas, 1 / rate, replicas, 8000)
    for part in (0.5, 0.95, 0.99):
        expected = float(np.quantile(truth, part))
        assert quantile(simulated, part) == pytest.approx(expected, rel=0.12), part


def test_replicas_follow_the_traffic() -> None:
    done = run("step:60,420,60", shard(rate=100), seconds=1800, start_s=1.0, load_bytes_s=1e9)
    ready = done.trace.ready[:, 1]
    assert ready[200] == 1
    assert ready[580] in (6, 7)  # 420 ÷ (100 · 0.7)
    assert ready[-1] == 1
    assert done.trace.failed.sum() == 0


def test_more_replicas_come_only_after_their_cold_start() -> None:
    done = run("step:50,300", shard(rate=100), seconds=400, start_s=30.0, load_bytes_s=1e9)
    step = 100  # the traffic's step, in ticks of 2 s
    assert done.trace.wanted[step + 3, 1] > 1
    assert done.trace.ready[step + 12, 1] == 1
    assert done.trace.ready[step + 25, 1] > 1
    assert done.trace.placed[step + 12, 1] > 1  # starting replicas hold memory already
    assert done.trace.backlog_s[step + 12, 1] > 1


def test_a_machine_must_boot_first() -> None:
    load = parse_traffic("step:50,900", 800)
    slow = Terms(start_s=1.0, node_boot_s=60.0)
    done = run_simulation(plan(shard(rate=100)), load, slow, NODE, seed=1)
    reached = np.argmax(done.trace.ready[:, 1] >= 12) * 2
    assert 460 <= reached <= 540
    assert done.trace.nodes[0] == 1 and done.trace.nodes[-1] >= 4
    room = NODE.vcpu * slow.fill * done.trace.nodes
    assert (done.trace.placed @ done.fleet.vcpu <= room + 1e-6).all()


def test_asleep_functions_wake() -> None:
    frozen = shard(
        "frozen",
        rate=100,
        tier=Tier.FROZEN,
        replicas=0,
        touch_probability=0.02,
        scaling={
            "min_scale": 0,
            "window_s": 6.0,
            "grace_s": 6.0,
            "initial_scale": 0,
            "max_scale": 5,
        },
    )
    wait = run("constant:1", frozen, seconds=7200, start_s=1.0)
    cold = wait.samples.cold
    assert 0 < (wait.trace.ready[:, 1] > 0).mean() < 0.9
    assert cold.any()
    assert np.nanmin(wait.samples.latency_s[cold]) > 1.0
    assert [each.kind for each in wait.trace.events][:1] == ["cold start"]
    default = run("constant:1", frozen, seconds=7200, start_s=1.0, cold_miss="default")
    assert default.samples.degraded.any()
    assert np.nanmax(default.samples.latency_s) < 0.5


def test_queries_past_the_deadline_fail() -> None:
    fixed = shard(rate=100, scaling={"max_scale": 1})
    done = run("constant:200", fixed, seconds=600, deadline_s=5.0)
    assert done.trace.failed.sum() == pytest.approx(60_000, rel=0.05)
    assert done.trace.backlog_s.max() <= 5.1


def test_failures_are_mended() -> None:
    stable = shard(rate=100, replicas=20, scaling={"min_scale": 20, "max_scale": 40})
    done = run_simulation(
        plan(stable),
        parse_traffic("constant:1000", 7200),
        Terms(replica_mtbf_s=3600, start_s=4.0),
        None,
        seed=3,
    )
    ready = done.trace.ready[:, 1]
    assert ready.min() < 20
    assert ready.mean() > 19.5
    failures = [each for each in done.trace.events if each.kind == "failure"]
    assert 20 < len(failures) < 60  # 20 replicas, 2 hours, one failure an hour each


def test_a_shared_host_slows_everything() -> None:
    alone = run("constant:120", shard(rate=100, replicas=2, scaling={"min_scale": 2}))
    shared = run(
        "constant:120",
        shard(rate=100, replicas=2, scaling={"min_scale": 2}),
        host_cores=2,
        call_spread=0.5,
    )
    assert quantile(shared, 0.5) > 1.2 * quantile(alone, 0.5)


def test_measured_times_replace_the_plan(tmp_path: Path) -> None:
    assert fleet_of(plan(shard()), Terms(), {"hot": 4.0}).service_s[1] == 0.004
    with pytest.raises(PlanError, match="hot: the plan has no qps_per_replica"):
        fleet_of(plan(shard(qps_per_replica=0.0)), Terms())


def test_the_result_adds_up(tmp_path: Path) -> None:
    done = run("step:50,300,50", shard(rate=100), seconds=1200)
    again = run("step:50,300,50", shard(rate=100), seconds=1200)
    result = write_simulation(tmp_path / "s", done, title="t", sla_ms=50.0, against=again)
    stored = read_result(tmp_path / "s")
    assert result.queries == done.trace.arrived.sum() == result.answered + result.failed
    assert (stored.timeline["offered_qps"] * 2).sum() == pytest.approx(result.queries)
    assert result.memory_reduction == 1
    late = (stored.timeline["late"] * stored.timeline["offered_qps"]).sum() * 2 / result.queries
    assert late == pytest.approx(result.late_share, abs=1e-4)
    ready = stored.of_function("hot")["ready"]
    np.testing.assert_array_equal(ready, done.trace.ready[:, 1])
    write_report(tmp_path / "s", tmp_path / "r.html")
    assert "simulated" in (tmp_path / "r.html").read_text()


def test_no_traffic_at_all() -> None:
    done = run("constant:0", shard())
    assert done.trace.arrived.sum() == 0
    assert math.isnan(quantile(done, 0.5))


def test_the_verb(tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "plan.json"
    plan(shard(scaling={"max_scale": 9}), gateway_rate=500).save(path)
    run = cli(
        "simulate",
        "--plan",
        path,
        "--traffic",
        "step:50,300",
        "--duration",
        300,
        "--out",
        tmp_path / "s",
        "--against",
        path,
        "-o",
        "json",
        "--sla-p95-ms",
        100,
    )
    assert run.returncode == 0, run.stderr
    assert '"source": "simulate"' in run.stdout
    notes = json.loads(run.stdout)["notes"]
    assert "a machine boots in 90 s" in notes[1], notes
    bad = cli("simulate", "--plan", path, "--traffic", "wave:3", "--out", tmp_path / "t")
    assert bad.returncode == 1
    assert "shapes are constant, step, ramp" in bad.stderr and not (tmp_path / "t").exists()
    bad = cli(
        "simulate",
        "--plan",
        path,
        "--traffic",
        "constant:3",
        "--out",
        tmp_path / "t",
        "--service",
        "hot=fast",
    )
    assert "write it as hot=0.8" in bad.stderr
    where = ("simulate", "--plan", path, "--traffic", "step:50,300", "--duration", 60)
    grown = cli(*where, "--out", tmp_path / "g", "--autoscaler", "status", "-o", "json")
    assert json.loads(grown.stdout)["vcpu"]["peak"] > 2, grown.stderr
    bad = cli(*where, "--out", tmp_path / "t", "--autoscaler", "hpa")
    assert "one of kpa, status, showar, autothrottle" in bad.stderr


def test_scaling_is_the_autoscalers() -> None:
    assert Scaling().window_s == 60  # the tests above rest on Knative's defaults
