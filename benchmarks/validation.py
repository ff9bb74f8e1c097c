"""The simulator against this machine: replicas, memory and p95, predicted and measured.

    python -m benchmarks.validation --out validation

RM1, cut into four remote shards, on target local, with scaling targets so low that a few queries
per second move replicas. A calibration at a constant rate tells CPU seconds per query and memory of
each process, and the median and p95 that a query takes; it is run before the steps of traffic and
after them, because other work on the machine comes and goes. The simulator, told only these and the
plan, predicts the run. Both are result directories:

    erless report --compare validation/measured validation/simulated
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.elasticity import changed
from erless.cli.measure.loadtest import probe_of
from erless.observe.loadtest.locust.process import Load
from erless.observe.loadtest.measure import Measuring, measure
from erless.observe.report.comparison import write_comparison
from erless.observe.results import read_result
from erless.observe.simulator.fleet import Terms
from erless.observe.simulator.outcome import Simulation, run_simulation, write_simulation
from erless.specs.plan import Plan, Scaling, Tier
from erless.specs.result import RunResult
from erless.specs.traffic import Traffic, parse_traffic
from loadtests.systems import LocalSystem, cpu_seconds, erless, local

TARGETS = {"gateway": 25.0, Tier.HOT: 20.0, Tier.WARM: 30.0, Tier.COLD: 60.0}  # queries/s
WINDOW_S = 20.0
START_S = 1.0
SPREADS = np.arange(0.0, 3.01, 0.1)
ROUNDS = 6
CALM = "constant:16"  # the most that one replica of each serves, with room for chance


def low_targets(plan: Plan) -> Plan:
    """The plan, scaled as if its replicas were slow, each of one process."""
    tiers = {shard.name: shard.tier for shard in plan.shards}

    def slow(name: str) -> dict[str, Any]:
        scaling = Scaling(
            target=TARGETS[tiers.get(name, "gateway")], window_s=WINDOW_S, min_scale=1, max_scale=6
        )
        return {"scaling": scaling, "replicas": 1, "vcpu": 1.0}

    return changed(plan, slow)


def calibrated(
    plan: Plan, cpu_s: dict[str, float], calm: list[RunResult], traffic: Traffic
) -> tuple[Terms, dict[str, float]]:
    """Terms under which the simulator reproduces the calibration runs' median and p95.

    Service times are CPU seconds; the rest of the median is the hop's, and its spread is what other
    work on the machine does to a query.
    """
    median = float(np.mean([run.latency.p50_ms or 0.0 for run in calm])) / 1e3
    p95 = float(np.mean([run.latency.p95_ms or 0.0 for run in calm])) / 1e3
    service = {name: value * 1e3 for name, value in cpu_s.items()}
    terms = Terms(start_s=START_S, load_bytes_s=1e9, hop_s=median, host_cores=2)
    for _ in range(ROUNDS):
        tried = [replace(terms, hop_spread=float(spread)) for spread in SPREADS]
        runs = [run_simulation(plan, traffic, trial, None, 0, service) for trial in tried]
        off = [abs(quantile(run, 0.95) / quantile(run, 0.5) - p95 / median) for run in runs]
        best = int(np.argmin(off))
        over = quantile(runs[best], 0.5) - median
        terms = replace(tried[best], hop_s=max(1e-5, tried[best].hop_s - over))
    return terms, service


def private_bytes(pid: int) -> int:
    """What a process has written and shares with nobody; rows and programs are mapped files."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024
    return 0


def usage(system: LocalSystem) -> dict[str, tuple[float, int]]:
    """CPU seconds so far of each function, and the most that one replica has for itself."""
    usage: dict[str, tuple[float, int]] = {}
    for pid, name in system.functions().items():
        cpu, memory = usage.get(name, (0.0, 0))
        usage[name] = (cpu + cpu_seconds(pid), max(memory, private_bytes(pid)))
    return usage


def quantile(run: Simulation, part: float) -> float:
    """Of the simulated latencies, seconds."""
    values = run.samples.latency_s
    weight = np.broadcast_to(run.samples.weight[:, None], values.shape).ravel()
    order = np.argsort(values.ravel())
    total = np.cumsum(weight[order])
    return float(values.ravel()[order][np.searchsorted(total, part * total[-1])])


