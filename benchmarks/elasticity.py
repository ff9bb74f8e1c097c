"""Steps of traffic, as in the paper: memory and late queries over time, by shards and model-wise.

    python -m benchmarks.elasticity --out elasticity
    python -m benchmarks.elasticity --out elasticity --autoscaler kpa,status

One model is deployed twice on target local, by shards and whole, and both are scaled by the same
autoscaler under the same traffic. Each replica is held to a twelfth of a vCPU (cgroups), so that a
fleet fits on two cores and runs out of capacity as it would on machines of its own. Targets of
scaling: 70 % of what that vCPU can do, from CPU seconds per query that a calm run told. Traffic at
its peak needs eight whole models.

Memory is counted as if each replica had a machine of its own: RSS, in which rows that replicas
share here count for each. The simulator is told CPU seconds, RSS, the seconds until a replica is
ready and a calm query's median, and predicts replicas, memory and latency of the same runs: it
knows that a call under cgroups runs at full speed until a tenth of a second's allowance is used.
All runs are result directories; a page lays both measured ones side by side.

With `--autoscaler` the model by shards is scaled by each of them in turn, twice over; replicas of
`status` may grow to four times a twelfth of a vCPU.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from erless.cli.measure.loadtest import probe_of
from erless.deploy.local.supervisor.replica.cgroups import obstacle
from erless.observe.loadtest.locust.process import Load
from erless.observe.loadtest.measure import Measuring, measure
from erless.observe.loadtest.sampler import FunctionSample, Probe
from erless.observe.report.comparison import write_comparison
from erless.observe.simulator.fleet import Terms
from erless.observe.simulator.outcome import Simulation, run_simulation, write_simulation
from erless.specs.plan import AutoscalerName, Plan, Scaling, Tier
from erless.specs.result import Baseline, RunResult
from erless.specs.traffic import Traffic, parse_traffic
from loadtests.systems import LocalSystem, cpu_seconds, erless, local

VCPU = 1 / 12
UTILISATION = 0.7
PEAK = 8  # whole models that the traffic needs at its most
STEPS = (0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25)
STEP_S = 30.0
WINDOW_S = 20.0
MOST = 16  # replicas of a function
ROOM = 2.0  # times what a replica takes: the limit of its group
CALM_QPS, CALM_S = 50.0, 10.0
USERS = 256
SLA_MS = 400.0  # the paper's
POLICIES = ("model-wise", "joint")
GROWTH = 4.0  # of a replica, by the autoscaler `status`
ROUNDS = 2  # of the autoscalers in turn


class LimitsError(Exception):
    """This machine cannot hold replicas to a part of a core."""


@dataclass(frozen=True)
class Costs:
    """What a calm run of one replica each told, by function."""

    cpu_s: dict[str, float]  # per query of the gateway
    start_cpu_s: dict[str, float]  # until it was ready
    held: dict[str, int]
    median_s: float  # of a query

    @property
    def start_s(self) -> float:
        """Until a replica of `VCPU` is ready."""
        return max(self.start_cpu_s.values()) / VCPU


@dataclass(frozen=True)
class Inputs:
    """A model with its profile and queries, and a folder for what is made of them."""

    model: Path
    profile: Path
    folder: Path

    @property
    def queries(self) -> tuple[str, str]:
        """Locust's option."""
        return ("--queries", str(self.model / "queries.safetensors"))


def single(name: str) -> dict[str, Any]:
    """One replica with a core of its own."""
    still = Scaling(metric="rps", target=1e6, min_scale=1, max_scale=1)
    return {"scaling": still, "replicas": 1, "vcpu": 1.0}


