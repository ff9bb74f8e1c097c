"""What the demo measured, as a result directory, a page, a JSON document and a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from erless.cli.demo.inputs import VCPU, Prepared
from erless.cli.demo.stage import Measured
from erless.observe.access import access_plots
from erless.observe.loadtest.record import LoadRecord
from erless.observe.loadtest.sampler import columns_of, usage_of, wakings
from erless.observe.queries import latency_of, timeline_of, totals_of
from erless.observe.report.result import write_report
from erless.observe.results import Series, write_result
from erless.specs.result import Baseline, Usage

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["document_of", "summary_table", "write_page"]

TOLERANCE = 1e-5
SLA_MS = 100.0
STEP_S = 1.0


def write_page(measured: Measured, prepared: Prepared, out: Path, folder: Path) -> None:
    """Write the result to `folder` and its page to `out`."""
    samples, start = measured.samples.samples, measured.started_s
    log = measured.answers.log()
    errors = np.array(measured.errors)
    plan = measured.plan
    fields: dict[str, Any] = {
        "source": "demo",
        "title": "erless demo",
        "release": measured.release,
        "plan_digest": plan.digest,
        "policy": plan.policy,
        "started_at": measured.begun_at,
        "duration_s": measured.duration_s,
        "arrivals": "Poisson: low, then the spike; then nothing; then one query",
        "prediction": LoadRecord(start, log, errors).prediction(TOLERANCE),
        "memory_utility": measured.utility,
        "notes": (*plan.notes, _without_limits(measured)),
        "access": access_plots(prepared.profile, plan),
        "model_wise": Baseline(
            memory_bytes=Usage(mean=measured.model_wise_bytes, peak=measured.model_wise_bytes),
            replicas=Usage(mean=measured.whole_replicas, peak=measured.whole_replicas),
            source="one replica's PSS, measured, times the replicas that the same plan's "
            f"model-wise policy needs at the spike, of {VCPU:g} vCPU each, all through the run",
        ),
        **totals_of(log, SLA_MS),
        **usage_of(samples),
    }
    series = Series(
        timeline_of(log, measured.duration_s, STEP_S, SLA_MS),
        columns_of(samples, start),
        wakings(samples, start),
    )
    write_result(folder, fields, series, overwrite=True)
    write_report(folder, out)


def _without_limits(measured: Measured) -> str:
    """What the model-wise comparison leaves out."""
    return (
        f"Model-wise replicas are counted as containers of {VCPU:g} vCPU, as planned; nothing here "
        f"holds a process to that. Without it, {measured.processes_needed} whole-model processes "
        f"of {measured.whole_bytes / 1e6:,.0f} MB would serve the spike on this machine."
    )


def document_of(measured: Measured, report: Path) -> dict[str, Any]:
    """`-o json`."""
    latency = latency_of(np.array(measured.answers.latency_s))
    document: dict[str, Any] = {
        "max_relative_error": max(measured.errors, default=0.0),
        "queries_checked": len(measured.errors),
        "queries_failed": sum(bool(failure) for failure in measured.answers.failure),
        "memory_bytes": measured.memory_bytes,
        "model_wise_memory_bytes": measured.model_wise_bytes,
        "model_wise_replicas": measured.whole_replicas,
        "container_vcpu": VCPU,
        "whole_model_processes_needed_here": measured.processes_needed,
        "whole_model_process_bytes": measured.whole_bytes,
        "memory_reduction": round(measured.model_wise_bytes / max(1, measured.memory_bytes), 3),
        "idle_memory_bytes": measured.idle_memory_bytes,
        "memory_utility": round(measured.utility, 4),
        "tax": round(measured.cpu_ms / measured.whole_cpu_ms, 3) if measured.whole_cpu_ms else None,
        "cpu_ms_per_query": round(measured.cpu_ms, 3),
        "p50_ms": round(latency.p50_ms or 0.0, 3),
        "p95_ms": round(latency.p95_ms or 0.0, 3),
        "p99_ms": round(latency.p99_ms or 0.0, 3),
        "cold_start_ms": round(measured.cold_start_ms, 1),
        "functions": measured.functions,
        "functions_at_zero_when_idle": len(measured.at_zero),
        "functions_woken": len(measured.woken),
        "release": measured.release,
        "report": str(report),
        "tiers": tier_rows(measured),
    }
    if measured.aucs is not None:
        document |= {"auc": round(measured.aucs[0], 6), "monolith_auc": round(measured.aucs[1], 6)}
    return document


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
        sizes = (f"{row[name] / 1e6:,.0f}" for name in ("row_bytes", "memory_bytes"))
        table.add_row(row["function"], row["tier"], row["rows_in"], *sizes, late)
    return table


def summary_table(document: dict[str, Any], measured: Measured) -> Table:
    """The one table at the end."""
    from rich.table import Table

    table = Table("measured here", "", title="erless demo")
    table.columns[1].justify = "right"
    megabytes = 1e6
    rows = [
        (
            "memory at the spike, all processes (PSS)",
            f"{document['memory_bytes'] / megabytes:,.0f} MB",
        ),
        (
            f"by {document['model_wise_replicas']} model-wise replicas of "
            f"{document['container_vcpu']:g} vCPU (planned so; nothing here holds them to it)",
            f"{document['model_wise_memory_bytes'] / megabytes:,.0f} MB",
        ),
        ("memory, these model-wise replicas ÷ sharded", f"{document['memory_reduction']:.2f}"),
        (
            "whole-model processes that the spike needs here, a core each",
            f"{document['whole_model_processes_needed_here']} × "
            f"{document['whole_model_process_bytes'] / megabytes:,.0f} MB",
        ),
        ("memory utility, 1,000 queries", f"{document['memory_utility']:.1%}"),
        ("disaggregation tax: CPU per query, sharded ÷ monolith", f"{document['tax']:.2f}"),
        (
            "latency p50 / p95 / p99",
            f"{document['p50_ms']:.1f} / {document['p95_ms']:.1f} / {document['p99_ms']:.1f} ms",
        ),
        ("query that woke " + ", ".join(measured.woken), f"{document['cold_start_ms']:,.0f} ms"),
        (
            "functions; at zero when idle",
            f"{document['functions']}; {document['functions_at_zero_when_idle']}",
        ),
        ("answers compared with the monolith", f"{document['queries_checked']:,}"),
        ("largest relative difference", f"{document['max_relative_error']:.2g}"),
    ]
    if "auc" in document:
        rows.append(
            ("AUC, held out; monolith", f"{document['auc']:.4f}; {document['monolith_auc']:.4f}")
        )
    for row in rows:
        table.add_row(*row)
    return table
