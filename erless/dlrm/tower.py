"""The dense tower: bottom MLP, feature interaction, top MLP; or any exported architecture.

A tower takes `dense` (B, F) and the pooled vectors, and gives B predictions. Pooled vectors come as
tensors whose concatenation along dim 1 is (B, Σ dim) in the features' order: one per feature (the
monolith), or one for all (a gateway that combined partial sums in place).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import functional as F

from erless.dlrm.archive import load_exported, move_module
from erless.dlrm.layers import (
    builtin_spec,
    check_layers,
    interaction_pairs,
    top_inputs,
    tower_layers,
)
from erless.specs.bundle import BundleManifest
from erless.specs.model import DlrmTower, ExportedTower, ModelSpec
from erless.storage.tensors import TensorFile

__all__ = [
    "BuiltinTower",
    "ForeignTower",
    "Tower",
    "builtin_tower",
    "load_tower",
    "load_tower_file",
    "top_inputs",
    "tower_layers",
]

Layers = Sequence[tuple[Tensor, Tensor]]
CrossLayers = Sequence[tuple[Tensor, Tensor, Tensor]]


class Tower(ABC):
    """`dense` and pooled vectors in, predictions out. Call it under `torch.inference_mode()`."""

    @abstractmethod
    def __call__(self, dense: Tensor, pooled: Sequence[Tensor]) -> Tensor:
        """Predict.

        Args:
            dense: (B, F) float32.
            pooled: float32 tensors whose concatenation along dim 1 is (B, Σ dim).

        Returns:
            (B,) float32.
        """

    @abstractmethod
    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tower:
        """The same tower on `device`, computing in `dtype`."""


class BuiltinTower(Tower):
    """The DLRM tower (arXiv 1906.00091, §3).

    Args:
        model: a model whose tower is a `DlrmTower`.
        bottom: (weight (out, in), bias (out,)) per layer.
        top: likewise.
        cross: (down (rank, n), up (n, rank), bias (n,)) per layer of a cross net.
    """

    def __init__(
        self, model: ModelSpec, bottom: Layers, top: Layers, cross: CrossLayers = ()
    ) -> None:
        self.model, self.spec = model, builtin_spec(model)
        self.bottom, self.top, self.cross = bottom, top, cross
        device = top[0][0].device
        self._vectors = len(model.feature_dims) + 1
        pairs = interaction_pairs(self.spec.interaction, self._vectors)
        self._pairs = None if pairs is None else torch.from_numpy(pairs).to(device)

    def __call__(self, dense: Tensor, pooled: Sequence[Tensor]) -> Tensor:
        """Predict, (B,) float32; see `Tower`."""
        dtype = self.top[0][0].dtype
        x = dense.to(dtype)
        for weight, bias in self.bottom:
            x = F.linear(x, weight, bias).relu_()
        first = vectors = torch.cat([x, *(vectors.to(dtype) for vectors in pooled)], dim=1)
        for down, up, bias in self.cross:
            vectors = first * F.linear(F.linear(vectors, down), up, bias) + vectors
        if self._pairs is not None:
            stacked = vectors.view(len(x), self._vectors, x.shape[1])
            products = torch.bmm(stacked, stacked.transpose(1, 2)).flatten(1)
            vectors = torch.cat([x, products.index_select(1, self._pairs)], dim=1)
        for weight, bias in self.top[:-1]:
            vectors = F.linear(vectors, weight, bias).relu_()
        logits = F.linear(vectors, *self.top[-1]).float().flatten()
        return logits.sigmoid_() if self.spec.sigmoid else logits

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> BuiltinTower:
        """The same tower on `device`, computing in `dtype`; predictions stay float32."""

        def move(layers: Layers) -> Layers:
            return [(w.to(device, dtype), b.to(device, dtype)) for w, b in layers]

        cross = [
            (down.to(device, dtype), up.to(device, dtype), bias.to(device, dtype))
            for down, up, bias in self.cross
        ]
        return BuiltinTower(self.model, move(self.bottom), move(self.top), cross)


class ForeignTower(Tower):
    """A `torch.export` archive with inputs `dense (B,F)` and `pooled (B,T,D)`, T the features."""

    def __init__(
        self, model: ModelSpec, module: GraphModule, dtype: torch.dtype = torch.float32
    ) -> None:
        self.model, self._module, self._dtype = model, module, dtype
        self._dims = list(model.feature_dims)
        tower = model.tower
        any_batch = (1, None)
        self._batch = (
            (tower.batch_min, tower.batch_max) if isinstance(tower, ExportedTower) else any_batch
        )

    def __call__(self, dense: Tensor, pooled: Sequence[Tensor]) -> Tensor:
        """Predict, (B,) float32; see `Tower`."""
        flat = torch.cat(list(pooled), dim=1) if len(pooled) > 1 else pooled[0]
        widest = max(self._dims)
        if min(self._dims) != widest:
            narrow = torch.split(flat, self._dims, dim=1)
            flat = torch.cat([F.pad(part, (0, widest - part.shape[1])) for part in narrow], dim=1)
        vectors = flat.view(len(dense), len(self._dims), widest)
        most = self._batch[1] or max(1, len(dense))
        parts = [
            self._predict(dense[begin : begin + most], vectors[begin : begin + most])
            for begin in range(0, max(1, len(dense)), most)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _predict(self, dense: Tensor, vectors: Tensor) -> Tensor:
        """Predict one batch, filled up to the smallest that the export takes.

        Queries are batched together and may exceed what the tower was exported for, or leave a
        rest that is too small for it.
        """
        missing = self._batch[0] - len(dense)
        if missing > 0 and len(dense):
            dense = torch.cat([dense, dense[-1:].expand(missing, -1)])
            vectors = torch.cat([vectors, vectors[-1:].expand(missing, -1, -1)])
        (predictions,) = self._module(dense.to(self._dtype), vectors.to(self._dtype))
        flat = cast(Tensor, predictions).float().reshape(len(dense))
        return flat[: len(flat) - max(0, missing)]

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> ForeignTower:
        """The same tower on `device`, computing in `dtype`."""
        return ForeignTower(self.model, move_module(self._module, device, dtype), dtype)


def builtin_tower(model: ModelSpec, tensors: Mapping[str, Tensor]) -> BuiltinTower:
    """The built-in tower over `tensors`, named and shaped as `tower_layers` says.

    Raises:
        ModelError: a tensor is missing or of another shape.
    """
    check_layers(model, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    tower = builtin_spec(model)

    def layers(name: str, count: int) -> Layers:
        return [(tensors[f"{name}.{i}.weight"], tensors[f"{name}.{i}.bias"]) for i in range(count)]

    cross = [
        (
            tensors[f"cross.{i}.down.weight"],
            tensors[f"cross.{i}.up.weight"],
            tensors[f"cross.{i}.up.bias"],
        )
        for i in range(tower.cross.layers if tower.cross else 0)
    ]
    bottom, top = layers("bottom", len(tower.bottom_mlp)), layers("top", len(tower.top_mlp))
    return BuiltinTower(model, bottom, top, cross)


def load_tower_file(path: Path, model: ModelSpec) -> Tower:
    """The tower of `model` from its file: safetensors (built-in) or a `torch.export` archive.

    Raises:
        ArtifactError: the file is damaged or holds pickled objects.
        ModelError: its tensors do not fit the model.
    """
    if not isinstance(model.tower, DlrmTower):
        return ForeignTower(model, load_exported(path))
    file = TensorFile(path)
    return builtin_tower(model, {name: torch.from_numpy(file.read(name)) for name in file.tensors})


def load_tower(folder: Path, manifest: BundleManifest) -> Tower:
    """The tower of the bundle at `folder`. Raises as `load_tower_file`."""
    return load_tower_file(folder / manifest.tower.path, manifest.model)
