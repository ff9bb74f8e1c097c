"""The paper's evaluation: measured at this machine's scale, simulated at full scale, side by side.

    python -m benchmarks.evaluation --output markdown

Measured (one run): RM1, RM2, RM3; locality 10, 50, 90 %; 1, 2, 4, 8 remote shards. Each case is
made, profiled, planned, packed and deployed with one replica per function; queries go through the
gateway and are compared with the monolith's answers. From the CPU seconds that each process spends
per query and the memory that it takes follows what traffic of eight monoliths' worth needs:

    replicas of f = ⌈8 · cpu(f) / cpu(monolith)⌉      memory = Σ replicas · RSS of one

against eight monoliths (RSS: as if each replica were alone on its machine). CPU seconds, unlike
seconds, do not depend much on who else uses the machine; what is left of that dependence is in both
sides, because they take turns, and medians over the rounds are told.
Memory utility is counted: rows that 1,000 queries touch, spread evenly over the replicas.

Steps of traffic (`elasticity.py`): RM1 by shards and model-wise, both scaled by the autoscaler,
their memory and late queries over time. Result directories and a page of them stay in `--out`.

Full scale (20 M rows): planned on the paper's terms at eight replicas' traffic and simulated under
steps of it, with cold starts and machines that must boot.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.elasticity import Inputs, LimitsError, changed, elasticity, single
from benchmarks.elasticity import markdown as elasticity_markdown
from erless.cli.measure.simulate import node_of
from erless.dlrm.queries import Query
from erless.dlrm.workload import WORKLOADS
from erless.importers.synthetic import queries_of
from erless.observe.loadtest.monolith import MonolithServer
from erless.observe.loadtest.served_model import discover
from erless.observe.simulator.fleet import Terms
from erless.observe.simulator.outcome import Simulation, run_simulation
from erless.specs.plan import Plan
from erless.specs.profile import MANIFEST, Profile, TableAccess
from erless.specs.traffic import parse_traffic
from erless.storage.tensors import TensorFile
from loadtests.closed_loop import ClosedLoop, run_closed_loop
from loadtests.systems import Traffic, cpu_seconds, erless, local

TIMES = 8
ROUNDS = 5
CONNECTIONS = 4
UTILITY_QUERIES = 1000
# AWS Fargate, us-east-1, on demand: dollars per vCPU hour and per GB hour
VCPU_HOUR, GB_HOUR = 0.04048, 0.004445
PAPER = {"memory": 3.3, "utility": 8.1, "cost": 1.6}  # averages of ElasticRec's abstract
ROWS = {"rm1": 500_000, "rm2": 150_000, "rm3": 500_000}
# CPU only, and with GPU
PAPER_RATES = [("--qps", "100"), ("--qps", "200", "--dense", "gpu")]
STEPS = (0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25)
STEP_S = 300.0
SLA_S = 0.4  # the paper's


@dataclass(frozen=True)
class Case:
    """One column of the evaluation."""

    workload: str
    locality: float
    shards: int
    scale: float = 1.0  # times the workload's rows


CASES = [
    Case("rm1", 0.9, 4),
    Case("rm2", 0.9, 4),
    Case("rm3", 0.9, 4),
    Case("rm1", 0.1, 4),
    Case("rm1", 0.5, 4),
    Case("rm1", 0.9, 1),
    Case("rm1", 0.9, 2),
    Case("rm1", 0.9, 8),
    Case("rm1", 0.9, 4, scale=4.0),
]


class Bundle:
    """A workload's bundle, profile and expected predictions, shared by its cases."""

    def __init__(self, case: Case, rows: int, folder: Path) -> None:
        self.rows, self.folder = rows, folder
        self.model, self.profile = folder / "m", folder / "p"
        self.expected = folder / "expected.json"
        erless(
            "example",
            case.workload,
            "--rows",
            rows,
            "--locality",
            case.locality,
            "--out",
            self.model,
        )
        erless(
            "profile",
            "--model",
            self.model,
            "--log",
            self.model / "access.parquet",
            "--out",
            self.profile,
        )
        queries = self.model / "queries.safetensors"
        self.expected.write_text(erless("predict", "--monolith", self.model, queries, "-o", "json"))
        self.traffic = Traffic.read(queries, self.expected)


