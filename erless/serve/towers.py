"""The tower as the functions call it: numpy in, numpy out, whatever computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.graph_lookup import GraphLookup, graph_tower
from erless.errors import ConfigError, QueryError
from erless.specs.artifact import FileEntry
from erless.specs.bundle import BundleManifest
from erless.specs.model import DlrmTower, ModelSpec

__all__ = [
    "GraphFiles",
    "Predict",
    "PredictTensors",
    "graph_files",
    "named",
    "open_compute",
    "open_lookup",
    "open_predict",
    "open_tower_graph",
]

Floats = NDArray[np.float32]
# dense (B, F), pooled (B, T, D) padded to the largest dim → predictions (B,)
Predict = Callable[[Floats, Floats], Floats]
# the tower's inputs by name → its outputs by name
PredictTensors = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]


def named(predict: Predict) -> PredictTensors:
    """`predict` with its input and output by name."""
    return lambda tensors: {"prediction": predict(tensors["dense"], tensors["pooled"])}


def open_predict(
    path: Path, model: ModelSpec, *, device: str = "cpu", precision: str = "fp32", threads: int = 1
) -> Predict:
    """The tower at `path`: the built-in one on a CPU in fp32 needs no torch.

    Raises:
        ArtifactError: the file is damaged.
        ModelError: it does not fit the model.
        ConfigError: the device is not there.
    """
    if isinstance(model.tower, DlrmTower) and device == "cpu" and precision == "fp32":
        from erless.dlrm.numpy_tower import NumpyTower

        return NumpyTower.load(path, model)
    return _torch_predict(path, model, device, precision, threads)


def _torch_predict(
    path: Path, model: ModelSpec, device: str, precision: str, threads: int
) -> Predict:
    import torch

    from erless.dlrm.numpy_tower import flat_pooled
    from erless.dlrm.tower import load_tower_file

    torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("ERLESS_DEVICE is 'cuda', but torch finds no CUDA device here")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tower = load_tower_file(path, model).to(device, dtype)
    dims = [table.dim for table in model.tables]

    def predict(dense: Floats, pooled: Floats) -> Floats:
        with torch.inference_mode():
            inputs = (torch.from_numpy(dense), torch.from_numpy(flat_pooled(pooled, dims)))
            x, vectors = (tensor.to(device, non_blocking=True) for tensor in inputs)
            answer: Floats = tower(x, [vectors]).cpu().numpy()
            return answer

    return predict


@dataclass(frozen=True, slots=True)
class GraphFiles:
    """Where a graph's archives lie, and its vocabularies by their path in the bundle."""

    tower: Path
    front: Path | None
    request_front: Path | None
    vocabularies: Mapping[str, Path]


def graph_files(folder: Path, bundle: BundleManifest) -> GraphFiles:
    """The files of the bundle at `folder`."""

    def place(entry: FileEntry | None) -> Path | None:
        return folder / entry.path if entry else None

    return GraphFiles(
        folder / bundle.tower.path,
        place(bundle.front),
        place(bundle.request_front),
        {entry.path: folder / entry.path for entry in bundle.vocabularies},
    )


def open_lookup(model: ModelSpec, files: GraphFiles, *, threads: int = 1) -> GraphLookup:
    """What reads the queries of a graph; torch is imported only where it has a front.

    Raises:
        ArtifactError: an archive or vocabulary is damaged.
    """
    tower = graph_tower(model)
    front = request_front = None
    if files.front is not None:
        takes, gives = tower.front_takes, tower.front_gives
        front = open_compute(files.front, takes, gives, threads=threads)
    if files.request_front is not None:
        takes, gives = tower.request_front_takes, tower.request_front_gives
        request_front = open_compute(files.request_front, takes, gives, threads=threads)
    return GraphLookup(model, files.vocabularies.__getitem__, front, request_front)


def open_tower_graph(
    model: ModelSpec, path: Path, *, device: str = "cpu", threads: int = 1
) -> PredictTensors:
    """The tower of a graph: values by name → outputs by name. Errors as `open_predict`."""
    names = [output.name for output in model.outputs]
    return open_compute(path, graph_tower(model).takes, names, device=device, threads=threads)


def open_compute(
    path: Path,
    takes: Sequence[str],
    gives: Sequence[str],
    *,
    device: str = "cpu",
    threads: int = 1,
) -> PredictTensors:
    """The archive at `path` as a function of named arrays.

    Args:
        takes, gives: names of its inputs and results, in their order.
        device: where it computes.
        threads: of torch.

    Raises:
        ArtifactError: it is damaged.
        ConfigError: the device is not there.
    """
    import torch

    from erless.dlrm.archive import build_module, move_module, read_archive

    torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("ERLESS_DEVICE is 'cuda', but torch finds no CUDA device here")
    module = build_module(read_archive(path))
    if device != "cpu":
        module = move_module(module, device, torch.float32)

    def compute(values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        tensors = [
            torch.from_numpy(np.require(values[name], requirements=["C", "W"])).to(device)
            for name in takes
        ]
        try:
            with torch.inference_mode():
                results = module(*tensors)
        except (RuntimeError, IndexError) as error:
            shapes = ", ".join(f"{name} {list(values[name].shape)}" for name in takes)
            fact = str(error).partition("\n")[0][:200]
            raise QueryError(f"the model does not take {shapes}: {fact}") from error
        return {name: result.cpu().numpy() for name, result in zip(gives, results, strict=True)}

    return compute
