"""Autoscalers side by side in the simulator, under published traces.

    python -m benchmarks.autoscalers --traces FOLDER

FOLDER has traces in the format `autothrottle` (`docs/loadtests.md`); `flat` is a constant rate. RM1
is cut into four remote shards, with replicas so small that the trace's peak needs `REPLICAS` of
each function. Three tables:

- policies as they come: the KPA at its utilisation of 70 %, the others with replicas that may grow
  to `GROWTH` times their planned vCPU;
- status against kpa at equal vCPU-seconds (its utilisation is set so), and with as few of them as
  keep the share of late queries at the KPA's;
- what lost scrapes cost the KPA, kept as before or decided on a partial window;
- bursts: precision and recall of the band by its width z.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.elasticity import changed
from erless.autoscale.kpa import TICK_S, Observation
from erless.autoscale.status import TREND_S, Sizing, StatusScaler
from erless.observe.simulator.fleet import Terms
from erless.observe.simulator.latency import weighted_quantiles
from erless.observe.simulator.outcome import Simulation, run_simulation
from erless.observe.simulator.policies import PolicyName
from erless.plan.planner import Planner
from erless.plan.report.document import plan_document
from erless.plan.request import PlanRequest
from erless.plan.source import workload_tables
from erless.specs.plan import Plan, Scaling
from erless.specs.traffic import Traffic, parse_traffic

POLICIES: tuple[PolicyName, ...] = ("kpa", "status", "showar", "autothrottle")
REPLICAS, GROWTH, UTILISATION, BATCH = 4, 4.0, 0.7, 256
SLA_S = 0.025
FLAT_QPS, FLAT_S = 150, 3600
ROUNDS = 6  # of a bisection
WIDTHS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0)
BURST, AHEAD_S, SUSTAINED_S = 1.15, 10, 4  # what a burst is, in hindsight
SEEDS = (0, 1, 2)


class Cost(NamedTuple):
    """Of one policy under one trace."""

    mean_ms: float
    p95_ms: float
    late: float
    vcpu_s: float
    gb_s: float


@dataclass(frozen=True)
class Setting:
    """A trace, and a plan whose peak is the trace's."""

    name: str
    traffic: Traffic
    plan: Plan

    def run(
        self, terms: Terms, utilisation: float = UTILISATION, seed: int = 0, size: float = 1.0
    ) -> Simulation:
        """The trace under `terms`: replicas aimed at `utilisation`, `size` times as large."""
        plan = scaled(self.plan, self.traffic.peak, utilisation, size)
        return run_simulation(plan, self.traffic, terms, None, seed)

    def cost(
        self,
        terms: Terms,
        utilisation: float = UTILISATION,
        size: float = 1.0,
        seeds: Sequence[int] = SEEDS,
    ) -> Cost:
        """The mean over `seeds`."""
        runs = [cost_of(self.run(terms, utilisation, seed, size)) for seed in seeds]
        return Cost(*(float(np.mean(values)) for values in zip(*runs, strict=True)))


def scaled(plan: Plan, peak: float, utilisation: float, size: float = 1.0) -> Plan:
    """Replicas of which `REPLICAS` bear the `peak` at 70 %, or larger ones; scaled by requests."""
    seconds = {
        function.name: function.vcpu / function.qps_per_replica for function in plan.shards
    } | {"gateway": plan.gateway.vcpu / plan.gateway.qps_per_replica}

    def change(name: str) -> dict[str, Any]:
        rate = size * peak / REPLICAS / UTILISATION
        scaling = Scaling(
            target=rate, target_utilisation=utilisation, min_scale=1, max_scale=8 * REPLICAS
        )
        return {
            "scaling": scaling,
            "replicas": max(1, round(REPLICAS / 2 / size)),
            "vcpu": rate * seconds[name],
            "qps_per_replica": rate,
        }

    return changed(plan, change)


def cost_of(run: Simulation) -> Cost:
    """What the queries and their owner paid."""
    values = run.samples.latency_s
    weight = np.broadcast_to(run.samples.weight[:, None], values.shape)
    good = np.isfinite(values)
    lost = weight[~good].sum() + run.trace.failed.sum()
    late = weight[good & (values > SLA_S)].sum() + lost
    (p95,) = weighted_quantiles(values.ravel(), weight.ravel(), (0.95,))
    return Cost(
        float(np.average(values[good], weights=weight[good])) * 1e3,
        float(p95) * 1e3,
        float(late / weight.sum()),
        float(run.vcpu.sum() * TICK_S),
        float(run.memory.sum() * TICK_S / 1e9),
    )