@dataclass
class Side:
    """One system under a closed loop. names: process → function. cpu_s: per query, by round."""

    url: str
    names: Callable[[], dict[int, str]]
    cpu_s: dict[str, list[float]] = field(default_factory=dict)
    failed: int = 0
    largest_error: float = 0.0

    def warm(self, traffic: Traffic, seconds: float) -> ClosedLoop:
        """Full load, unmeasured but for its answers."""
        path = discover(self.url).path
        measured = run_closed_loop(
            self.url, path, traffic.bodies, CONNECTIONS, seconds, traffic.expected
        )
        self.failed += len(measured.failures)
        self.largest_error = max(self.largest_error, measured.largest_error)
        return measured

    def round(self, traffic: Traffic, seconds: float) -> None:
        """The same, measured."""
        names = self.names()
        before = {pid: cpu_seconds(pid) for pid in names}
        answered = len(self.warm(traffic, seconds).latency_ms)
        for pid, name in names.items():
            self.cpu_s.setdefault(name, []).append((cpu_seconds(pid) - before[pid]) / answered)

    @property
    def totals(self) -> list[float]:
        """CPU seconds per query of all functions, by round."""
        return [sum(parts) for parts in zip(*self.cpu_s.values(), strict=True)]

    def memory(self) -> dict[str, int]:
        """RSS by function."""
        return {name: psutil.Process(pid).memory_info().rss for pid, name in self.names().items()}


def ranks_of(profile: Path, access: TableAccess) -> np.ndarray:
    """Rank of each row id: counted rows hottest first, then the others by id."""
    file = TensorFile(profile / access.counts.path) if access.counts else None
    hottest = file.map("ids").astype(np.int64) if file else np.empty(0, np.int64)
    rank = np.full(access.rows, -1, np.int64)
    rank[hottest] = np.arange(len(hottest))
    rank[rank < 0] = np.arange(len(hottest), access.rows)
    return rank


