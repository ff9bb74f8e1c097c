"""What `erless predict` does with a model cut from a graph: its file, its answers by name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import local
from typing import Any

import numpy as np

from erless.cli.bars import bars
from erless.dlrm.graph_queries import GraphQueryFile, served_inputs
from erless.dlrm.whole_graph import WholeGraph
from erless.serve.protocol.client import Answered, QueryClient
from erless.specs.bundle import BundleManifest
from erless.specs.features import NamedTensor
from erless.specs.model import GraphTower

__all__ = ["ask_gateway", "bundle_inputs", "gateway_inputs", "predict_whole"]

Outputs = dict[str, Any]


def bundle_inputs(folder: Path) -> tuple[NamedTensor, ...]:
    """The inputs of the bundle's model; none where it is no graph."""
    model = BundleManifest.open(folder).model
    return model.inputs if isinstance(model.tower, GraphTower) else ()


def gateway_inputs(url: str, token: str | None, address: str) -> tuple[NamedTensor, ...]:
    """The inputs of the model that a gateway serves; none where it is no graph."""
    with QueryClient(url, token, address=address) as client:
        listed = client.metadata["inputs"]
    return served_inputs(listed)


def predict_whole(
    file: GraphQueryFile, bundle: Path, threads: int, check: bool
) -> tuple[Outputs, list[float], float]:
    """Outputs of a bundle in this process; milliseconds of each query, CPU seconds of all."""
    model = WholeGraph(bundle, verify=check, threads=threads)
    found: list[Outputs] = []
    latencies = []
    with bars() as progress, progress.step("predict", len(file), "queries") as step:
        cpu = time.process_time()
        for inputs in file:
            begin = time.perf_counter()
            found.append(model.predict(inputs))
            latencies.append((time.perf_counter() - begin) * 1e3)
            step.advance(1)
        cpu = time.process_time() - cpu
    return _joined(found), latencies, cpu


def ask_gateway(
    file: GraphQueryFile, url: str, address: str, token: str | None, concurrency: int
) -> tuple[Outputs, list[Answered]]:
    """Outputs of the gateway at `url`, and what it said of each answer."""
    clients = local()

    def ask(index: int) -> tuple[Outputs, Answered]:
        if not hasattr(clients, "own"):
            clients.own = QueryClient(url, token, address=address)
        own: QueryClient = clients.own
        return own.infer(file[index])

    found, answers = [], []
    with (
        bars() as progress,
        ThreadPoolExecutor(concurrency) as pool,
        progress.step("predict", len(file), "queries") as step,
    ):
        for outputs, answer in pool.map(ask, range(len(file))):
            found.append(outputs)
            answers.append(answer)
            step.advance(1)
    return _joined(found), answers


def _joined(found: Sequence[Outputs]) -> Outputs:
    """The outputs of all queries, one after the other."""
    names = found[0] if found else {}
    return {name: np.concatenate([np.atleast_1d(each[name]) for each in found]) for name in names}
