"""The simulator's latency under CFS quotas against a process that is held by one.

    python -m benchmarks.quotas

One process takes calls of `CALL_S` CPU seconds, first come first served, at Poisson times; a cgroup
holds it to a part of a vCPU. Its latencies are set beside the simulator's for the same rate. The
group has a large weight, so that other work on the machine takes little from it; what is left of
that is told as the latency of the same calls without a quota.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from erless.deploy.local.supervisor.replica.cgroups import Group, confine, obstacle, resize
from erless.deploy.local.supervisor.replica.cgroups import release as remove
from erless.deploy.local.supervisor.spec import FunctionSpec
from erless.observe.simulator.fleet import Terms
from erless.observe.simulator.latency import weighted_quantiles
from erless.observe.simulator.outcome import run_simulation
from erless.specs.plan import GatewayPlan, Plan, RankRange, Scaling, ShardPlan, Tier
from erless.specs.traffic import parse_traffic

CALL_S = 0.004
BUSY = 0.7
SIZES = (0.1, 0.25, 0.6)  # vCPU
QUANTILES = (0.5, 0.95)
WEIGHT = 100_000  # of 1,024 that others have


def burn(seconds: float) -> None:
    """Use so many CPU seconds."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def calls(rate: float, seconds: float, seed: int) -> np.ndarray:
    """Seconds from due to done of each call, in this process."""
    due = parse_traffic(f"constant:{rate}", seconds).arrivals(np.random.default_rng(seed))
    begin, found = time.perf_counter(), np.zeros(len(due))
    for place, at in enumerate(due):
        early = begin + at - time.perf_counter()
        if early > 0:
            time.sleep(early)
        burn(CALL_S)
        found[place] = time.perf_counter() - begin - at
    return found


def held(vcpu: float) -> Group:
    """This process in a group of `vcpu`, with a large weight."""
    scaling = Scaling()
    spec = FunctionSpec(
        key="quota", name="quota", kind="sparse", digest="", module="", env={}, scaling=scaling
    )
    group = confine(spec, Path.cwd(), os.getpid(), os.getpid())
    resize(group, vcpu)
    for name, weight in (("cpu.shares", WEIGHT), ("cpu.weight", 10_000)):
        if (group[0] / name).exists():
            (group[0] / name).write_text(str(weight), encoding="ascii")
    return group


def measured(vcpu: float, rate: float, seconds: float) -> list[float]:
    """Quantiles of a child process under a quota of `vcpu`, in seconds."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        group = held(vcpu)
        found = [float(each) for each in np.quantile(calls(rate, seconds, 1), QUANTILES)]
        os.write(writing, json.dumps([found, [str(each) for each in group]]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        found, group = json.loads(told.read())
    os.waitpid(child, 0)
    remove(tuple(Path(each) for each in group))
    return list(found)


def simulated(vcpu: float, rate: float) -> list[float]:
    """The same as the simulator sees it."""
    scaling = Scaling(target=rate, min_scale=1, max_scale=1)
    shard = ShardPlan(
        name="hot",
        tier=Tier.HOT,
        slices=(RankRange(table="t", start=0, stop=1),),
        vcpu=vcpu,
        qps_per_replica=vcpu / CALL_S,
        scaling=scaling,
    )
    plan = Plan.create(
        model_digest="m",
        profile_digest="p",
        policy="joint",
        shards=(shard,),
        gateway=GatewayPlan(qps_per_replica=1e6, scaling=scaling),
    )
    run = run_simulation(plan, parse_traffic(f"constant:{rate}", 7200), Terms(hop_s=0.0), None, 2)
    values = run.samples.latency_s
    weight = np.broadcast_to(run.samples.weight[:, None], values.shape)
    return [float(each) for each in weighted_quantiles(values.ravel(), weight.ravel(), QUANTILES)]


def row(vcpu: float, seconds: float) -> dict[str, Any]:
    """One size, measured, simulated, and measured without a quota."""
    rate = BUSY * vcpu / CALL_S
    return {
        "vcpu": vcpu,
        "rate": rate,
        "measured_ms": [each * 1e3 for each in measured(vcpu, rate, seconds)],
        "simulated_ms": [each * 1e3 for each in simulated(vcpu, rate)],
        "free_ms": [each * 1e3 for each in measured(2.0, rate, min(seconds, 60.0))],
    }


def main() -> None:
    """Measure and print."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--seconds", type=float, default=300.0, help="of each measurement")
    options = parser.parse_args()
    if reason := obstacle():
        sys.exit(f"no process can be held to a part of a vCPU: {reason}")
    print("| vCPU | calls/s | p50 | simulated | p95 | simulated | off | without a quota |")
    print("|---|---|---|---|---|---|---|---|")
    for vcpu in SIZES:
        found = row(vcpu, options.seconds)
        (p50, p95), (s50, s95) = found["measured_ms"], found["simulated_ms"]
        free = ", ".join(f"{each:.1f}" for each in found["free_ms"])
        print(
            f"| {vcpu} | {found['rate']:.0f} | {p50:.1f} ms | {s50:.1f} ms | {p95:.1f} ms | "
            f"{s95:.1f} ms | {s95 / p95 - 1:+.0%} | {free} ms |",
            flush=True,
        )


if __name__ == "__main__":
    main()
