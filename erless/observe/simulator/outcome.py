"""From a simulation's steps to a result directory, in the same format as a load test's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.observe.results import Series, write_result
from erless.observe.simulator.engine import Trace, simulate
from erless.observe.simulator.fleet import Fleet, NodeType, Terms, fleet_of
from erless.observe.simulator.latency import Samples, sample_latencies, weighted_quantiles
from erless.observe.simulator.nodes import Nodes
from erless.specs.dollars import part_of_machines, plan_usd
from erless.specs.plan import Plan
from erless.specs.result import Baseline, FunctionResult, Latency, RunResult, Usage
from erless.specs.traffic import Traffic

__all__ = ["Simulation", "run_simulation", "write_simulation"]

Columns = dict[str, NDArray[Any]]
ROWS = 1440  # of the timeline: a minute each for a day
QUANTILES = (0.50, 0.95, 0.99)


@dataclass(frozen=True)
class Simulation:
    """A plan under traffic, and all that came of it."""

    plan: Plan
    traffic: Traffic
    terms: Terms
    node: NodeType | None
    fleet: Fleet
    trace: Trace
    samples: Samples

    @property
    def memory(self) -> NDArray[np.float64]:
        """Bytes that replicas hold, ready or starting, in each step: (T,)."""
        return np.asarray(self.trace.placed @ self.fleet.memory, np.float64)

    @property
    def vcpu(self) -> NDArray[np.float64]:
        """vCPU that replicas may use, ready or starting, in each step: (T,)."""
        return np.asarray((self.trace.placed * self.trace.vcpu).sum(axis=1), np.float64)

    @property
    def vcpu_of_functions(self) -> NDArray[np.float64]:
        """The same by function, on average: (F,)."""
        return np.asarray((self.trace.placed * self.trace.vcpu).mean(axis=0), np.float64)

    @property
    def usd_per_month(self) -> float:
        """The plan's dollars, by how many machines there were and how many its replicas take.

        As many as the plan's own replicas take cost what its table says; fixed machines always do.
        """
        if self.node is None:
            return plan_usd(self.plan)
        machines = float(self.trace.nodes.mean()) / self._planned_nodes(self.node)
        return plan_usd(self.plan) * machines

    def _planned_nodes(self, node: NodeType) -> int:
        """Machines that hold the plan's replicas, by the same count as in the simulation."""
        fleet = self.fleet
        pool = Nodes(node, self.terms, fleet.vcpu, fleet.memory, fleet.disks)
        return pool.needed(np.array([function.initial for function in fleet.functions]))

    def baseline(self) -> Baseline:
        """This simulation as what another is compared with."""
        result = self.plan.result
        return Baseline(
            memory_bytes=_usage(self.memory),
            replicas=_usage(self.trace.placed.sum(axis=1)),
            usd_per_month=self.usd_per_month,
            memory_utility=result.memory_utility if result else None,
            source=f"{self.plan.policy} simulated under the same traffic",
        )


def run_simulation(
    plan: Plan,
    traffic: Traffic,
    terms: Terms,
    node: NodeType | None = None,
    seed: int = 0,
    service_ms: Mapping[str, float] | None = None,
) -> Simulation:
    """Simulate `plan` under `traffic`.

    Raises:
        PlanError: the plan lacks the rate of a function.
    """
    fleet = fleet_of(plan, terms, service_ms)
    trace = simulate(fleet, traffic, terms, node, seed)
    samples = sample_latencies(fleet, trace, terms, seed)
    return Simulation(plan, traffic, terms, node, fleet, trace, samples)


