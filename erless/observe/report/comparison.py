"""Two results on one page, side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from erless.errors import LoadTestError
from erless.observe.report.timeline import (
    LATENCY,
    MEMORY,
    REPLICAS,
    TRAFFIC,
    lines_over_time,
    sla_line,
    total_of_functions,
)
from erless.observe.results import read_result
from erless.pages.charts import ChartLine, milliseconds, number, size
from erless.pages.page import figure, page, save_page, table
from erless.specs.result import RunResult

__all__ = ["write_comparison"]

SLACK = 0.1  # by which lengths may differ: a run ends with its last answer


def write_comparison(first: Path, second: Path, out: Path) -> tuple[RunResult, RunResult]:
    """Read two results and write one page that lays them side by side.

    Raises:
        ArtifactError: no result there, or it is damaged.
        LoadTestError: one ran longer than the other, so that totals and means do not compare.
        StorageError: the disk refused.
    """
    a, b = read_result(first), read_result(second)
    longer, shorter = sorted((a.document.duration_s, b.document.duration_s), reverse=True)
    if longer > shorter * (1 + SLACK):
        raise LoadTestError(
            f"{first} ran {a.document.duration_s:,.0f} s, {second} {b.document.duration_s:,.0f} s: "
            "only runs of one length compare"
        )
    names = (f"A: {a.document.title}", f"B: {b.document.title}")
    pairs = list(zip(names, (a, b), (0, 1), strict=True))

    def per_result(column: str) -> list[ChartLine]:
        return [
            ChartLine(name, result.timeline["t_s"], result.timeline[column], colour)
            for name, result, colour in pairs
        ]

    def summed(column: str) -> list[ChartLine]:
        return [total_of_functions(result, column, name, colour) for name, result, colour in pairs]

    limit = sla_line(a.document) if a.document.sla_p95_ms == b.document.sla_p95_ms else None
    parts = [
        figure("Side by side", "Ratios are A ÷ B.", _side_by_side(a.document, b.document)),
        figure(
            "Served traffic",
            "Queries answered per second.",
            lines_over_time(per_result("served_qps"), TRAFFIC),
        ),
        figure(
            "p95 latency",
            "From the moment a query was due.",
            lines_over_time(per_result("p95_ms"), LATENCY, limit=limit),
        ),
        figure(
            "Memory",
            "All replicas of all functions.",
            lines_over_time(summed("memory_bytes"), MEMORY),
        ),
        figure(
            "Replicas",
            "Ready, all functions.",
            lines_over_time(summed("ready"), REPLICAS),
        ),
    ]
    save_page(out, page("Two results side by side", f"{names[0]}; {names[1]}", parts))
    return a.document, b.document


def _side_by_side(a: RunResult, b: RunResult) -> str:
    def row(
        name: str, first: float | None, second: float | None, text: Callable[[float], str] = number
    ) -> list[str]:
        ratio = f"{first / second:.2f}×" if first is not None and second else "–"
        return [name, *("–" if value is None else text(value) for value in (first, second)), ratio]

    def percent(value: float) -> str:
        return f"{value:.2%}"

    def dollars(value: float) -> str:
        return f"${value:,.0f}"

    rows = [
        row("queries", a.queries, b.queries),
        row("answered", a.answered, b.answered),
        row("p50", a.latency.p50_ms, b.latency.p50_ms, milliseconds),
        row("p95", a.latency.p95_ms, b.latency.p95_ms, milliseconds),
        row("p99", a.latency.p99_ms, b.latency.p99_ms, milliseconds),
        row("late or failed", a.late_share, b.late_share, percent),
        row("memory, mean", a.memory_bytes.mean, b.memory_bytes.mean, size),
        row("memory, peak", a.memory_bytes.peak, b.memory_bytes.peak, size),
        row("on disks, mean", a.disk_bytes or None, b.disk_bytes or None, size),
        row("replicas, mean", a.replicas.mean, b.replicas.mean),
        row("a month", a.usd_per_month or None, b.usd_per_month or None, dollars),
        row("memory utility", a.memory_utility, b.memory_utility, percent),
        row("cold starts", a.cold_starts, b.cold_starts),
    ]
    told = [cells for cells in rows if set(cells[1:]) != {"–"}]
    return table(["", "A", "B", "A ÷ B"], told, "side by side")
