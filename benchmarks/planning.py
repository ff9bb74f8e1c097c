"""Planning and profiling: every number of issue 3 in one run, and the table of docs/planning.md.

python -m benchmarks.planning [--output json] [--docs docs/planning.md] [--only large|profile|…]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.planning_at_scale import many_tables
from erless.dlrm.workload import WORKLOADS, PowerLaw, RowOrder
from erless.plan.costs.cost import PAPER_TERMS
from erless.plan.costs.curves import AccessCurve, TableLoad
from erless.plan.costs.layout import Demand
from erless.plan.planner import POLICIES, Planner
from erless.plan.policies.joint import joint_layouts, joint_memory
from erless.plan.report.document import policy_results
from erless.plan.request import PlanRequest
from erless.plan.search.bounds import memory_bound
from erless.plan.source import workload_tables
from erless.specs.artifact import FileEntry
from erless.specs.bundle import MANIFEST, TABLE_TENSOR, BundleManifest
from erless.specs.model import DlrmTower, Interaction, ModelSpec, TableSpec
from erless.specs.plan import Precision
from erless.storage.tensors import write_tensors

BEGIN, END = "<!-- table: benchmarks/planning.py -->", "<!-- end of table -->"
CHECKED, CHECKED_END = "<!-- checks: benchmarks/planning.py -->", "<!-- end of checks -->"
Row = dict[str, Any]


def compare() -> list[Row]:
    """Every workload, locality, traffic and set of terms, all policies."""
    rows: list[Row] = []
    for equal in (True, False):
        for name in WORKLOADS:
            for locality in (0.1, 0.5, 0.9):
                for traffic in (4, 8, 16, 32):
                    rows += _policies(name, locality, traffic, equal)
    return rows


def _policies(name: str, locality: float, traffic: float, equal: bool, **knobs: Any) -> list[Row]:
    model, tables = workload_tables(name, locality, 32)
    request = PlanRequest(traffic=traffic, equal_containers=equal, **knobs)
    begin = time.process_time()
    results = Planner(model, tables, request).outcome(POLICIES)
    spent = time.process_time() - begin
    return [
        {
            "terms": "equal" if equal else "best",
            "workload": name,
            "P": locality,
            "traffic": traffic,
            "cpu_s": spent,
            **policy.model_dump(),
        }
        for policy in policy_results(results)
    ]


def int8() -> list[Row]:
    """int8 below the resident tier at P = 90 %, 8×."""
    rows = [row for name in WORKLOADS for row in _policies(name, 0.9, 8, True, precision="int8")]
    return [row for row in rows if row["policy"] == "joint"]


def random_instances(count: int = 50) -> dict[str, float]:
    """Distance to the bound on random instances."""
    gaps = []
    for seed in range(count):
        demand = _random_demand(seed)
        layout = joint_memory(joint_layouts(demand, PAPER_TERMS))
        bound = memory_bound(demand, PAPER_TERMS, Precision.FP32, Precision.FP32)
        gaps.append(layout.memory / bound - 1)
    return {"instances": count, "largest_gap": max(gaps), "median_gap": statistics.median(gaps)}


def _random_demand(seed: int) -> Demand:
    """1 … 12 tables of 10^4 … 10^7 rows, localities 0.3 … 0.98, 1 … 20 × one replica's traffic."""
    rng = np.random.default_rng(seed)
    tables = tuple(
        TableLoad(
            TableSpec(name=f"t{index}", rows=rows, dim=int(rng.choice([16, 32, 64]))),
            float(32 * rng.integers(1, 200)),
            AccessCurve.power_law(rows, float(rng.uniform(0.3, 0.98))),
        )
        for index in range(int(rng.integers(1, 13)))
        for rows in [int(10 ** rng.uniform(4, 7))]
    )
    idle = Demand(tables, 0.0, float(rng.uniform(0, 2e-3)))
    return replace(idle, qps=float(rng.uniform(1, 20)) / idle.monolith_s(PAPER_TERMS))


