"""Outputs of every query of a file: of a gateway, or of a whole bundle in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from erless.cli.bars import bars
from erless.dlrm.graph_queries import GraphQueryFile
from erless.dlrm.queries import QueryFile
from erless.dlrm.query_tables import QueryShape
from erless.dlrm.whole_graph import WholeGraph
from erless.progress import Progress
from erless.serve.protocol.client import Answered, ClientTls, QueryClient
from erless.specs.bundle import BundleManifest
from erless.specs.features import NamedTensor

__all__ = [
    "GatewayAddress",
    "Outputs",
    "Timings",
    "ask_gateway",
    "bundle_shape",
    "gateway_shape",
    "open_queries",
    "predict_whole",
]

Outputs = dict[str, NDArray[Any]]
Q = TypeVar("Q")
R = TypeVar("R")
Q_co = TypeVar("Q_co", covariant=True)


class _Queries(Sized, Iterable[Q_co], Protocol[Q_co]):
    """A query file, as far as it is read one query after the other."""


@dataclass(frozen=True)
class GatewayAddress:
    """Where a gateway is: its URL, HOST:PORT to connect to instead where not empty, its token, and
    the file of authorities that its certificate is checked against."""

    url: str
    address: str = ""
    token: str | None = None
    authorities: str | None = None

    def client(self) -> QueryClient:
        """A client of it, for one thread at a time."""
        tls = ClientTls(authorities=self.authorities)
        return QueryClient(self.url, self.token, address=self.address, tls=tls)


@dataclass(frozen=True)
class Timings:
    """What the queries of a file took in this process: ms of each, CPU seconds of all."""

    latencies_ms: list[float]
    cpu_s: float


def bundle_shape(folder: Path) -> QueryShape:
    """What the bundle's model takes."""
    return QueryShape.of_model(BundleManifest.open(folder).model)


def gateway_shape(gateway: GatewayAddress) -> QueryShape:
    """What the model takes that a gateway serves."""
    with gateway.client() as client:
        return QueryShape.of_metadata(client.metadata)


def open_queries(
    path: Path, batch: int | None, inputs: Sequence[NamedTensor]
) -> QueryFile | GraphQueryFile:
    """The query file at `path`; `inputs` are those of a graph, none for a DLRM."""
    return GraphQueryFile(path, inputs, batch) if inputs else QueryFile(path, batch)


def predict_whole(
    file: QueryFile | GraphQueryFile, bundle: Path, *, threads: int, check: bool
) -> tuple[Outputs, Timings]:
    """Outputs of a bundle in this process by name, and what they took.

    Args:
        file: the queries.
        bundle: its folder.
        threads: torch's.
        check: compare the bundle with its digests first.
    """
    with bars() as progress:
        if isinstance(file, GraphQueryFile):
            graph = WholeGraph(bundle, verify=check, threads=threads)
            outputs, timings = _timed(file, graph.predict, progress)
            return _joined(outputs), timings
        import torch

        from erless.dlrm.reference import Monolith

        torch.set_num_threads(threads)
        model = Monolith.load(bundle, verify=check, progress=progress)
        ordered = file.in_order_of([feature.name for feature in model.model.lookups])
        predictions, timings = _timed(ordered, model.predict, progress)
        return _prediction(predictions), timings


def _timed(
    file: _Queries[Q], predict: Callable[[Q], R], progress: Progress
) -> tuple[list[R], Timings]:
    results, latencies_ms = [], []
    with progress.step("predict", len(file), "queries") as step:
        cpu_s = time.process_time()
        for query in file:
            begin = time.perf_counter()
            results.append(predict(query))
            latencies_ms.append((time.perf_counter() - begin) * 1e3)
            step.advance(1)
        cpu_s = time.process_time() - cpu_s
    return results, Timings(latencies_ms, cpu_s)


def ask_gateway(
    file: QueryFile | GraphQueryFile, gateway: GatewayAddress, concurrency: int
) -> tuple[Outputs, list[Answered]]:
    """Outputs of the gateway by name, and what it said of each answer."""
    if isinstance(file, GraphQueryFile):
        graph = file
        pairs = _asked(len(graph), gateway, concurrency, lambda client, i: client.infer(graph[i]))
        return _joined([outputs for outputs, _ in pairs]), [answer for _, answer in pairs]
    with gateway.client() as client:
        tables = client.metadata.get("parameters", {}).get("tables", ())
    if tables:
        file = file.in_order_of([str(table["name"]) for table in tables])
    ordered = file
    answers = _asked(
        len(ordered), gateway, concurrency, lambda client, i: client.predict(ordered[i])
    )
    return _prediction([answer.predictions for answer in answers]), answers


def _asked(
    count: int, gateway: GatewayAddress, concurrency: int, ask: Callable[[QueryClient, int], R]
) -> list[R]:
    """What `ask` returns for each index below `count`, over `concurrency` connections."""
    idle: SimpleQueue[QueryClient] = SimpleQueue()
    results = []
    with ExitStack() as opened:
        for _ in range(concurrency):
            idle.put(opened.enter_context(gateway.client()))

        def work(index: int) -> R:
            client = idle.get()
            try:
                return ask(client, index)
            finally:
                idle.put(client)

        progress = opened.enter_context(bars())
        pool = opened.enter_context(ThreadPoolExecutor(concurrency))
        step = opened.enter_context(progress.step("predict", count, "queries"))
        for result in pool.map(work, range(count)):
            results.append(result)
            step.advance(1)
    return results


def _prediction(parts: Sequence[NDArray[np.float32]]) -> Outputs:
    """The predictions (B,) of each query, one after the other: (S,)."""
    return {"prediction": np.concatenate(parts) if parts else np.empty(0, np.float32)}


def _joined(results: Sequence[Outputs]) -> Outputs:
    """The outputs of all queries, one after the other."""
    names = results[0] if results else {}
    return {
        name: np.concatenate([np.atleast_1d(outputs[name]) for outputs in results])
        for name in names
    }
