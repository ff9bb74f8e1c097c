"""The tower as the functions call it: numpy in, numpy out, whatever computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.errors import ConfigError
from erless.specs.model import DlrmTower, GraphTower, ModelSpec

__all__ = ["Predict", "PredictTensors", "open_named_tower", "open_predict"]

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


def open_named_tower(path: Path, model: ModelSpec, *, threads: int) -> PredictTensors:
    """The tower at `path` on a CPU, of whatever kind the model has. Errors as `open_predict`."""
    if isinstance(model.tower, GraphTower):
        from erless.dlrm.graph_archives import open_tower_graph

        return open_tower_graph(model, path, threads=threads)
    return named(open_predict(path, model, threads=threads))


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
