"""`erless predict`: send queries through a model and see predictions, latency and CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.bars import bars
from erless.cli.deployment.target_options import TargetOptions, resolve_target
from erless.cli.option_groups import grouped
from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from erless.dlrm.graph_queries import GraphQueryFile
    from erless.dlrm.queries import QueryFile
    from erless.serve.protocol.client import Answered
    from erless.specs.features import NamedTensor

SHOWN = 10  # predictions in the text output


@dataclass(frozen=True)
class GatewayOptions:
    """Which gateway is asked, and how."""

    url: Annotated[str | None, typer.Option(help="A gateway [default: the deployment's].")] = None
    concurrency: Annotated[int, typer.Option(min=1, help="Queries in flight.")] = 1


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
    queries: Annotated[Path, typer.Argument(help="Query file (safetensors).")],
    gateway: GatewayOptions,
    bundle: BundleOptions,
    where: TargetOptions,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples per query.")] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Predict every query of a file by the deployment, or with --monolith by one process.

    With --against the answers are compared with a bundle's own; exit 1 where they differ.

    Example: `erless predict m/queries.safetensors --against m`
    """
    import os

    from erless.cli.deployment.predict_graph import bundle_inputs, gateway_inputs

    url = address = ""
    token = None
    if bundle.monolith is None:
        destination, config = resolve_target(where)
        token = os.environ.get(config.gateway.token_env) if config.gateway.token_env else None
        url = gateway.url or ""
        if gateway.url is None:
            status = destination.status()
            url, address = status.answering_url(), status.address
    known = bundle.monolith or bundle.against
    inputs = bundle_inputs(known) if known else gateway_inputs(url, token, address)
    file = _open(queries, batch, inputs)
    if bundle.monolith is not None:
        outputs, document = _whole(file, bundle.monolith, bundle)
    else:
        outputs, document = _deployed(file, url, address, gateway.concurrency, token)
    scores = next(iter(outputs.values()))
    document |= {
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
    emit(output, document, lambda console: _draw(console, document))
    if document.get("max_relative_error", 0.0) > bundle.tolerance:
        difference = f"{document['max_relative_error']:.2g} > {bundle.tolerance:g}"
        note(f"error: relative difference {difference}")
        raise SystemExit(1)


def _open(
    queries: Path, batch: int | None, inputs: Sequence[NamedTensor]
) -> QueryFile | GraphQueryFile:
    """The query file; `inputs` are those of a graph."""
    from erless.dlrm.graph_queries import GraphQueryFile
    from erless.dlrm.queries import QueryFile

    return GraphQueryFile(queries, inputs, batch) if inputs else QueryFile(queries, batch)


def _difference(found: Any, expected: Any) -> float:
    """The largest relative difference."""
    import numpy as np

    errors = np.abs(found - expected) / np.maximum(np.abs(expected), 1e-12)
    return float(errors.max()) if errors.size else 0.0


def _whole(
    file: QueryFile | GraphQueryFile, bundle: Path, options: BundleOptions
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs of a bundle in this process by name, and what was measured."""
    from erless.cli.deployment.predict_graph import predict_whole
    from erless.dlrm.queries import QueryFile

    if isinstance(file, QueryFile):
        predictions, latencies, cpu = _whole_dlrm(file, bundle, options)
        outputs = {"prediction": predictions}
    else:
        outputs, latencies, cpu = predict_whole(file, bundle, options.threads, options.check)
    return outputs, {
        "bundle": str(bundle),
        "latency_ms": _quantiles(latencies),
        "cpu_ms_per_query": round(cpu * 1e3 / max(1, len(file)), 4),
        "threads": options.threads,
    }


def _whole_dlrm(
    file: QueryFile, bundle: Path, options: BundleOptions
) -> tuple[Any, list[float], float]:
    """Predictions (S,), milliseconds of each query, CPU seconds of all."""
    import time

    import numpy as np
    import torch

    from erless.dlrm.reference import Monolith

    torch.set_num_threads(options.threads)
    with bars() as progress:
        model = Monolith.load(bundle, verify=options.check, progress=progress)
        file = file.in_order_of([feature.name for feature in model.model.lookups])
        predictions, latencies = [], []
        with progress.step("predict", len(file), "queries") as step:
            cpu = time.process_time()
            for query in file:
                begin = time.perf_counter()
                predictions.append(model.predict(query))
                latencies.append((time.perf_counter() - begin) * 1e3)
                step.advance(1)
            cpu = time.process_time() - cpu
    joined = np.concatenate(predictions) if predictions else np.empty(0, np.float32)
    return joined, latencies, cpu


def _deployed(
    file: QueryFile | GraphQueryFile, url: str, address: str, concurrency: int, token: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs of the gateway at `url` by name, and what was measured."""
    from erless.cli.deployment.predict_graph import ask_gateway
    from erless.dlrm.queries import QueryFile

    if isinstance(file, QueryFile):
        outputs, answers = _ask_for_prediction(file, url, address, concurrency, token)
    else:
        outputs, answers = ask_gateway(file, url, address, token, concurrency)
    return outputs, {
        "url": url,
        "releases": sorted({answer.release for answer in answers}),
        "degraded": sum(answer.degraded for answer in answers),
        "cold_starts": sum(answer.cold_start for answer in answers),
        "fan_out": round(sum(answer.fan_out for answer in answers) / max(1, len(answers)), 3),
        "latency_ms": _quantiles([answer.took_s * 1e3 for answer in answers]),
    }


def _ask_for_prediction(
    file: QueryFile, url: str, address: str, concurrency: int, token: str | None
) -> tuple[dict[str, Any], list[Answered]]:
    from concurrent.futures import ThreadPoolExecutor
    from threading import local

    import numpy as np

    from erless.observe.loadtest.encoded_queries import discover
    from erless.serve.protocol.client import QueryClient

    served = discover(url, token=token, connect=address)
    if served.tables:
        file = file.in_order_of([str(table["name"]) for table in served.tables])
    clients = local()

    def ask(index: int) -> Answered:
        if not hasattr(clients, "own"):
            clients.own = QueryClient(url, token, address=address)
        own: QueryClient = clients.own
        return own.predict(file[index])

    answers = []
    with (
        bars() as progress,
        ThreadPoolExecutor(concurrency) as pool,
        progress.step("predict", len(file), "queries") as step,
    ):
        for answer in pool.map(ask, range(len(file))):
            answers.append(answer)
            step.advance(1)
    parts = [answer.predictions for answer in answers]
    joined = np.concatenate(parts) if parts else np.empty(0, np.float32)
    return {"prediction": joined}, answers


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
