"""What the demo measured, as a result directory, a page, a JSON document and a table.

The result is written first; table and document take their numbers from it, as the page does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from erless.cli.demo.inputs import SLA_MS, Prepared
from erless.cli.demo.stage import Measured
from erless.cli.demo.whole import p95_ms
from erless.observe.access import access_plots
from erless.observe.loadtest.record import LoadRecord
from erless.observe.loadtest.sampler import columns_of, usage, usage_of, wakings
from erless.observe.queries import latency_of, timeline_of, totals_of
from erless.observe.report.result import write_report
from erless.observe.results import Series, write_result
from erless.plan.report.tables import verdict
from erless.specs.result import Baseline, RunResult, Usage

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["document_of", "summary_table", "tier_table", "write_page"]

TOLERANCE = 1e-5
STEP_S = 1.0
MB = 1e6


def write_page(measured: Measured, prepared: Prepared, out: Path, folder: Path) -> RunResult:
    """Write the result to `folder` and its page to `out`."""
    samples, start = measured.samples.samples, measured.started_s
    log = measured.answers.log()
    plan = measured.plan
    used = usage_of(samples)
    if measured.memory:  # of all processes: the functions' and the supervisor
        used["memory_bytes"] = usage([size for _, size in measured.memory])
    fields: dict[str, Any] = {
        "source": "demo",
        "title": "erless demo",
        "release": measured.release,
        "plan_digest": plan.digest,
        "policy": plan.policy,
        "started_at": measured.begun_at,
        "duration_s": measured.duration_s,
        "arrivals": "Poisson: low, then the spike; then nothing; then one query",
        "prediction": LoadRecord(start, log, log.latency_s, np.array(measured.errors)).prediction(
            TOLERANCE
        ),
        "memory_utility": measured.utility,
        "tax": measured.tax,
        "verdict": verdict(plan),
        "notes": (*assumptions(measured, prepared), *plan.notes),
        "access": access_plots(prepared.profile, plan),
        "model_wise": _whole_model(measured),
        **totals_of(log, SLA_MS),
        **used,
    }
    series = Series(
        timeline_of(log, measured.duration_s, STEP_S, SLA_MS),
        columns_of(samples, start),
        wakings(samples, start),
    )
    write_result(folder, fields, series, overwrite=True)
    return write_report(folder, out)


def _whole_model(measured: Measured) -> Baseline:
    """The whole model over the run: all of its processes during the spike, else one."""
    whole = measured.whole
    spike = measured.spike_s / measured.duration_s if measured.duration_s else 0.0
    replicas = 1 + (whole.processes - 1) * spike
    mean = whole.memory_bytes * spike + whole.alone_bytes * (1 - spike)
    return Baseline(
        memory_bytes=Usage(mean=mean, peak=float(whole.memory_bytes)),
        replicas=Usage(mean=replicas, peak=whole.processes),
        source=f"{whole.processes} process(es) of the whole model, which {_served(measured)}",
    )


def _served(measured: Measured) -> str:
    return f"answered the same spike on this machine with a p95 of {_beside(measured.whole.p95_ms)}"


def _beside(p95: float) -> str:
    """A p95 beside the SLA."""
    met = "within" if p95 <= SLA_MS else "not within"
    return f"{p95:,.1f} ms, {met} the SLA of {SLA_MS:g} ms"


def assumptions(measured: Measured, prepared: Prepared) -> tuple[str, ...]:
    """What the ratio rests on, a sentence each."""
    sharded = _beside(p95_ms(measured.answers))
    lines = [
        "Memory is what all processes hold (PSS), the supervisor that starts them among them.",
        f"Compared with {measured.whole.processes} process(es) of the whole model, measured in the "
        f"same run, which {_served(measured)}. By shards it was {sharded}.",
    ]
    if prepared.live < 1:
        lines.append(
            f"{1 - prepared.live:.0%} of each table's rows are asked for by nobody (--live), as "
            "items no longer offered: they lie in the function `frozen`, which is at zero until "
            "the last query."
        )
    if measured.tax is not None:
        lines.append(
            f"Memory is paid for in CPU: {measured.cpu_ms:.2f} ms a query by shards, "
            f"{measured.whole.cpu_ms:.2f} ms by one whole model ({measured.tax:.2f}×)."
        )
    return tuple(lines)


def document_of(
    measured: Measured, prepared: Prepared, result: RunResult, report: Path
) -> dict[str, Any]:
    """`-o json`."""
    latency = latency_of(np.array(measured.answers.latency_s))
    whole = measured.whole
    base = result.model_wise
    document: dict[str, Any] = {
        "verdict": result.verdict,
        "assumptions": list(assumptions(measured, prepared)),
        "memory_reduction": round(result.memory_reduction or 0.0, 4),
        "memory_bytes": round(result.memory_bytes.mean),
        "model_wise_memory_bytes": round(base.memory_bytes.mean) if base else 0,
        "spike_memory_reduction": round(whole.memory_bytes / max(1, measured.memory_bytes), 4),
        "spike_memory_bytes": measured.memory_bytes,
        "spike_model_wise_memory_bytes": whole.memory_bytes,
        "idle_memory_bytes": measured.idle_memory_bytes,
        "model_wise_processes": whole.processes,
        "model_wise_p95_ms": _finite(whole.p95_ms),
        "sla_p95_ms": SLA_MS,
        "live_share": prepared.live,
        "memory_utility": round(measured.utility, 4),
        "tax": None if measured.tax is None else round(measured.tax, 2),
        "cpu_ms_per_query": round(measured.cpu_ms, 3),
        "model_wise_cpu_ms_per_query": round(whole.cpu_ms, 3),
        "p50_ms": round(latency.p50_ms or 0.0, 3),
        "p95_ms": round(latency.p95_ms or 0.0, 3),
        "p99_ms": round(latency.p99_ms or 0.0, 3),
        "cold_start_ms": round(measured.cold_start_ms, 1),
        "max_relative_error": max(measured.errors, default=0.0),
        "queries_checked": len(measured.errors),
        "queries_failed": sum(bool(failure) for failure in measured.answers.failure),
        "functions": measured.functions,
        "functions_at_zero_when_idle": len(measured.at_zero),
        "functions_woken": len(measured.woken),
        "zero_share": {
            function.name: round(function.zero_share, 4) for function in result.functions
        },
        "release": measured.release,
        "report": str(report),
        "tiers": tier_rows(measured),
    }
    if measured.aucs is not None:
        document |= {"auc": round(measured.aucs[0], 6), "monolith_auc": round(measured.aucs[1], 6)}
    return document


def _finite(value: float) -> float | None:
    return round(value, 3) if np.isfinite(value) else None


def tier_rows(measured: Measured) -> list[dict[str, Any]]:
    """Where the rows of each tier lie, what they take, and how long their function takes."""
    shards = {shard.name: shard for shard in measured.plan.shards}
    rows = []
    for function in measured.tiers:
        shard = shards.get("resident" if function.kind == "gateway" else function.name)
        if shard is None:
            continue
        where = "disk" if shard.disk else "memory"
        rows.append(
            {
                "function": function.name,
                "tier": shard.tier.value,
                "rows_in": "the gateway" if function.kind == "gateway" else where,
                "row_bytes": shard.row_data_bytes,
                "memory_bytes": function.memory_bytes,
                "p95_ms": function.p95_ms,
            }
        )
    return rows


def tier_table(measured: Measured) -> Table:
    """The tiers side by side."""
    from rich.table import Table

    table = Table("function", "tier", "rows in", title="tiers, at the end of the spike")
    for head in ("rows, MB", "memory, MB", "p95 ms"):
        table.add_column(head, justify="right")
    for row in tier_rows(measured):
        late = "" if row["p95_ms"] is None else f"{row['p95_ms']:.1f}"
        sizes = (f"{row[name] / MB:,.0f}" for name in ("row_bytes", "memory_bytes"))
        table.add_row(row["function"], row["tier"], row["rows_in"], *sizes, late)
    return table


def summary_table(document: dict[str, Any], measured: Measured) -> Table:
    """The one table at the end: by shards, beside the whole model."""
    from rich.table import Table

    def size(name: str) -> str:
        return f"{document[name] / MB:,.0f} MB"

    table = Table("measured here", title="erless demo")
    for head in ("by shards", "whole model", "ratio"):
        table.add_column(head, justify="right")
    whole_p95 = document["model_wise_p95_ms"]
    table.add_row(
        "memory, mean over the run",
        size("memory_bytes"),
        size("model_wise_memory_bytes"),
        f"{document['memory_reduction']:.2f}× less",
    )
    table.add_row(
        "memory at the spike",
        size("spike_memory_bytes"),
        size("spike_model_wise_memory_bytes"),
        f"{document['spike_memory_reduction']:.2f}× less",
    )
    table.add_row("memory when idle", size("idle_memory_bytes"))
    tax = document["tax"]
    table.add_row(
        "CPU per query (the tax)",
        f"{document['cpu_ms_per_query']:.2f} ms",
        f"{document['model_wise_cpu_ms_per_query']:.2f} ms",
        "" if tax is None else f"{tax:.2f}× more",
    )
    table.add_row(
        f"p95 latency (SLA {SLA_MS:g} ms)",
        f"{document['p95_ms']:.1f} ms",
        "failed" if whole_p95 is None else f"{whole_p95:.1f} ms",
    )
    table.add_row("processes", str(document["functions"]), str(document["model_wise_processes"]))
    table.add_row("memory utility, 1,000 queries", f"{document['memory_utility']:.1%}")
    table.add_row(
        "query that woke " + ", ".join(measured.woken), f"{document['cold_start_ms']:,.0f} ms"
    )
    table.add_row("answers compared", f"{document['queries_checked']:,}")
    table.add_row("largest difference", f"{document['max_relative_error']:.1g}")
    if "auc" in document:
        table.add_row("AUC, held out", f"{document['auc']:.4f}", f"{document['monolith_auc']:.4f}")
    return table