def large(count: int = 1000, rows: int = 1_000_000) -> Row:
    """`count` tables of `rows` rows, each with a locality of its own, in both sets of terms."""
    names = [f"t{index}" for index in range(count)]
    model = ModelSpec(
        dense_features=64,
        tables=tuple(TableSpec(name=name, rows=rows, dim=32) for name in names),
        tower=DlrmTower(bottom_mlp=(64, 32), top_mlp=(256, 1)),
    )
    results: Row = {"tables": count, "rows": rows}
    for equal in (True, False):
        begin = time.process_time()
        tables = [
            TableLoad(
                spec,
                32.0 * (1 + index % 20),
                AccessCurve.power_law(rows, 0.5 + 0.45 * index / count, 1.05),
            )
            for index, spec in enumerate(model.tables)
        ]
        outcome = Planner(model, tables, PlanRequest(equal_containers=equal)).outcome()
        (joint,) = policy_results(outcome)
        kind = "equal" if equal else "best"
        results[f"{kind}_cpu_s"] = time.process_time() - begin
        results[f"{kind}_lower_bound_gap"] = joint.lower_bound_gap
    results["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return results


def growth() -> Row:
    """CPU of planning four tables from counted rows, over their rows; medians of 3."""
    times = {}
    for rows in (10**5, 10**6, 10**7):
        counts = np.sort(np.random.default_rng(0).zipf(1.3, rows).clip(max=10**9))[::-1].copy()
        runs = [_plan_counted(counts, rows) for _ in range(3)]
        times[rows] = statistics.median(runs)
    first, last = min(times), max(times)
    scale = (last * math.log(last)) / (first * math.log(first))
    return {"cpu_s": times, "times_slower": times[last] / times[first], "rows_log_rows": scale}


def _plan_counted(counts: np.ndarray, rows: int) -> float:
    begin = time.process_time()
    specs = [TableSpec(name=f"t{index}", rows=rows, dim=32) for index in range(4)]
    tables = [TableLoad(spec, 4096.0, AccessCurve.from_counts(counts, rows)) for spec in specs]
    model = ModelSpec(
        dense_features=64,
        tables=tuple(specs),
        tower=DlrmTower(bottom_mlp=(64, 32), top_mlp=(256, 1)),
    )
    Planner(model, tables, PlanRequest(equal_containers=True)).outcome(("joint",))
    return time.process_time() - begin


def profile(accesses: int = 10**8, tables: int = 10, rows: int = 2_000_000) -> Row:
    """`erless profile` over a parquet log of so many accesses, as a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_bundle(folder / "model", tables, rows)
        written = write_log(folder / "log.parquet", accesses, tables, rows)
        command = [
            sys.executable,
            "-m",
            "erless",
            "profile",
            "--model",
            str(folder / "model"),
            "--log",
            str(folder / "log.parquet"),
            "--out",
            str(folder / "p"),
            "-o",
            "json",
        ]
        begin = time.monotonic()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        counted = sum(table["accesses"] for table in json.loads(done.stdout)["tables"])
        return {
            "accesses": counted,
            "expected": written,
            "wall_s": time.monotonic() - begin,
            "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "peak_bytes": after.ru_maxrss * 1024,
            "cores": len(os.sched_getaffinity(0)),
            "load_average": os.getloadavg()[0],
        }


def write_bundle(folder: Path, tables: int, rows: int) -> None:
    """A bundle of `tables` tables with rows of one number: what a profile needs of a model."""
    (folder / "tables").mkdir(parents=True)
    entries = []
    for index in range(tables):
        path = f"tables/table_{index}.safetensors"
        digest = write_tensors(folder / path, {TABLE_TENSOR: np.zeros((rows, 1), np.float32)})
        entries.append(FileEntry(path=path, **digest._asdict()))
    tower = write_tensors(folder / "tower.safetensors", {"x": np.zeros(1, np.float32)})
    BundleManifest.create(
        model=ModelSpec(
            dense_features=1,
            tables=tuple(TableSpec(name=f"table_{n}", rows=rows, dim=1) for n in range(tables)),
            tower=DlrmTower(bottom_mlp=(1,), top_mlp=(1,), interaction=Interaction.CAT),
        ),
        tables=tuple(entries),
        tower=FileEntry(path="tower.safetensors", **tower._asdict()),
    ).save(folder / MANIFEST)


def write_log(path: Path, accesses: int, tables: int, rows: int) -> int:
    """128 ids per bag, P = 90 %; returns the accesses written."""
    rng = np.random.default_rng(0)
    law, order = PowerLaw(rows, 0.9), RowOrder.seeded(rows, rng)
    bags = 4096
    names = [f"table_{index}" for index in range(tables)]
    schema = pa.schema({name: pa.list_(pa.int32()) for name in names})
    offsets = pa.array(np.arange(0, bags * 128 + 1, 128, dtype=np.int32))
    written = 0
    with pq.ParquetWriter(path, schema) as writer:
        while written < accesses:
            ids = [order.ids(law.sample(rng, bags * 128)).astype(np.int32) for _ in names]
            lists = [pa.ListArray.from_arrays(offsets, pa.array(values)) for values in ids]
            writer.write_table(pa.table(dict(zip(names, lists, strict=True))))
            written += bags * 128 * tables
    return written


PARTS: dict[str, Callable[[], Any]] = {
    "compare": compare,
    "int8": int8,
    "random": random_instances,
    "large": large,
    "many_tables": many_tables,
    "growth": growth,
    "profile": profile,
}


def run(part: str) -> Any:
    """One part in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, "-m", "benchmarks.planning", "--only", part]
    print(f"{part} …", file=sys.stderr, flush=True)
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def checks(results: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(what, to reach, measured, reached)."""
    by: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in results["compare"]:
        key = (row["terms"], row["workload"], row["P"], row["traffic"])
        by.setdefault(key, {})[row["policy"]] = row
    equal = {key: value for key, value in by.items() if key[0] == "equal"}
    best = {key: value for key, value in by.items() if key[0] == "best"}
    more = max(e["joint"]["memory_bytes"] / e["elasticrec"]["memory_bytes"] for e in equal.values())
    gap = max(
        e["joint"]["lower_bound_gap"]
        for k, e in equal.items()
        if k[2] in (0.5, 0.9) and k[3] in (4, 8)
    )
    all_gap = max(cell["joint"]["lower_bound_gap"] for cell in equal.values())
    lines = [
        (
            "joint memory ÷ elasticrec's, largest over all P and traffic",
            "≤ 1",
            f"{more:.4f}",
            more <= 1 + 1e-9,
        ),
        ("above the relaxed bound, P = 50 and 90 %, 4× and 8×", "≤ 1 %", f"{gap:.2%}", gap <= 0.01),
        ("the same over all P and traffic", "", f"{all_gap:.2%}", True),
    ]
    known = {"rm1": 7.05, "rm2": 7.81, "rm3": 7.37}
    for name, reach in known.items():
        cell = equal["equal", name, 0.9, 8]
        got = cell["joint"]["memory_reduction"]
        few, many = cell["joint"]["containers"], cell["elasticrec"]["containers"]
        lines += [
            (
                f"{name}, P = 90 %, 8×: memory reduction (ElasticRec "
                f"{cell['elasticrec']['memory_reduction']:.2f})",
                f"{reach}",
                f"{got:.2f}",
                got >= reach - 0.005,
            ),
            (f"{name}, P = 90 %, 8×: containers", f"≤ {many} ÷ 2", f"{few}", few <= many / 2),
        ]
    for row in results["int8"]:
        lines.append(
            (
                f"{row['workload']} with int8 below the resident tier",
                "≥ 22",
                f"{row['memory_reduction']:.1f}",
                row["memory_reduction"] >= 22,
            )
        )
    dearer = max(
        e["joint"]["usd_per_month"] / min(e[p]["usd_per_month"] for p in POLICIES)
        for e in best.values()
    )
    slow = max(row["cpu_s"] for row in results["compare"])
    lines += [
        (
            "best against best: joint's dollars ÷ the cheapest policy's, largest",
            "≤ 1",
            f"{dearer:.4f}",
            dearer <= 1 + 1e-6,
        ),
        ("best against best: settings in which sharding is cheaper", "", _cheaper(best), True),
        ("all policies of one setting, CPU s, slowest", "≤ 30", f"{slow:.1f}", slow <= 30),
    ]
    return [*lines, *_scale_checks(results)]


def _cheaper(best: dict[tuple[Any, ...], dict[str, Row]]) -> str:
    pays = sum(
        cell["joint"]["usd_per_month"] < 0.99 * cell["model-wise"]["usd_per_month"]
        for cell in best.values()
    )
    return f"{pays} of {len(best)}"


def _scale_checks(results: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    chance, big = results["random"], results["large"]
    grown, read = results["growth"], results["profile"]
    seconds = max(big["equal_cpu_s"], big["best_cpu_s"])
    return [
        (
            f"{chance['instances']} random instances, largest distance to the bound",
            "≤ 5 %",
            f"{chance['largest_gap']:.2%}",
            chance["largest_gap"] <= 0.05,
        ),
        (
            f"{big['tables']:,} tables of {big['rows']:,} rows, slower set of terms",
            "≤ 10 s",
            f"{seconds:.1f} CPU s",
            seconds <= 10,
        ),
        (
            "its peak memory",
            "≤ 4 GB",
            f"{big['peak_bytes'] / 1e9:.2f} GB",
            big["peak_bytes"] <= 4e9,
        ),
        *_many_checks(results["many_tables"]),
        (
            "10^5 → 10^7 rows per table: times slower",
            f"≤ {grown['rows_log_rows']:.0f} (rows·log)",
            f"{grown['times_slower']:.1f}",
            grown["times_slower"] <= grown["rows_log_rows"],
        ),
        (
            f"profile {read['accesses']:,} accesses, {read['cpu_s']:.0f} CPU s, load average "
            f"{read['load_average']:.1f}",
            "≤ 60 s",
            f"{read['wall_s']:.1f} s",
            read["wall_s"] <= 60 and read["accesses"] == read["expected"],
        ),
        (
            "its peak memory",
            "≤ 2 GB",
            f"{read['peak_bytes'] / 1e9:.2f} GB",
            read["peak_bytes"] <= 2e9,
        ),
    ]


def _many_checks(many: Row) -> list[tuple[str, str, str, bool]]:
    size = f"{many['tables']:,} tables, {many['rows']:.1e} rows, {many['accesses']:.1e} accesses"
    return [
        (
            f"{size}: from histograms to plan.json",
            "≤ 60 s",
            f"{many['cpu_s']:.1f} CPU s, {many['wall_s']:.0f} s at load {many['load_average']:.1f}",
            many["cpu_s"] <= 60,
        ),
        (
            "its peak memory",
            "≤ 4 GB",
            f"{many['peak_bytes'] / 1e9:.2f} GB",
            many["peak_bytes"] <= 4e9,
        ),
    ]


def checks_table(lines: list[tuple[str, str, str, bool]]) -> str:
    """The checks as Markdown."""
    head = ["| what | reach | measured | |", "|---|---|---|---|"]
    return "\n".join(
        [
            *head,
            *(
                f"| {what} | {reach} | {got} | {_mark(reach, fine)} |"
                for what, reach, got, fine in lines
            ),
        ]
    )


def _mark(reach: str, fine: bool) -> str:
    return ("" if not reach else "yes") if fine else "**no**"


def table(rows: list[Row]) -> str:
    """The docs' table: memory, utility and cost over model-wise."""
    lines = [
        "| terms | workload | P | traffic | policy | memory ÷ | utility × | $ ÷ | containers | "
        "above bound |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    base: Row = {}
    for row in rows:
        if row["policy"] == "model-wise":
            base = row
            continue
        utility = row["memory_utility"] / base["memory_utility"]
        cost = base["usd_per_month"] / row["usd_per_month"]
        lines.append(
            f"| {row['terms']} | {row['workload']} | {row['P']:.0%} | {row['traffic']}× | "
            f"{row['policy']} | {row['memory_reduction']:.2f} | {utility:.2f} | {cost:.2f} | "
            f"{row['containers']} | {row['lower_bound_gap']:.2%} |"
        )
    return "\n".join(lines)


def _rewrite(page: Path, begin: str, end: str, text: str) -> None:
    old = page.read_text(encoding="utf-8")
    head, rest = old.split(begin)
    page.write_text(head + begin + "\n" + text + "\n" + end + rest.split(end)[1], encoding="utf-8")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", choices=("text", "json"), default="text")
    parser.add_argument("--docs", type=Path, help="rewrite the tables in this page")
    parser.add_argument("--only", choices=PARTS, help="one part, as JSON")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(PARTS[options.only](), indent=2))
        return
    results = {part: run(part) for part in PARTS}
    lines = checks(results)
    if options.docs:
        _rewrite(options.docs, BEGIN, END, table(results["compare"]))
        _rewrite(options.docs, CHECKED, CHECKED_END, checks_table(lines))
    if options.output == "json":
        print(json.dumps({**results, "checks": lines}, indent=2))
    else:
        print(table(results["compare"]), checks_table(lines), sep="\n\n")


if __name__ == "__main__":
    main()
