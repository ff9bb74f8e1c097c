"""The built-in tower on numpy's BLAS: what the gateway and the monolith's server run.

Importing torch costs 1.35 s and 217 MB, which a gateway replica would pay at every start; numpy is
there anyway. At a serving batch the tower is a handful of small matrix products, and the answers
differ from torch's only by the order of summation.

Set OPENBLAS_NUM_THREADS before numpy is imported: threads do not pay at this size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.layers import builtin_spec, check_layers, interaction_pairs
from erless.specs.model import ModelSpec
from erless.storage.tensors import TensorFile

__all__ = ["NumpyTower", "flat_pooled"]

Floats = NDArray[np.float32]


def flat_pooled(pooled: Floats, dims: list[int]) -> Floats:
    """Pooled vectors (B, T, D), padded to the largest dim, as (B, Σ dim)."""
    batch, tables, widest = pooled.shape
    if min(dims) == widest:
        return pooled.reshape(batch, tables * widest)
    return np.concatenate([pooled[:, i, :dim] for i, dim in enumerate(dims)], axis=1)


class NumpyTower:
    """The DLRM tower (arXiv 1906.00091, §3).

    Args:
        model: a model whose tower is a `DlrmTower`.
        tensors: named and shaped as `erless.dlrm.layers.tower_layers` says.

    Raises:
        ModelError: a tensor is missing or of another shape.
    """

    def __init__(self, model: ModelSpec, tensors: Mapping[str, Floats]) -> None:
        check_layers(model, {name: array.shape for name, array in tensors.items()})
        self.model, self.spec = model, builtin_spec(model)
        self._dims = list(model.feature_dims)
        self._vectors = len(self._dims) + 1
        self._pairs = interaction_pairs(self.spec.interaction, self._vectors)

        def layers(name: str, count: int) -> list[tuple[Floats, Floats]]:
            return [
                (np.ascontiguousarray(tensors[f"{name}.{i}.weight"].T), tensors[f"{name}.{i}.bias"])
                for i in range(count)
            ]

        self._bottom = layers("bottom", len(self.spec.bottom_mlp))
        self._top = layers("top", len(self.spec.top_mlp))
        self._cross = [
            (
                np.ascontiguousarray(tensors[f"cross.{i}.down.weight"].T),
                np.ascontiguousarray(tensors[f"cross.{i}.up.weight"].T),
                tensors[f"cross.{i}.up.bias"],
            )
            for i in range(self.spec.cross.layers if self.spec.cross else 0)
        ]

    @classmethod
    def load(cls, path: Path, model: ModelSpec) -> NumpyTower:
        """The tower in the safetensors file at `path`.

        Raises:
            ArtifactError: the file is damaged.
            ModelError: its tensors do not fit the model.
        """
        file = TensorFile(path)
        return cls(model, {name: file.read(name) for name in file.tensors})

    def __call__(self, dense: Floats, pooled: Floats) -> Floats:
        """Predict.

        Args:
            dense: (B, F) float32.
            pooled: (B, T, D) float32, D the largest dim, the rest zeros.

        Returns:
            (B,) float32.
        """
        x = dense
        for weight, bias in self._bottom:
            x = x @ weight
            x += bias
            np.maximum(x, 0, out=x)
        batch = len(x)
        if self._pairs is None:
            first = vectors = np.concatenate([x, flat_pooled(pooled, self._dims)], axis=1)
            for down, up, bias in self._cross:
                crossed = (vectors @ down) @ up
                crossed += bias
                crossed *= first
                crossed += vectors
                vectors = crossed
        else:
            width = x.shape[1]
            stacked = np.empty((batch, self._vectors, width), np.float32)
            stacked[:, 0] = x
            stacked[:, 1:] = pooled
            products = np.matmul(stacked, stacked.transpose(0, 2, 1))
            products = products.reshape(batch, self._vectors**2)
            vectors = np.empty((batch, width + len(self._pairs)), np.float32)
            vectors[:, :width] = x
            np.take(products, self._pairs, axis=1, out=vectors[:, width:], mode="clip")
        for weight, bias in self._top[:-1]:
            vectors = vectors @ weight
            vectors += bias
            np.maximum(vectors, 0, out=vectors)
        weight, bias = self._top[-1]
        logits: Floats = (vectors @ weight + bias).reshape(batch)
        if not self.spec.sigmoid:
            return logits
        np.negative(logits, out=logits)
        np.exp(logits, out=logits)
        logits += 1
        return np.reciprocal(logits, out=logits)