def write_simulation(
    folder: Path,
    simulation: Simulation,
    *,
    title: str,
    sla_ms: float | None = None,
    against: Simulation | None = None,
    overwrite: bool = False,
    notes: tuple[str, ...] = (),
) -> RunResult:
    """Write the result directory.

    Raises:
        ArtifactError: `folder` exists and may not be replaced.
        StorageError: the disk refused.
    """
    plan, trace = simulation.plan, simulation.trace
    group = max(1, -(-len(trace.t_s) // ROWS))
    fields = {
        "source": "simulate",
        "title": title,
        "plan_digest": plan.digest,
        "policy": plan.policy,
        "duration_s": simulation.traffic.duration_s,
        "sla_p95_ms": sla_ms,
        "arrivals": f"{simulation.traffic.name}, Poisson",
        "memory_bytes": _usage(simulation.memory),
        "replicas": _usage(trace.placed.sum(axis=1)),
        "vcpu": _usage(simulation.vcpu),
        "usd_per_month": simulation.usd_per_month,
        "memory_utility": plan.result.memory_utility if plan.result else None,
        "model_wise": against.baseline() if against else None,
        "functions": _functions(simulation),
        "notes": (*simulation.traffic.notes, *notes),
        **_totals(simulation, sla_ms),
    }
    series = Series(
        _timeline(simulation, group, sla_ms), _per_function(simulation, group), trace.events
    )
    return write_result(folder, fields, series, overwrite=overwrite)


def _usage(values: NDArray[Any]) -> Usage:
    return Usage(mean=float(values.mean()), peak=float(values.max(initial=0)))


def _counted(simulation: Simulation) -> tuple[NDArray[np.float64], Samples]:
    """Queries that each sample stands for, less those that failed in the queues: (T, S)."""
    trace, samples = simulation.trace, simulation.samples
    answered_share = 1 - trace.failed / np.maximum(trace.arrived, 1)
    count = samples.latency_s.shape[1]
    return np.repeat((samples.weight * answered_share)[:, None], count, axis=1), samples


def _totals(simulation: Simulation, sla_ms: float | None) -> dict[str, Any]:
    weight, samples = _counted(simulation)
    values = samples.latency_s
    good = np.isfinite(values)
    queries = int(simulation.trace.arrived.sum())
    failed = int(simulation.trace.failed.sum()) + round(float(weight[~good].sum()))
    late = failed
    if sla_ms is not None:
        late += round(float(weight[good & (values * 1e3 > sla_ms)].sum()))
    latency = Latency()
    if weight[good].sum() > 0:
        p50, p95, p99 = weighted_quantiles(values.ravel(), weight.ravel(), QUANTILES) * 1e3
        mean = float(np.average(values[good], weights=weight[good])) * 1e3
        latency = Latency(mean_ms=mean, p50_ms=p50, p95_ms=p95, p99_ms=p99)
    return {
        "queries": queries,
        "answered": max(0, queries - failed),
        "failures": {"deadline": failed} if failed else {},
        "degraded": round(float((weight * samples.degraded).sum())),
        "cold_starts": round(float((weight * samples.cold).sum())),
        "late_share": min(1.0, late / queries) if queries else 0.0,
        "latency": latency,
    }


def _functions(simulation: Simulation) -> tuple[FunctionResult, ...]:
    fleet, trace = simulation.fleet, simulation.trace
    shares = _dollar_shares(simulation)
    return tuple(
        FunctionResult(
            name=function.name,
            kind=function.kind,
            tier=function.tier,
            replicas=_usage(trace.placed[:, index]),
            memory_bytes=_usage(trace.placed[:, index] * fleet.memory[index]),
            usd_per_month=simulation.usd_per_month * float(shares[index]),
            zero_share=float((trace.ready[:, index] == 0).mean()),
            **_disk(simulation, index),
        )
        for index, function in enumerate(fleet.functions)
    )


def _disk(simulation: Simulation, index: int) -> dict[str, Any]:
    """Fields about a function's rows on disks; none where it has none there."""
    function, trace = simulation.fleet.functions[index], simulation.trace
    if function.disk is None:
        return {}
    reads = function.disk.reads / max(function.touch, 1e-9)
    return {
        "disk_bytes": _usage(trace.placed[:, index] * float(function.disk.size_bytes)),
        "disk_reads_s": _usage(trace.called[:, index] / trace.step_s * reads),
        "disk_ms": function.disk.latency_ms,
    }


def _dollar_shares(simulation: Simulation) -> NDArray[np.float64]:
    """Each function's part of the machines: (F,)."""
    replicas = simulation.trace.placed.mean(axis=0)
    cpu, memory = simulation.vcpu_of_functions, replicas * simulation.fleet.memory
    return part_of_machines(cpu / max(cpu.sum(), 1e-9), memory / max(memory.sum(), 1e-9))


def _timeline(simulation: Simulation, group: int, sla_ms: float | None) -> Columns:
    trace = simulation.trace
    weight, samples = _counted(simulation)
    begins = np.arange(0, len(trace.t_s), group)
    ends = np.append(begins[1:], len(trace.t_s))
    span = np.minimum(ends * trace.step_s, simulation.traffic.duration_s) - begins * trace.step_s
    arrived = np.add.reduceat(trace.arrived, begins)
    lost = np.add.reduceat(trace.failed, begins).astype(np.float64)
    quantiles = np.full((3, len(begins)), np.nan)
    late, cold, degraded = (np.zeros(len(begins)) for _ in range(3))
    for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        values, heavy = samples.latency_s[begin:end], weight[begin:end]
        if heavy.any():
            quantiles[:, row] = weighted_quantiles(values.ravel(), heavy.ravel(), QUANTILES)
        bad = np.isnan(values)
        lost[row] += (heavy * bad).sum()
        over = values * 1e3 > sla_ms if sla_ms is not None else np.zeros_like(bad)
        late[row] = lost[row] + (heavy * over).sum()
        cold[row] = (heavy * samples.cold[begin:end]).sum()
        degraded[row] = (heavy * samples.degraded[begin:end]).sum()
    return {
        "t_s": trace.t_s[begins],
        "offered_qps": arrived / span,
        "failed_qps": lost / span,
        "served_qps": np.maximum(0.0, arrived - lost) / span,
        "late": np.minimum(1.0, late / np.maximum(arrived, 1)),
        "cold_starts": np.rint(cold).astype(np.int64),
        "degraded": np.rint(degraded).astype(np.int64),
        **dict(zip(("p50_ms", "p95_ms", "p99_ms"), quantiles * 1e3, strict=True)),
    }


def _per_function(simulation: Simulation, group: int) -> Columns:
    """Every `group`-th step of each function."""
    trace, fleet = simulation.trace, simulation.fleet
    begins = np.arange(0, len(trace.t_s), group)
    size = len(fleet)
    names = np.array([function.name for function in fleet.functions], object)
    return {
        "t_s": np.repeat(trace.t_s[begins], size),
        "function": np.tile(names, len(begins)),
        "ready": trace.ready[begins].ravel(),
        "wanted": trace.wanted[begins].ravel(),
        "rps": (trace.called[begins] / trace.step_s).ravel(),
        "memory_bytes": np.rint(trace.placed[begins] * fleet.memory).astype(np.int64).ravel(),
    }