def small(
    costs: Costs, qps: float, room: float = 1.0, autoscaler: AutoscalerName = "kpa"
) -> Callable[[str], dict[str, Any]]:
    """Replicas of `VCPU` that scale by what they cost, never below what `qps` needs.

    `room` times what a replica was seen to take is its memory.
    """
    growth = GROWTH if autoscaler == "status" else 1.0

    def change(name: str) -> dict[str, Any]:
        target = UTILISATION * VCPU / costs.cpu_s[name]
        least = math.ceil(qps / (target * growth))
        scaling = Scaling(
            metric="rps",
            target=target,
            window_s=WINDOW_S,
            min_scale=least,
            max_scale=MOST,
            autoscaler=autoscaler,
            max_vcpu=VCPU * growth if growth > 1 else None,
        )
        return {
            "scaling": scaling,
            "replicas": least,
            "vcpu": VCPU,
            "qps_per_replica": VCPU / costs.cpu_s[name],
            "memory_bytes": int(costs.held[name] * room),
        }

    return change


def changed(plan: Plan, change: Callable[[str], dict[str, Any]]) -> Plan:
    """The plan with each function changed."""
    shards = tuple(
        shard if shard.tier is Tier.RESIDENT else shard.model_copy(update=change(shard.name))
        for shard in plan.shards
    )
    gateway = plan.gateway.model_copy(update=change("gateway"))
    return plan.amended(shards=shards, gateway=gateway)


def packed(inputs: Inputs, plan: Plan, name: str) -> Path:
    """A store with the release of `plan`."""
    path, store = inputs.folder / f"{name}.json", inputs.folder / name
    plan.save(path)
    erless(
        "pack",
        "--model",
        inputs.model,
        "--profile",
        inputs.profile,
        "--plan",
        path,
        "--store",
        store,
    )
    return store


def planned(inputs: Inputs, policy: str, shards: int) -> Plan:
    """The model by shards, or whole."""
    path = inputs.folder / f"{policy}-as-planned.json"
    shape = ("--shards", shards) if policy == "joint" else ("--policy", policy)
    erless(
        "plan",
        "--model",
        inputs.model,
        "--profile",
        inputs.profile,
        "--traffic",
        f"{PEAK}x",
        "--equal-containers",
        *shape,
        "--out",
        path,
    )
    return Plan.load(path)


def calm(inputs: Inputs, plan: Plan, name: str) -> Costs:
    """Costs of each function, one replica each, at a rate far below what it can do."""
    store = packed(inputs, changed(plan, single), f"{name}-calm")
    with local(store, inputs.folder / f"state-{name}-calm") as system:
        start = _spent(system)
        load = Load(system.url, CALM_S, f"constant:{CALM_QPS:g}", USERS, inputs.queries)
        measure(load, inputs.folder / f"{name}-warm")  # fills caches, faults pages
        before = _spent(system)
        seen = measure(load, inputs.folder / f"{name}-calm-result")
        after = _spent(system)
        resident = _resident(system)
    cpu_s = {name: (after[name] - before[name]) / seen.answered for name in after}
    return Costs(cpu_s, start, resident, (seen.latency.p50_ms or 0.0) / 1e3)


def _spent(system: LocalSystem) -> dict[str, float]:
    return {name: cpu_seconds(pid) for pid, name in system.functions().items()}


def _resident(system: LocalSystem) -> dict[str, int]:
    """RSS by function, of all its replicas."""
    held: dict[str, int] = {}
    for pid, name in system.functions().items():
        try:
            held[name] = held.get(name, 0) + int(psutil.Process(pid).memory_info().rss)
        except psutil.NoSuchProcess:
            continue
    return held


def alone(system: LocalSystem, vcpu: list[float]) -> Probe:
    """What runs, with memory as if each replica had a machine of its own.

    `vcpu` gets, at each sample, what all replicas together may use.
    """
    ask = probe_of(system.target)

    def probe() -> tuple[list[FunctionSample], int]:
        functions, _ = ask()
        running = system.target.status().functions
        vcpu.append(sum(each.ready * (each.vcpu or VCPU) for each in running))
        resident = _resident(system)
        return [
            replace(function, memory_bytes=resident.get(function.name, 0)) for function in functions
        ], 0

    return probe


def simulated(plan: Plan, costs: Costs, traffic: Traffic) -> Simulation:
    """The run as the simulator sees it."""
    service = {name: value * 1e3 for name, value in costs.cpu_s.items()}
    shards = [value for name, value in costs.cpu_s.items() if name != "gateway"]
    hop_s = max(1e-5, costs.median_s - costs.cpu_s["gateway"] - max(shards, default=0.0))
    terms = Terms(start_s=costs.start_s, load_bytes_s=math.inf, hop_s=hop_s)
    return run_simulation(plan, traffic, terms, None, 0, service)