def touched_rows(plan: Plan, bundle: Bundle, replicas: dict[str, int], query: Query) -> float:
    """Share of allocated rows that the queries touch, spread evenly over the replicas."""
    profile = Profile.load(bundle.profile / MANIFEST)
    samples = query.lengths.shape[1]
    per_table = query.values.reshape(len(profile.tables), samples, -1)
    rank = [ranks_of(bundle.profile, access) for access in profile.tables]
    names = {access.table: index for index, access in enumerate(profile.tables)}
    touched = allocated = 0.0
    for shard in plan.shards:
        copies = replicas["gateway"] if shard.tier == "resident" else replicas[shard.name]
        part = max(1, samples // copies)
        for piece in shard.slices:
            ranks = rank[names[piece.table]][per_table[names[piece.table]][:part].ravel()]
            inside = ranks[(ranks >= piece.start) & (ranks < piece.stop)]
            touched += copies * len(np.unique(inside))
            allocated += copies * piece.rows
    return touched / allocated


def dollars(cpu: float, memory_bytes: float) -> float:
    """A month at Fargate's prices."""
    return 730 * (cpu * VCPU_HOUR + memory_bytes / 1e9 * GB_HOUR)


def measured(case: Case, bundle: Bundle, seconds: float) -> dict[str, Any]:
    """One case on this machine, in rounds with the monolith."""
    plan_path, store = bundle.folder / f"plan{case.shards}.json", bundle.folder / f"s{case.shards}"
    erless(
        "plan",
        "--model",
        bundle.model,
        "--profile",
        bundle.profile,
        "--shards",
        case.shards,
        "--traffic",
        f"{TIMES}x",
        "--equal-containers",
        "--out",
        plan_path,
    )
    plan = changed(Plan.load(plan_path), single)
    plan.save(plan_path)
    erless(
        "pack",
        "--model",
        bundle.model,
        "--profile",
        bundle.profile,
        "--plan",
        plan_path,
        "--store",
        store,
    )
    state = bundle.folder / f"state{case.shards}"
    with local(store, state) as system, MonolithServer(bundle.model) as server:
        ours = Side(system.url, system.functions)
        whole = Side(server.url, lambda: {server.pid: "monolith"})
        for side in (ours, whole):
            side.warm(bundle.traffic, seconds)
        for _ in range(ROUNDS):
            for side in (ours, whole):
                side.round(bundle.traffic, seconds)
        memory, mono_memory = ours.memory(), whole.memory()["monolith"]
    taxes = [a / b for a, b in zip(ours.totals, whole.totals, strict=True)]
    parts = {
        name: float(np.median([a / b for a, b in zip(spent, whole.totals, strict=True)]))
        for name, spent in ours.cpu_s.items()
    }
    replicas = {name: max(1, math.ceil(TIMES * part - 1e-9)) for name, part in parts.items()}
    total = sum(replicas[name] * size for name, size in memory.items())
    sample = stream(case, bundle.rows)
    utility = touched_rows(plan, bundle, replicas, sample)
    mono_utility = touched_rows(whole_plan(plan), bundle, {"gateway": TIMES}, sample)
    return {
        "workload": case.workload,
        "locality": case.locality,
        "shards": case.shards,
        "rows": bundle.rows,
        "replicas": replicas,
        "memory": TIMES * mono_memory / total,
        "utility": utility / mono_utility,
        "cost": dollars(TIMES, TIMES * mono_memory) / dollars(TIMES * sum(parts.values()), total),
        "tax": float(np.median(taxes)),
        "taxes": taxes,
        "memory_bytes": total,
        "model_wise_bytes": TIMES * mono_memory,
        "failed": ours.failed + whole.failed,
        "largest_error": max(ours.largest_error, whole.largest_error),
    }


def whole_plan(plan: Plan) -> Plan:
    """All rows in the gateway."""
    shards = tuple(shard.model_copy(update={"tier": "resident"}) for shard in plan.shards)
    return plan.model_copy(update={"shards": shards})


def stream(case: Case, rows: int) -> Query:
    """1,000 queries of the case."""
    import dataclasses

    workload = dataclasses.replace(WORKLOADS[case.workload], rows=rows, locality=case.locality)
    return queries_of(workload, UTILITY_QUERIES * workload.batch, block=1)


def in_steps(bundle: Bundle, shards: int, out: Path) -> list[dict[str, Any]]:
    """Under steps of traffic; nothing where replicas cannot be held to a part of a core."""
    try:
        return elasticity(Inputs(bundle.model, bundle.profile, bundle.folder), shards, out)
    except LimitsError as error:
        print(f"steps of traffic are left out: {error}", file=sys.stderr)
        return []


def full_scale(case: Case, folder: Path, policy: str, demand: tuple[str, ...]) -> dict[str, Any]:
    """Plan and simulate at 20 M rows per table, in steps of the traffic that was planned for."""
    plans = {}
    for policy_name in dict.fromkeys((policy, "model-wise")):
        path = folder / f"{policy_name}.json"
        erless(
            "plan",
            "--workload",
            case.workload,
            "--locality",
            case.locality,
            "--policy",
            policy_name,
            "--equal-containers",
            "--sla-p95-ms",
            400,
            *demand,
            "--out",
            path,
        )
        plans[policy_name] = Plan.load(path)
    ours, base = plans[policy], plans["model-wise"]
    traffic = parse_traffic(
        "step:" + ",".join(f"{part * ours.qps:.1f}" for part in STEPS), STEP_S * len(STEPS)
    )
    runs = {policy_name: simulate(plan, traffic) for policy_name, plan in plans.items()}
    result, whole = ours.result, base.result
    assert result and whole
    return {
        "workload": case.workload,
        "locality": case.locality,
        "policy": policy,
        "qps": ours.qps,
        "gpu": "gpu" in demand,
        "planned_memory": whole.memory_bytes / result.memory_bytes,
        "planned_utility": result.memory_utility / whole.memory_utility,
        "planned_cost": whole.usd_per_month / result.usd_per_month,
        "simulated_memory": mean_memory(runs["model-wise"]) / mean_memory(runs[policy]),
        "simulated_cost": runs["model-wise"].usd_per_month / runs[policy].usd_per_month,
        "late": late_share(runs[policy], SLA_S),
        "late_model_wise": late_share(runs["model-wise"], SLA_S),
    }


def simulate(plan: Plan, traffic: Any) -> Simulation:
    """As planned, with every function scaled on requests: see docs/evaluation.md."""
    gateway = plan.gateway
    scaling = gateway.scaling.model_copy(
        update={"metric": "rps", "target": gateway.qps_per_replica}
    )
    plan = plan.model_copy(update={"gateway": gateway.model_copy(update={"scaling": scaling})})
    return run_simulation(plan, traffic, Terms(), node_of(plan, None), seed=0)


def mean_memory(run: Simulation) -> float:
    """Bytes over time."""
    return float(run.memory.mean())


def late_share(run: Simulation, sla_s: float) -> float:
    """Queries beyond the SLA, or failed."""
    values = run.samples.latency_s
    weight = np.broadcast_to(run.samples.weight[:, None], values.shape)
    late = np.isnan(values) | (values > sla_s)
    total = float(weight.sum())
    return float((weight * late).sum()) / total if total else 0.0


def markdown(result: dict[str, Any]) -> str:
    """The tables of docs/evaluation.md."""
    lines = [
        f"Paper (averages): memory {PAPER['memory']}×, utility {PAPER['utility']}×, "
        f"cost {PAPER['cost']}×.",
        "",
        "Measured on this machine, over eight monoliths:",
        "",
        "| workload | P | remote shards | rows per table | memory | utility | cost | tax | wrong |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["measured"]:
        lines.append(
            f"| {row['workload']} | {row['locality']:.0%} | {row['shards']} | {row['rows']:,} | "
            f"{row['memory']:.2f}× | {row['utility']:.2f}× | {row['cost']:.2f}× | "
            f"{row['tax']:.2f} ({min(row['taxes']):.2f} to {max(row['taxes']):.2f}) | "
            f"{row['failed']} |"
        )
    if result["elasticity"]:
        lines += ["", "RM1 under steps of traffic:", "", elasticity_markdown(result["elasticity"])]
    lines += [
        "",
        "Full scale, 20 M rows per table, over model-wise:",
        "",
        "| workload | P | policy | queries/s | memory, planned | utility, planned | "
        "cost, planned | memory, simulated | cost, simulated | late | late, model-wise |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["full_scale"]:
        lines.append(
            f"| {row['workload']} | {row['locality']:.0%} | {row['policy']} | "
            f"{row['qps']:,.0f}{' GPU' if row['gpu'] else ''} | "
            f"{row['planned_memory']:.2f}× | {row['planned_utility']:.2f}× | "
            f"{row['planned_cost']:.2f}× | {row['simulated_memory']:.2f}× | "
            f"{row['simulated_cost']:.2f}× | {row['late']:.2%} | {row['late_model_wise']:.2%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, simulate, print."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each round")
    parser.add_argument("--scale", type=float, default=1.0, help="of the rows")
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="for the steps")
    parser.add_argument("--only", choices=["measured", "full"], default=None)
    parser.add_argument("--output", choices=["json", "markdown"], default="markdown")
    options = parser.parse_args()
    result: dict[str, Any] = {"paper": PAPER, "measured": [], "elasticity": [], "full_scale": []}
    groups: dict[tuple[str, float, float], list[Case]] = {}
    for case in CASES if options.only != "full" else []:
        groups.setdefault((case.workload, case.locality, case.scale), []).append(case)
    for cases in groups.values():
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="erless-eval-")))
            rows = int(ROWS[cases[0].workload] * cases[0].scale * options.scale)
            bundle = Bundle(cases[0], rows, folder)
            for case in cases:
                row = measured(case, bundle, options.seconds)
                result["measured"].append(row)
                print(json.dumps(row), file=sys.stderr)
            if CASES[0] in cases:
                result["elasticity"] = in_steps(bundle, CASES[0].shards, options.out)
    demands: list[tuple[str, ...]] = [("--traffic", f"{TIMES}x")]
    for workload in WORKLOADS if options.only != "measured" else ():
        for locality in (0.1, 0.5, 0.9) if workload == "rm1" else (0.9,):
            for policy in ("elasticrec", "joint"):
                for demand in demands if locality != 0.9 else [*demands, *PAPER_RATES]:
                    with tempfile.TemporaryDirectory(prefix="erless-eval-") as name:
                        case = Case(workload, locality, 0)
                        row = full_scale(case, Path(name), policy, demand)
                        result["full_scale"].append(row)
                        print(json.dumps(row), file=sys.stderr)
    print(json.dumps(result, indent=2) if options.output == "json" else markdown(result))


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(map(str, error.cmd))}: {error.stderr}")
