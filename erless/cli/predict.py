"""`erless predict`: send queries through a model and see predictions, latency and CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.bars import bars
from erless.cli.run import Output, OutputOption, emit, verb

if TYPE_CHECKING:
    from rich.console import Console

SHOWN = 10  # predictions in the text output


@verb
def predict(
    queries: Annotated[Path, typer.Argument(help="Query file (safetensors).")],
    monolith: Annotated[Path, typer.Option(help="Bundle to predict with, whole, in this process.")],
    batch: Annotated[int | None, typer.Option(min=1, help="Samples per query.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="torch's threads.")] = 1,
    check: Annotated[bool, typer.Option(help="Compare the bundle with its digests first.")] = True,
    output: OutputOption = Output.TEXT,
) -> None:
    """Predict every query of a file; tell predictions, latency and CPU per query.

    Example: `erless predict --monolith m m/queries.safetensors -o json`
    """
    import time

    import numpy as np
    import torch

    from erless.dlrm.queries import QueryFile, check_tables
    from erless.dlrm.reference import Monolith

    torch.set_num_threads(threads)
    file = QueryFile(queries, batch)
    with bars() as progress:
        model = Monolith.load(monolith, verify=check, progress=progress)
        check_tables(file, model.model)
        predictions, latencies = [], []
        with progress.step("predict", len(file), "queries") as step:
            cpu = time.process_time()
            for query in file:
                begin = time.perf_counter()
                predictions.append(model.predict(query))
                latencies.append((time.perf_counter() - begin) * 1e3)
                step.advance(1)
            cpu = time.process_time() - cpu
    scores = np.concatenate(predictions) if predictions else np.empty(0, np.float32)
    document: dict[str, Any] = {
        "bundle": str(monolith),
        "queries": len(file),
        "batch": file.batch,
        "predictions": [float(each) for each in scores],
        "latency_ms": _quantiles(latencies),
        "cpu_ms_per_query": round(cpu * 1e3 / max(1, len(file)), 4),
        "threads": threads,
    }
    if file.labels is not None:
        from erless.dlrm.auc import auc

        document["auc"] = round(auc(file.labels, scores), 6)
    emit(output, document, lambda console: _draw(console, document))


def _quantiles(latencies: list[float]) -> dict[str, float]:
    import numpy as np

    if not latencies:
        return {}
    p50, p95, p99 = np.quantile(latencies, [0.5, 0.95, 0.99])
    return {"p50": round(p50, 4), "p95": round(p95, 4), "p99": round(p99, 4)}


def _draw(console: Console, document: dict[str, Any]) -> None:
    shown = ", ".join(f"{each:.6f}" for each in document["predictions"][:SHOWN])
    more = len(document["predictions"]) - SHOWN
    console.print(f"predictions: {shown}" + (f", … {more:,} more (-o json)" if more > 0 else ""))
    latency = document["latency_ms"]
    if latency:
        times = ", ".join(f"{name} {value:.3f} ms" for name, value in latency.items())
        console.print(
            f"{document['queries']:,} queries of {document['batch']}: {times}; "
            f"{document['cpu_ms_per_query']:.3f} ms of CPU per query"
        )
    if "auc" in document:
        console.print(f"AUC {document['auc']:.4f}")