def one(
    inputs: Inputs,
    policy: str,
    plan: Plan,
    costs: Costs,
    traffic: Traffic,
    out: Path,
    base: RunResult | None,
    autoscaler: AutoscalerName = "kpa",
) -> tuple[dict[str, Any], RunResult]:
    """One policy under the steps: measured and predicted."""
    least, allowed = float(traffic.qps.min()), list[float]()
    name = policy if autoscaler == "kpa" else f"{policy}-{autoscaler}"
    store = packed(inputs, changed(plan, small(costs, least, ROOM, autoscaler)), name)
    fields: dict[str, Any] = {"title": f"{name}, measured", "policy": policy}
    if base is not None:
        fields["model_wise"] = Baseline(
            memory_bytes=base.memory_bytes,
            replicas=base.replicas,
            source="measured under the same traffic",
        )
    with local(store, inputs.folder / f"state-{name}", limits=True) as system:
        load = Load(system.url, traffic.duration_s, traffic.name, USERS, inputs.queries)
        measuring = Measuring(alone(system, allowed), fields, overwrite=True)
        seen = measure(load, out / name, measuring, sla_ms=SLA_MS)
    run = simulated(changed(plan, small(costs, least, 1.0, autoscaler)), costs, traffic)
    document = write_simulation(
        out / f"{name}-simulated",
        run,
        title=f"{name}, simulated",
        sla_ms=SLA_MS,
        overwrite=True,
    )
    return {
        "policy": name,
        "measured": _told(seen) | {"vcpu": sum(allowed) / max(1, len(allowed))},
        "simulated": _told(document) | {"vcpu": float(run.vcpu.mean())},
        "wrong": seen.failures.get("wrong prediction", 0),
        "cpu_ms": {name: value * 1e3 for name, value in costs.cpu_s.items()},
        "start_s": costs.start_s,
        "traffic": traffic.name,
    }, seen


def _told(run: RunResult) -> dict[str, Any]:
    return {
        "queries": run.queries,
        "failed": run.failed,
        "late": run.late_share,
        "mean_ms": run.latency.mean_ms,
        "p50_ms": run.latency.p50_ms,
        "p95_ms": run.latency.p95_ms,
        "p99_ms": run.latency.p99_ms,
        "replicas": run.replicas.mean,
        "most_replicas": run.replicas.peak,
        "memory_bytes": run.memory_bytes.mean,
        "most_memory_bytes": run.memory_bytes.peak,
    }


def elasticity(inputs: Inputs, shards: int, out: Path) -> list[dict[str, Any]]:
    """Both policies under the same steps.

    Raises:
        LimitsError: replicas cannot be held to a part of a core here.
    """
    if reason := obstacle():
        raise LimitsError(f"replicas cannot be held to {VCPU:.2f} vCPU: {reason}")
    plans = {policy: planned(inputs, policy, shards) for policy in POLICIES}
    costs = {policy: calm(inputs, plan, policy) for policy, plan in plans.items()}
    peak = PEAK * UTILISATION * VCPU / costs["model-wise"].cpu_s["gateway"]
    shape = "step:" + ",".join(f"{part * peak:.1f}" for part in STEPS)
    traffic = parse_traffic(shape, STEP_S * len(STEPS))
    rows: list[dict[str, Any]] = []
    base = None
    for policy in POLICIES:
        row, seen = one(inputs, policy, plans[policy], costs[policy], traffic, out, base)
        rows.append(row)
        base = base or seen
    write_comparison(out / POLICIES[1], out / POLICIES[0], out / "report.html")
    return rows


