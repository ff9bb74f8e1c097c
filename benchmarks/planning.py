"""Planning: the comparison of issue 3 in one run, the large instance, and the docs' table.

python benchmarks/planning.py [--output json] [--docs docs/planning.md] [--large]
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

from erless.dlrm.workload import WORKLOADS
from erless.plan.curves import AccessCurve, TableLoad
from erless.plan.document import policy_results
from erless.plan.planner import POLICIES, Planner
from erless.plan.request import PlanRequest
from erless.plan.source import workload_tables
from erless.specs.model import DlrmTower, ModelSpec, TableSpec

BEGIN, END = "<!-- table: benchmarks/planning.py -->", "<!-- end of table -->"


def compare() -> list[dict[str, object]]:
    """Every workload, locality, traffic and set of terms."""
    rows: list[dict[str, object]] = []
    for equal in (True, False):
        for name in WORKLOADS:
            for locality in (0.1, 0.5, 0.9):
                for traffic in (4, 8, 16, 32):
                    model, tables = workload_tables(name, locality, 32)
                    request = PlanRequest(traffic=traffic, equal_containers=equal)
                    begin = time.process_time()
                    found = Planner(model, tables, request).outcome(POLICIES)
                    spent = time.process_time() - begin
                    rows += [
                        {"terms": "equal" if equal else "best", "workload": name, "P": locality,
                         "traffic": traffic, "cpu_s": spent, **each.model_dump()}
                        for each in policy_results(found)
                    ]  # fmt: skip
    return rows


def large(count: int = 1000, rows: int = 1_000_000) -> dict[str, float]:
    """`count` tables of `rows` rows, each with a locality of its own."""
    begin = time.process_time()
    names = [f"t{index}" for index in range(count)]
    model = ModelSpec(
        dense_features=64,
        tables=tuple(TableSpec(name=name, rows=rows, dim=32) for name in names),
        tower=DlrmTower(bottom_mlp=(64, 32), top_mlp=(256, 1)),
    )
    tables = [
        TableLoad(spec, 32.0 * (1 + index % 20),
                  AccessCurve.power_law(rows, 0.5 + 0.45 * index / count, 1.05))
        for index, spec in enumerate(model.tables)
    ]  # fmt: skip
    found = Planner(model, tables, PlanRequest(equal_containers=True)).outcome()
    (joint,) = policy_results(found)
    return {
        "tables": count, "rows": rows, "cpu_s": time.process_time() - begin,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
        "lower_bound_gap": joint.lower_bound_gap, "containers": joint.containers,
    }  # fmt: skip


def table(rows: list[dict[str, object]]) -> str:
    """The docs' table: memory, utility and cost over model-wise."""
    lines = [
        "| terms | workload | P | traffic | policy | memory ÷ | utility × | $ ÷ | containers | "  # noqa: RUF001
        "above bound |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    base: dict[str, object] = {}
    for each in rows:
        if each["policy"] == "model-wise":
            base = each
            continue
        utility = float(each["memory_utility"]) / float(base["memory_utility"])  # type: ignore[arg-type]
        cost = float(base["usd_per_month"]) / float(each["usd_per_month"])  # type: ignore[arg-type]
        lines.append(
            f"| {each['terms']} | {each['workload']} | {each['P']:.0%} | {each['traffic']}× | "  # noqa: RUF001
            f"{each['policy']} | {each['memory_reduction']:.2f} | {utility:.2f} | {cost:.2f} | "
            f"{each['containers']} | {each['lower_bound_gap']:.2%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", choices=("text", "json"), default="text")
    parser.add_argument("--docs", type=Path, help="rewrite the table in this page")
    parser.add_argument("--large", action="store_true", help="only 1,000 tables of 10^6 rows")
    given = parser.parse_args()
    if given.large:
        print(json.dumps(large(), indent=2))
        return
    rows = compare()
    if given.docs:
        page = given.docs.read_text(encoding="utf-8")
        head, rest = page.split(BEGIN)
        given.docs.write_text(head + BEGIN + "\n" + table(rows) + "\n" + END + rest.split(END)[1],
                              encoding="utf-8")  # fmt: skip
    print(json.dumps(rows, indent=2) if given.output == "json" else table(rows))


if __name__ == "__main__":
    main()