def held_bytes(run: Simulation, own: dict[str, int], shared: float) -> np.ndarray:
    """Memory over time on one machine, where replicas share the rows' pages and the program's."""
    own_bytes = np.array([own[function.name] for function in run.fleet.functions], np.float64)
    return np.asarray(shared + run.trace.placed @ own_bytes)


def main() -> None:
    """Calibrate, predict, measure, compare."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--out", type=Path, default=Path("validation"))
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--traffic", default="step:10,45,10")
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--calibrate", type=float, default=30.0, help="seconds")
    options = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="erless-validation-") as name:
        folder = Path(name)
        model, profile, plan_path, store = (folder / name for name in ("m", "p", "plan.json", "s"))
        erless("example", "rm1", "--rows", options.rows, "--out", model)
        erless("profile", "--model", model, "--log", model / "access.parquet", "--out", profile)
        erless("plan", "--model", model, "--profile", profile, "--shards", 4, "--out", plan_path)
        plan = low_targets(Plan.load(plan_path))
        plan.save(plan_path)
        erless(
            "pack", "--model", model, "--profile", profile, "--plan", plan_path, "--store", store
        )
        queries = ("--queries", str(model / "queries.safetensors"))
        with local(store, folder / "state") as system:
            steady = parse_traffic(CALM, options.calibrate)
            load = Load(system.url, options.calibrate, CALM, 32, queries)
            before = usage(system)
            calm = [measure(load, folder / "calm0")]
            after = usage(system)
            cpu_s = {name: (after[name][0] - before[name][0]) / calm[0].queries for name in after}
            own = {name: after[name][1] for name in after}
            held = sum(function.memory_bytes for function in system.target.status().functions)
            shared = held - float(sum(map(private_bytes, system.functions())))
            measured = measure(
                Load(system.url, options.seconds, options.traffic, 64, queries),
                options.out / "measured",
                Measuring(probe_of(system.target), {"title": "measured"}, overwrite=True),
                sla_ms=400.0,
            )
            calm.append(measure(load, folder / "calm1"))
        terms, service = calibrated(plan, cpu_s, calm, steady)
        traffic = parse_traffic(options.traffic, options.seconds)
        predicted = run_simulation(plan, traffic, terms, None, 0, service)
        write_simulation(
            options.out / "simulated", predicted, title="simulated", sla_ms=400.0, overwrite=True
        )
        write_comparison(
            options.out / "measured", options.out / "simulated", options.out / "report.html"
        )
        bytes_now = held_bytes(predicted, own, shared)
        stored = read_result(options.out / "measured")
        for index, function in enumerate(predicted.fleet.functions):
            seen = stored.of_function(function.name)["ready"]
            ready = predicted.trace.ready[:, index]
            result[f"replicas {function.name}"] = compared(float(ready.mean()), float(seen.mean()))
        total = predicted.trace.ready.sum(axis=1)
        result["replicas"] = compared(float(total.mean()), measured.replicas.mean)
        result["replicas, most"] = compared(float(total.max()), measured.replicas.peak)
        result["memory"] = compared(float(bytes_now.mean()), measured.memory_bytes.mean)
        result["p50_ms"] = compared(quantile(predicted, 0.5) * 1e3, measured.latency.p50_ms or 0.0)
        result["p95_ms"] = compared(quantile(predicted, 0.95) * 1e3, measured.latency.p95_ms or 0.0)
        result["calibration"] = {
            "cpu_ms": service,
            "p50_ms": [run.latency.p50_ms for run in calm],
            "p95_ms": [run.latency.p95_ms for run in calm],
            "terms": str(terms),
        }
    print(json.dumps(result, indent=2))


def compared(predicted: float, measured: float) -> dict[str, float]:
    """Both, and by how much the prediction is off."""
    return {
        "predicted": round(predicted, 3),
        "measured": round(measured, 3),
        "off": round(predicted / measured - 1, 4) if measured else 0.0,
    }


if __name__ == "__main__":
    main()
