"""One result as a page that needs nothing but a browser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.observe.report.faults import drill_parts, drill_tiles, fault_marks
from erless.observe.report.timeline import (
    LATENCY,
    MEMORY,
    REPLICAS,
    TRAFFIC,
    lines_over_time,
    sla_line,
    time_unit,
    total_of_functions,
)
from erless.observe.results import StoredResult, read_result
from erless.pages.access import HotnessCurve, access_chart
from erless.pages.bars import Bar, bar_chart
from erless.pages.charts import ChartLine, milliseconds, number, size
from erless.pages.page import figure, notes, page, save_page, table, tiles
from erless.specs.result import FunctionResult, RunResult

__all__ = ["write_report"]

Floats = NDArray[np.float64]
COLOURS = 8
MOST_TABLES = 6  # access curves drawn
MOST_MARKS = 60  # cold starts drawn
MANY = 10**7  # queries: too long a number for a tile


def write_report(result: Path, out: Path) -> RunResult:
    """Read the result directory `result` and write the page `out`.

    Raises:
        ArtifactError: no result there, or it is damaged.
        StorageError: the disk refused.
    """
    stored = read_result(result)
    document = stored.document
    parts = [
        _stopped(document),
        _summary(document),
        _traffic(stored),
        _latency(stored),
        *drill_parts(document.drill),
        _replicas(stored),
        _memory(stored),
        _breakdown(document),
        _access(document),
        _prediction(document),
        _functions(document),
        _notes(document),
    ]
    save_page(out, page(document.title, _subtitle(document), parts))
    return document


def _subtitle(document: RunResult) -> str:
    how = "simulated" if document.source == "simulate" else "measured"
    name, unit_s = time_unit(document.duration_s)
    parts = [
        how,
        document.started_at,
        f"{number(document.duration_s / unit_s)} {name}",
        document.arrivals,
        document.release[:12] and f"release {document.release[:12]}",
        document.machine.processor if document.machine else "",
    ]
    return " · ".join(part for part in parts if part)


def _stopped(document: RunResult) -> str:
    if not document.interrupted:
        return ""
    return (
        f'<section><p class="bad">Stopped early: this is what the first '
        f"{document.duration_s:,.0f} s measured.</p></section>"
    )


def _summary(document: RunResult) -> str:
    latency, base = document.latency, document.model_wise
    many = document.answered >= MANY
    answered = number(document.answered) if many else f"{document.answered:,}"
    entries = [(answered, f"of {document.queries:,} queries answered")]
    entries += drill_tiles(document.drill)
    if document.failed:
        entries.append((f"{document.failed:,}", "failed: " + ", ".join(document.failures)))
    if latency.p95_ms is not None:
        limit = document.sla_p95_ms
        entries += [
            (milliseconds(latency.p95_ms), f"p95, SLA {milliseconds(limit)}" if limit else "p95"),
            (
                f"{milliseconds(latency.p50_ms or 0)} / {milliseconds(latency.p99_ms or 0)}",
                "p50 / p99",
            ),
        ]
    if document.sla_p95_ms:
        entries.append((f"{document.late_share:.2%}", "of queries late or failed"))
    entries.append((size(document.memory_bytes.mean), "memory, mean over the run"))
    if document.disk_bytes:
        entries.append((size(document.disk_bytes), "rows on nodes' disks"))
    if base and document.memory_reduction:
        ratio = document.memory_reduction
        word, shown = ("less", ratio) if ratio >= 1 else ("more", 1 / ratio)
        entries.append((f"{shown:.2f}×", f"{word} memory than model-wise"))
    if base and document.memory_utility and base.memory_utility:
        entries.append(
            (f"{document.memory_utility / base.memory_utility:.2f}×", "model-wise memory utility")
        )
    if base and base.usd_per_month and document.usd_per_month:
        entries.append(
            (f"{base.usd_per_month / document.usd_per_month:.2f}×", "cheaper than model-wise")
        )
    if document.tax:
        entries.append((f"{document.tax:.2f}×", "CPU per query of the whole model (the tax)"))
    entries.append((f"{document.cold_starts:,}", "queries met a cold start"))
    if document.degraded:
        entries.append((f"{document.degraded:,}", "degraded answers"))
    said = (
        f'<p class="verdict">The plan: {escape(document.verdict)}.</p>' if document.verdict else ""
    )
    return tiles(entries) + said


def _traffic(stored: StoredResult) -> str:
    columns = stored.timeline
    lines = [
        ChartLine("offered", columns["t_s"], columns["offered_qps"], 7, dash=True),
        ChartLine("served", columns["t_s"], columns["served_qps"], 0),
    ]
    if columns["failed_qps"].any():
        lines.append(ChartLine("failed", columns["t_s"], columns["failed_qps"], 5))
    marks = _marks(stored)
    caption = "Queries per second."
    if marks:
        what = "faults" if stored.document.drill else "functions woken from zero, failures"
        caption += f" Dotted: {what}."
    return figure("Traffic", caption, lines_over_time(lines, TRAFFIC, marks=marks))


def _latency(stored: StoredResult) -> str:
    columns = stored.timeline
    lines = [
        ChartLine(name, columns["t_s"], columns[f"{name}_ms"], colour)
        for name, colour in (("p50", 2), ("p95", 0), ("p99", 1))
    ]
    return figure(
        "Latency",
        "From the moment a query was due to its answer, per step.",
        lines_over_time(lines, LATENCY, limit=sla_line(stored.document), marks=_marks(stored)),
    )


def _marks(stored: StoredResult) -> list[tuple[float, str]]:
    if stored.document.drill:
        return fault_marks(stored.document.drill)
    shown = [event for event in stored.events if event.kind in ("cold start", "failure")]
    shown = shown[:: max(1, -(-len(shown) // MOST_MARKS))]
    return [
        (event.t_s, f"{event.kind}: {event.function} {event.detail}".strip()) for event in shown
    ]


def _grouped(stored: StoredResult, column: str) -> list[ChartLine]:
    """One line per function, or per tier where there are more functions than colours."""
    functions = stored.document.functions
    groups = {function.name: function.name for function in functions}
    if len(functions) > COLOURS:
        groups = {function.name: function.tier or function.kind for function in functions}
    times = np.unique(stored.functions["t_s"])
    place = np.searchsorted(times, stored.functions["t_s"])
    names = list(dict.fromkeys(groups.values()))
    lines = []
    for colour, name in enumerate(names):
        in_group = np.array(
            [groups.get(function) == name for function in stored.functions["function"]], bool
        )
        values = stored.functions[column][in_group].astype(np.float64)
        sums = np.bincount(place[in_group], values, len(times)).astype(np.float64)
        lines.append(ChartLine(name, times, sums, colour % COLOURS))
    return lines


def _replicas(stored: StoredResult) -> str:
    lines = _grouped(stored, "ready")
    if not lines:
        return ""
    wanted = total_of_functions(stored, "wanted", "wanted, all", 7)
    lines.append(replace(wanted, dash=True))
    return figure(
        "Replicas",
        "Ready replicas, stacked, and how many the autoscaler wanted in all.",
        lines_over_time(lines, REPLICAS, stacked=True),
    )


def _memory(stored: StoredResult) -> str:
    lines = _grouped(stored, "memory_bytes")
    if not lines:
        return ""
    base = stored.document.model_wise
    limit = (base.memory_bytes.mean, "model-wise, mean") if base else None
    caption = "Of all replicas, stacked."
    if base:
        caption += f" Model-wise: {base.source}."
    return figure(
        "Memory",
        caption,
        lines_over_time(lines, MEMORY, stacked=True, limit=limit),
    )


def _breakdown(document: RunResult) -> str:
    parts, base = [], document.model_wise
    shown = _largest(document, lambda function: function.memory_bytes.mean)
    bars = [Bar("erless", shown)]
    if base:
        bars.append(Bar("model-wise", (("model-wise replicas", base.memory_bytes.mean, 7),)))
    parts.append(figure("Where the memory is", "Mean over the run.", bar_chart(bars, text=size)))
    if document.usd_per_month:
        bars = [Bar("erless", _largest(document, lambda function: function.usd_per_month))]
        if base and base.usd_per_month:
            bars.append(Bar("model-wise", (("model-wise replicas", base.usd_per_month, 7),)))
        parts.append(
            figure(
                "What it costs",
                "Dollars a month at this use.",
                bar_chart(bars, text=lambda value: f"${value:,.0f}"),
            )
        )
    return "".join(parts)


def _largest(document: RunResult, of: Callable[[Any], float]) -> tuple[tuple[str, float, int], ...]:
    """The largest functions in the colours of the other plots, and the rest as one."""
    numbered = {function.name: number for number, function in enumerate(document.functions)}
    order = sorted(document.functions, key=of, reverse=True)
    few = len(order) <= COLOURS
    head, others = (order, []) if few else (order[: COLOURS - 1], order[COLOURS - 1 :])
    parts = [
        (function.name, of(function), numbered[function.name] if few else colour)
        for colour, function in enumerate(head)
    ]
    if others:
        parts.append((f"{len(others)} others", sum(map(of, others)), COLOURS - 1))
    return tuple(parts)


def _access(document: RunResult) -> str:
    if not document.access:
        return ""
    shown = document.access[:MOST_TABLES]
    curves = [
        HotnessCurve(access.table, np.array(access.ranks, np.float64), np.array(access.share))
        for access in shown
    ]
    marks = [
        (float(rank), f"{access.table}: {shard} ends at rank {rank:,}")
        for access in shown
        for rank, shard in access.cuts
    ]
    caption = "Share of accesses that the hottest rows take. Dotted: where shards end."
    if len(document.access) > len(shown):
        caption += f" {len(shown)} of {len(document.access)} tables."
    return figure(
        "Access and cuts",
        caption,
        access_chart(curves, marks),
    )


def _prediction(document: RunResult) -> str:
    check = document.prediction
    if check is None:
        return ""
    sentence = (
        f"{check.checked:,} answers compared with the monolith's: largest relative error "
        f"{check.max_relative_error:.2g}, {check.wrong:,} beyond {check.tolerance:.2g}."
    )
    bars = [
        Bar(f"≤ {edge:.0e}", (("answers", float(count), 0),)) for edge, count in check.histogram
    ]
    return figure("Prediction error", sentence, bar_chart(bars, text=lambda count: f"{count:,.0f}"))


def _functions(document: RunResult) -> str:
    disks = document.disk_bytes > 0
    rows = [
        [
            function.name,
            function.tier or function.kind,
            f"{function.replicas.mean:.2f}",
            f"{function.replicas.peak:.0f}",
            size(function.memory_bytes.mean),
            size(function.memory_bytes.peak),
            f"{function.zero_share:.0%}",
            *(_on_disk(function) if disks else ()),
        ]
        for function in document.functions
    ]
    header = ["function", "tier", "replicas", "most", "memory", "most", "at zero"]
    header += ["on disk", "reads/s", "most", "reads add, p95"] if disks else []
    return (
        f"<section><h2>Functions</h2>{table(header, rows, 'functions')}</section>" if rows else ""
    )


def _on_disk(function: FunctionResult) -> list[str]:
    """Rows on nodes' disks: their bytes, reads per second, and what reads were planned to add."""
    if not function.disk_bytes.peak:
        return [""] * 4
    return [
        size(function.disk_bytes.mean),
        f"{function.disk_reads_s.mean:,.0f}",
        f"{function.disk_reads_s.peak:,.0f}",
        "" if function.disk_ms is None else f"{function.disk_ms:.1f} ms",
    ]


def _notes(document: RunResult) -> str:
    if not document.notes:
        return ""
    return f"<section><h2>Notes</h2>{notes(document.notes)}</section>"
