"""Rows on disks in a simulation: what reads add, what they limit, and what the report says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from erless.observe.report.result import write_report
from erless.observe.simulator.fleet import Fleet, NodeType, Terms, fleet_of
from erless.observe.simulator.latency import weighted_quantiles
from erless.observe.simulator.nodes import Nodes
from erless.observe.simulator.outcome import Simulation, run_simulation, write_simulation
from erless.specs.plan import DiskPlan, ShardPlan
from erless.specs.traffic import parse_traffic
from tests.observe.simulator.plans import GB, plan, shard

DISK = DiskPlan(
    cache_bytes=GB // 10, reads=200.0, size_bytes=50 * GB, reserved_iops=20_000, latency_ms=11.0
)
CALM = Terms(hop_s=0.0)


def simulated(function: ShardPlan, qps: float) -> Simulation:
    return run_simulation(plan(function), parse_traffic(f"constant:{qps}", 600), CALM, seed=1)


def p95_s(simulation: Simulation) -> float:
    samples = simulation.samples
    weight = np.broadcast_to(samples.weight[:, None], samples.latency_s.shape)
    return float(weighted_quantiles(samples.latency_s.ravel(), weight.ravel(), (0.95,))[0])


def fixed(replicas: int, disk: DiskPlan | None) -> ShardPlan:
    limits = {"min_scale": replicas, "max_scale": replicas}
    return shard(rate=1000.0, replicas=replicas, scaling=limits, disk=disk)


def test_reads_add_their_time_and_wait_for_each_other() -> None:
    without, idle, busy = (
        p95_s(simulated(fixed(1, disk), qps))
        for disk, qps in ((None, 5.0), (DISK, 5.0), (DISK, 70.0))
    )
    read_s = DISK.reads / DISK.reserved_iops
    assert idle == pytest.approx(without + read_s, rel=0.15)
    assert busy > idle + read_s  # 70 % of the disk is taken


def test_a_disk_limits_what_its_cores_could_serve() -> None:
    done = simulated(fixed(1, DISK), 150.0)  # its cores do 1,000, its disk 100
    assert done.trace.failed.sum() > 0
    assert simulated(fixed(2, DISK), 150.0).trace.failed.sum() == 0
    assert simulated(fixed(1, None), 150.0).trace.failed.sum() == 0


def test_machines_give_disks_too() -> None:
    fleet: Fleet = fleet_of(plan(fixed(1, DISK)), CALM)
    kind = NodeType("i", 8.0, 64 * GB, disk_bytes=100 * GB, read_iops=1e6)
    replicas = np.array([1, 4])
    room = replace(CALM, fill=1.0)
    takes = fleet.vcpu, fleet.memory, fleet.disks
    assert Nodes(kind, room, *takes).needed(replicas) == 2  # two of 50 GB on each
    slow = replace(kind, read_iops=20_000.0)
    pool = Nodes(slow, room, *takes, ready=2)
    assert pool.needed(replicas) == 4
    assert pool.room(np.array([1, 1]), np.array([0, 3])).tolist() == [0, 1]


def test_the_report_tells_bytes_reads_and_time(tmp_path: Path) -> None:
    done = simulated(fixed(2, DISK), 60.0)
    result = write_simulation(tmp_path / "r", done, title="disks")
    (gateway, hot) = result.functions
    assert gateway.disk_ms is None and not gateway.disk_bytes.peak
    assert hot.disk_bytes.mean == 100 * GB
    assert hot.disk_reads_s.mean == pytest.approx(60 * DISK.reads, rel=0.05)
    write_report(tmp_path / "r", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "on disk" in page and "11.0 ms" in page and "rows on nodes&#x27; disks" in page
