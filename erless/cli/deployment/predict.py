"""`erless predict`: send queries through a model and see predictions, latency and CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.deployment.target_options import TargetOptions, resolve_target
from erless.cli.option_groups import grouped
from erless.cli.options import CaOption
from erless.cli.query_columns import QueryColumnOption, query_file
from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from rich.console import Console

    from erless.cli.deployment.predictions import GatewayAddress, Outputs
    from erless.dlrm.graph_queries import GraphQueryFile
    from erless.dlrm.queries import QueryFile

SHOWN = 10  # predictions in the text output


@dataclass(frozen=True)
class GatewayOptions:
    """The gateway that answers, and how many queries it gets at once."""

    url: Annotated[str | None, typer.Option(help="A gateway [default: the deployment's].")] = None
    concurrency: Annotated[int, typer.Option(min=1, help="Queries in flight.")] = 1
    ca: CaOption = None


@dataclass(frozen=True)
class BundleOptions:
    """The bundle that predicts in this process, instead of the deployment or beside it."""

    monolith: Annotated[
        Path | None, typer.Option(help="Bundle to predict with, whole, in this process.")
    ] = None
    against: Annotated[
        Path | None, typer.Option(help="Compare the deployment's answers with this bundle's.")
    ] = None
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest relative difference, with --against.")
    ] = 1e-5
    threads: Annotated[int, typer.Option(min=1, help="torch's threads.")] = 1
    check: Annotated[bool, typer.Option(help="Compare the bundle with its digests first.")] = True


@verb
@grouped
def predict(
    queries: Annotated[
        Path, typer.Argument(help="Query file (safetensors), or samples as parquet or CSV.")
    ],
    gateway: GatewayOptions,
    bundle: BundleOptions,
    where: TargetOptions,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples per query.")] = None,
    column: QueryColumnOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Predict every query of a file by the deployment, or with --monolith by one process.

    With --against the answers are compared with a bundle's own; exit 1 where they differ.

    Example: `erless predict m/queries.safetensors --against m`,
    `erless predict samples.csv --column user=user_id`
    """
    from erless.cli.deployment.predictions import bundle_shape, gateway_shape, open_queries

    whole = bundle.monolith
    if whole is not None:
        shape = bundle_shape(whole)
        with query_file(queries, column, lambda: shape, batch) as path:
            file = open_queries(path, batch, shape.inputs)
            document = _document(file, bundle, *_whole(file, whole, bundle))
    else:
        deployed = _gateway(gateway, where)
        shape = bundle_shape(bundle.against) if bundle.against else gateway_shape(deployed)
        with query_file(queries, column, lambda: shape, batch) as path:
            file = open_queries(path, batch, shape.inputs)
            document = _document(file, bundle, *_deployed(file, deployed, gateway.concurrency))
    named = "".join(f" --column {pair}" for pair in column or ())
    then = f"erless bundle show {whole}" if whole else f"erless loadtest --queries {queries}{named}"
    emit(output, document, lambda console: _draw(console, document), then=then)
    if document.get("max_relative_error", 0.0) > bundle.tolerance:
        difference = f"{document['max_relative_error']:.2g} > {bundle.tolerance:g}"
        note(f"error: relative difference {difference}")
        raise SystemExit(1)


def _document(
    file: QueryFile | GraphQueryFile,
    bundle: BundleOptions,
    outputs: Outputs,
    measured: dict[str, Any],
) -> dict[str, Any]:
    """What was `measured`, the predictions, and how far they are from `bundle`'s, if wanted."""
    scores = next(iter(outputs.values()))
    document = measured | {
        "queries": len(file),
        "batch": file.batch,
        "predictions": scores.tolist(),
    }
    if file.labels is not None:
        from erless.dlrm.auc import auc

        document["auc"] = round(auc(file.labels, scores), 6)
    if bundle.against is not None:
        expected, _ = _whole(file, bundle.against, bundle)
        document["max_relative_error"] = max(
            _difference(outputs[name], array) for name, array in expected.items()
        )
    return document


def _gateway(options: GatewayOptions, where: TargetOptions) -> GatewayAddress:
    """The gateway at the URL of `options`, or, without one, the one that the target runs."""
    import os

    from erless.cli.deployment.predictions import GatewayAddress

    destination, config = resolve_target(where)
    token = os.environ.get(config.gateway.token_env) if config.gateway.token_env else None
    authorities = str(options.ca) if options.ca else None
    if options.url is not None:
        return GatewayAddress(options.url, token=token, authorities=authorities)
    status = destination.status()
    return GatewayAddress(status.answering_url(), status.address, token, authorities)


def _difference(actual: Any, expected: Any) -> float:
    """The largest relative difference."""
    import numpy as np

    errors = np.abs(actual - expected) / np.maximum(np.abs(expected), 1e-12)
    return float(errors.max()) if errors.size else 0.0


def _whole(
    file: QueryFile | GraphQueryFile, bundle: Path, options: BundleOptions
) -> tuple[Outputs, dict[str, Any]]:
    """Outputs of a bundle in this process by name, and what was measured."""
    from erless.cli.deployment.predictions import predict_whole

    outputs, timings = predict_whole(file, bundle, threads=options.threads, check=options.check)
    return outputs, {
        "bundle": str(bundle),
        "latency_ms": _quantiles(timings.latencies_ms),
        "cpu_ms_per_query": round(timings.cpu_s * 1e3 / max(1, len(file)), 4),
        "threads": options.threads,
    }


def _deployed(
    file: QueryFile | GraphQueryFile, gateway: GatewayAddress, concurrency: int
) -> tuple[Outputs, dict[str, Any]]:
    """Outputs of a gateway by name, and what was measured."""
    from erless.cli.deployment.predictions import ask_gateway

    outputs, answers = ask_gateway(file, gateway, concurrency)
    return outputs, {
        "url": gateway.url,
        "releases": sorted({answer.release for answer in answers}),
        "degraded": sum(answer.degraded for answer in answers),
        "cold_starts": sum(answer.cold_start for answer in answers),
        "fan_out": round(sum(answer.fan_out for answer in answers) / max(1, len(answers)), 3),
        "latency_ms": _quantiles([answer.took_s * 1e3 for answer in answers]),
    }


def _quantiles(latencies: list[float]) -> dict[str, float]:
    import numpy as np

    if not latencies:
        return {}
    p50, p95, p99 = np.quantile(latencies, [0.5, 0.95, 0.99])
    return {"p50": round(p50, 4), "p95": round(p95, 4), "p99": round(p99, 4)}


def _draw(console: Console, document: dict[str, Any]) -> None:
    shown = ", ".join(f"{score:.6f}" for score in document["predictions"][:SHOWN])
    more = len(document["predictions"]) - SHOWN
    console.print(f"predictions: {shown}" + (f", … {more:,} more (-o json)" if more > 0 else ""))
    latency = document["latency_ms"]
    if latency:
        times = ", ".join(f"{name} {value:.3f} ms" for name, value in latency.items())
        cpu = document.get("cpu_ms_per_query")
        spent = f"; {cpu:.3f} ms of CPU per query" if cpu is not None else ""
        console.print(f"{document['queries']:,} queries of {document['batch']}: {times}{spent}")
    if document.get("degraded") or document.get("cold_starts"):
        console.print(f"{document['degraded']} degraded, {document['cold_starts']} cold starts")
    if "max_relative_error" in document:
        console.print(f"largest relative difference: {document['max_relative_error']:.3g}")
    if "auc" in document:
        console.print(f"AUC {document['auc']:.4f}")
