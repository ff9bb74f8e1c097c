"""Is joint, left to choose, ever worse than a shape that a user may demand?

python -m benchmarks.demands [--settings 100] [--demands 4] [--seed 0]

Settings are drawn from workloads, localities, traffic, table sizes, container sizes, precisions and
both objectives. Each demand is planned by itself, from the layouts that are made for that shape.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from erless.dlrm.workload import WORKLOADS
from erless.errors import PlanError
from erless.plan.planner import Planner
from erless.plan.request import PlanRequest
from erless.plan.source import workload_tables

ROWS = (2_000_000, 20_000_000, 200_000_000)
ALLOWED = ((), ("int8",), ("fp32", "int8"), ("fp32", "fp16", "int8", "int4"))
SAME = 1e-9  # relative


@dataclass(frozen=True)
class Setting:
    """One model with its traffic, and what is asked for but a shape."""

    workload: str
    locality: float
    rows: int
    asked: dict[str, Any]

    def planner(self, **demand: Any) -> Planner:
        """A planner of this setting; `demand` asks for a shape."""
        model, tables = workload_tables(self.workload, self.locality, 32, self.rows)
        return Planner(model, tables, PlanRequest(**self.asked, **demand))


def settings(number: int, chance: random.Random) -> Iterator[Setting]:
    """Objectives and precisions in turn, the rest by chance."""
    kinds = itertools.cycle(itertools.product(("memory", "dollars"), ALLOWED))
    for objective, allowed in itertools.islice(kinds, number):
        asked: dict[str, Any] = {
            "objective": objective,
            "allowed": allowed,
            "traffic": chance.choice([0.5, 1, 4, 8, 16, 32, 64]),
            "max_vcpu": chance.choice([1.0, 2.0, 8.0, None]),
        }
        locality = chance.choice([0.5, 0.9, 0.99])
        yield Setting(chance.choice(list(WORKLOADS)), locality, chance.choice(ROWS), asked)


def demand(chance: random.Random) -> dict[str, Any]:
    """A number of shards, a resident share or room, or two of them."""
    knobs = {
        "shards": chance.randint(1, 8),
        "resident_share": chance.choice([0.0, 0.5, 0.8, 0.9, 1.0]),
        "max_resident_bytes": chance.choice([0.0, 1e9]),
    }
    names = chance.sample(sorted(knobs), chance.choice([1, 1, 2]))
    return {name: knobs[name] for name in names}


def demanded_value(setting: Setting, shape: dict[str, Any]) -> float | None:
    """Bytes or dollars of the best layout made for the shape; None where there is none."""
    planner = setting.planner(**shape)
    pool = planner.pools.demanded(())
    try:
        best = planner.selection.best("joint", pool, strict=True)
    except PlanError:
        return None
    if best is None:
        return None
    by_memory = planner.request.aim == "memory"
    return best.layout.memory if by_memory else best.packing.usd_per_month


def main() -> None:
    """Run and print one line per setting that loses, and the count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", type=int, default=100)
    parser.add_argument("--demands", type=int, default=4, help="of each setting")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance = random.Random(given.seed)  # noqa: S311 - draws settings, no secrets
    worse = compared = 0
    begin = time.process_time()
    for number, setting in enumerate(settings(given.settings, chance), 1):
        outcome = setting.planner().outcome()
        free = outcome.value(outcome.best["joint"])
        shapes = [demand(chance) for _ in range(given.demands)]
        values = [demanded_value(setting, shape) for shape in shapes]
        better = [
            (value / free, shape)
            for value, shape in zip(values, shapes, strict=True)
            if value is not None and value < free * (1 - SAME)
        ]
        compared += sum(value is not None for value in values)
        worse += bool(better)
        for ratio, shape in better:
            print(json.dumps({**vars(setting), "free": free, "times": ratio, "shape": shape}))
        progress = f"{number} settings, {compared} shapes: worse in {worse}"
        print(f"\r{progress}", end="", file=sys.stderr, flush=True)
    spent = time.process_time() - begin
    print(
        f"\nfree is at most demanded in {given.settings - worse} of {given.settings} settings "
        f"({compared} shapes that exist, {spent:.0f} CPU s)"
    )


if __name__ == "__main__":
    main()