def settings(folder: Path) -> list[Setting]:
    """The traces of `folder`, and a flat one."""
    model, tables = workload_tables("rm1", 0.9, BATCH)
    request = PlanRequest(shards=4, batch=BATCH, equal_containers=True, traffic=8.0)
    plan = plan_document(Planner(model, tables, request).outcome(), "m" * 64, "p" * 64)
    traffics = [parse_traffic(f"autothrottle:{path}") for path in sorted(folder.glob("*.txt"))]
    traffics.append(parse_traffic(f"constant:{FLAT_QPS}", FLAT_S))
    names = [*(path.stem for path in sorted(folder.glob("*.txt"))), "flat"]
    return [Setting(name, each, plan) for name, each in zip(names, traffics, strict=True)]


def terms_of(name: PolicyName, **more: Any) -> Terms:
    """A policy's terms; replicas start in 2 s and load at 1 GB/s."""
    return Terms(autoscaler=name, growth=GROWTH, **more)


def solved(measure: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Where the falling `measure` comes down to `wanted`."""
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if measure(middle) > wanted else (low, middle)
    return (low + high) / 2


def against_kpa(setting: Setting) -> dict[str, Any]:
    """Status at the KPA's vCPU-seconds, and with the fewest at no more late queries."""
    kpa, terms = setting.cost(terms_of("kpa")), terms_of("status")

    def tried(utilisation: float) -> Cost:
        return setting.cost(terms, utilisation, seeds=SEEDS[:1])

    # more utilisation: fewer vCPU-seconds, more late queries
    utilisation = solved(lambda share: tried(share).vcpu_s, kpa.vcpu_s, 0.3, 1.0)
    equal = setting.cost(terms, utilisation)
    tightest = solved(lambda share: kpa.late - tried(share).late, 0.0, 0.3, 1.0)
    least = setting.cost(terms, tightest)
    return {
        "trace": setting.name,
        "kpa": kpa._asdict(),
        "equal": equal._asdict() | {"utilisation": utilisation},
        "least": least._asdict() | {"utilisation": tightest},
    }


def as_they_come(setting: Setting) -> list[dict[str, Any]]:
    """Each policy under one trace; the KPA also with replicas of the others' largest size."""
    costs = {name: setting.cost(terms_of(name)) for name in POLICIES}
    large = setting.cost(terms_of("kpa"), size=GROWTH)
    rows = {"kpa": costs["kpa"], f"kpa, {GROWTH:g}× larger": large} | costs
    return [{"trace": setting.name, "policy": name} | rows[name]._asdict() for name in rows]


def lost_scrapes(setting: Setting, share: float) -> dict[str, Any]:
    """Late queries of the KPA where scrapes are lost, by what it does meanwhile."""
    kept, partial = (
        setting.cost(terms_of(name, lost_scrapes=share)) for name in ("kpa", "kpa-partial")
    )
    return {
        "trace": setting.name,
        "lost": share,
        "kept": kept._asdict(),
        "partial": partial._asdict(),
    }


def detected(rates: Sequence[float], z: float) -> list[bool]:
    """Ticks at which the band of width `z` sees a burst."""
    sizing = Sizing(requests_per_vcpu_s=1e3, most_vcpu=1e3, z=z)
    scaler = StatusScaler(Scaling(max_scale=9), sizing, 0.0, 1)
    return [
        scaler.observe(Observation(tick * TICK_S, rate, 1, requests_s=rate)).panic
        for tick, rate in enumerate(rates, 1)
    ]


def true_bursts(rates: Sequence[float]) -> list[bool]:
    """Ticks that begin a burst, in hindsight.

    Within `AHEAD_S` the load is `BURST` times the mean of the last 30 s, for `SUSTAINED_S`.
    """
    past, ahead, long = (round(seconds / TICK_S) for seconds in (TREND_S, AHEAD_S, SUSTAINED_S))
    found = []
    for tick in range(len(rates)):
        before = np.mean(rates[max(0, tick - past) : tick]) if tick >= past else np.inf
        high = [rate > BURST * before for rate in rates[tick : tick + ahead]]
        found.append(any(all(high[i : i + long]) for i in range(len(high) - long + 1)))
    return found


def bursts(setting: Setting, z: float) -> dict[str, Any]:
    """Precision: alarms in a burst. Recall: bursts with an alarm `AHEAD_S` after their begin."""
    traffic = setting.traffic
    edges = np.arange(0.0, traffic.duration_s + TICK_S / 2, TICK_S)
    counts = traffic.arriving(traffic.expected(edges), np.random.default_rng(0))
    rates = [float(count) / TICK_S for count in counts]
    alarms, truth = detected(rates, z), true_bursts(rates)
    begins = [tick for tick in range(1, len(truth)) if truth[tick] and not truth[tick - 1]]
    ahead = round(AHEAD_S / TICK_S)
    seen = sum(any(alarms[tick : tick + ahead + 1]) for tick in begins)
    # a burst seen in its course is no false alarm, though it no longer lies ahead
    course = [any(truth[max(0, tick - ahead) : tick + 1]) for tick in range(len(truth))]
    right = sum(alarm and inside for alarm, inside in zip(alarms, course, strict=True))
    return {
        "trace": setting.name,
        "z": z,
        "alarms": sum(alarms),
        "bursts": len(begins),
        "precision": right / max(1, sum(alarms)),
        "recall": seen / max(1, len(begins)),
    }


def line(name: str, cost: dict[str, float], base: dict[str, float] | None = None) -> str:
    """A row of a table; with `base`, what differs."""
    cells = [f"{cost['mean_ms']:.2f} ms", f"{cost['p95_ms']:.1f} ms", f"{cost['late']:.3%}"]
    for key in ("vcpu_s", "gb_s"):
        share = f" ({cost[key] / base[key] - 1:+.1%})" if base else ""
        cells.append(f"{cost[key]:,.0f}{share}")
    return f"| {name} | " + " | ".join(cells) + " |"


def markdown(found: dict[str, list[dict[str, Any]]]) -> str:
    """All tables."""
    head = "| {} | mean | p95 | late | vCPU·s | GB·s |\n|---|---|---|---|---|---|"
    lines = []
    if found["policies"]:
        lines += [head.format("trace, policy")]
        lines += [line(f"{row['trace']}, {row['policy']}", row) for row in found["policies"]]
    if found["against"]:
        lines += ["", head.format("trace, policy")]
    for row in found["against"]:
        lines.append(line(f"{row['trace']}, kpa", row["kpa"]))
        for key in ("equal", "least"):
            name = f"status, {key} vCPU·s (aimed at {row[key]['utilisation']:.0%})"
            lines.append(line(name, row[key], row["kpa"]))
    if found["lost"]:
        lines += ["", head.format("trace, scrapes lost")]
    for row in found["lost"]:
        for key in ("kept", "partial"):
            lines.append(line(f"{row['trace']}, {row['lost']:.0%}, {key}", row[key]))
    if found["bursts"]:
        lines += [
            "",
            "| trace | z | bursts | alarms | precision | recall |",
            "|---|---|---|---|---|---|",
        ]
    for row in found["bursts"]:
        lines.append(
            f"| {row['trace']} | {row['z']:g} | {row['bursts']} | {row['alarms']} | "
            f"{row['precision']:.0%} | {row['recall']:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Simulate and print."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument(
        "--parts", nargs="+", default=["policies", "against", "lost", "bursts"], metavar="PART"
    )
    parser.add_argument("--output", choices=["json", "markdown"], default="markdown")
    options = parser.parse_args()
    every = settings(options.traces)
    found: dict[str, list[dict[str, Any]]] = {
        "policies": [],
        "against": [],
        "lost": [],
        "bursts": [],
    }
    for setting in every:
        if "policies" in options.parts:
            found["policies"] += as_they_come(setting)
        if "against" in options.parts:
            found["against"].append(against_kpa(setting))
        if "lost" in options.parts:
            found["lost"] += [lost_scrapes(setting, share) for share in (0.1, 0.3)]
        if "bursts" in options.parts and setting.name != "flat":
            found["bursts"] += [bursts(setting, z) for z in WIDTHS]
    print(json.dumps(found, indent=2) if options.output == "json" else markdown(found))


if __name__ == "__main__":
    main()