def autoscaled(
    inputs: Inputs, shards: int, out: Path, autoscalers: Sequence[AutoscalerName], step_s: float
) -> list[dict[str, Any]]:
    """The model by shards, scaled by each autoscaler in turn, `ROUNDS` times.

    Raises:
        LimitsError: replicas cannot be held to a part of a core here.
    """
    if reason := obstacle():
        raise LimitsError(f"replicas cannot be held to {VCPU:.2f} vCPU: {reason}")
    plan = planned(inputs, "joint", shards)
    costs = calm(inputs, plan, "joint")
    peak = PEAK * UTILISATION * VCPU / max(costs.cpu_s.values())
    shape = "step:" + ",".join(f"{part * peak:.1f}" for part in STEPS)
    traffic = parse_traffic(shape, step_s * len(STEPS))
    rows = []
    for _ in range(ROUNDS):
        for autoscaler in autoscalers:
            row, _ = one(inputs, "joint", plan, costs, traffic, out, None, autoscaler)
            rows.append(row)
    names = ["joint" if name == "kpa" else f"joint-{name}" for name in autoscalers]
    if len(names) > 1:
        write_comparison(out / names[1], out / names[0], out / "report.html")
    return rows


def side_by_side(rows: list[dict[str, Any]]) -> str:
    """One line for each run: measured, and what the simulator predicted."""
    lines = [
        "| | queries | replicas | vCPU | memory | late | failed | mean | p50 | p95 | p99 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for kind in ("measured", "simulated"):
            run = row[kind]
            lines.append(
                f"| {row['policy']}, {kind} | {run['queries']:,} | {run['replicas']:.1f} | "
                f"{run['vcpu']:.2f} | {run['memory_bytes'] / 1e9:.2f} GB | {run['late']:.2%} | "
                f"{run['failed']} | {run['mean_ms']:.1f} ms | {run['p50_ms']:.1f} ms | "
                f"{run['p95_ms']:.1f} ms | {run['p99_ms']:.1f} ms |"
            )
    return "\n".join(lines)


def markdown(rows: list[dict[str, Any]]) -> str:
    """One line for each policy: measured, and by how much the prediction was off."""
    lines = [
        "| policy | queries | memory, mean | most | replicas, mean | most | late | failed | "
        "p50 | p95 | p99 | predicted memory | replicas | most |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seen, guess = row["measured"], row["simulated"]
        off = [
            guess[name] / seen[name] - 1 for name in ("memory_bytes", "replicas", "most_replicas")
        ]
        lines.append(
            f"| {row['policy']} | {seen['queries']:,} | {seen['memory_bytes'] / 1e9:.2f} GB | "
            f"{seen['most_memory_bytes'] / 1e9:.2f} GB | {seen['replicas']:.1f} | "
            f"{seen['most_replicas']:.0f} | {seen['late']:.2%} | {seen['failed']} | "
            f"{seen['p50_ms']:.1f} ms | {seen['p95_ms']:.1f} ms | {seen['p99_ms']:.1f} ms | "
            + " | ".join(f"{share:+.1%}" for share in off)
            + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """Make a model, run, print."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--out", type=Path, default=Path("elasticity"))
    parser.add_argument("--rows", type=int, default=500_000, help="per table of RM1")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--autoscaler", default="", help="kpa,status: compare these, by shards")
    parser.add_argument("--step", type=float, default=STEP_S, help="seconds of each step")
    parser.add_argument("--output", choices=["json", "markdown"], default="markdown")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="erless-elasticity-") as name:
        folder = Path(name)
        inputs = Inputs(folder / "m", folder / "p", folder)
        erless("example", "rm1", "--rows", options.rows, "--out", inputs.model)
        erless(
            "profile",
            "--model",
            inputs.model,
            "--log",
            inputs.model / "access.parquet",
            "--out",
            inputs.profile,
        )
        chosen = options.autoscaler.split(",")
        every: tuple[AutoscalerName, ...] = ("kpa", "status")
        names = [name for name in every if name in chosen]
        try:
            if names:
                rows = autoscaled(inputs, options.shards, options.out, names, options.step)
            else:
                rows = elasticity(inputs, options.shards, options.out)
        except LimitsError as error:
            sys.exit(str(error))
    table = side_by_side if names else markdown
    print(json.dumps(rows, indent=2) if options.output == "json" else table(rows))


if __name__ == "__main__":
    main()
