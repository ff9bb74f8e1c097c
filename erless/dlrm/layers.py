"""The shape of the built-in tower: names, layers and which products meet. Without torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from erless.errors import ModelError
from erless.specs.model import DlrmTower, Interaction, ModelSpec

__all__ = ["builtin_spec", "check_layers", "interaction_pairs", "top_inputs", "tower_layers"]


def builtin_spec(model: ModelSpec) -> DlrmTower:
    """The built-in tower of `model`.

    Raises:
        ModelError: it has an exported one.
    """
    if not isinstance(model.tower, DlrmTower):
        raise ModelError(f"model {model.name} has an exported tower, not the built-in one")
    return model.tower


def interaction_pairs(interaction: Interaction, vectors: int) -> NDArray[np.int64] | None:
    """Which products of the flattened (vectors × vectors) matrix enter the top MLP, in order.

    None where the vectors enter as they are, appended to each other, or through a cross net.

    >>> interaction_pairs(Interaction.DOT, 3).tolist()
    [3, 6, 7]
    """
    if interaction in (Interaction.CAT, Interaction.DCN):
        return None
    if interaction is Interaction.DOT_UPPER:
        rows, columns = np.triu_indices(vectors, 1)
    else:
        rows, columns = np.tril_indices(vectors, 0 if interaction is Interaction.DOT_ITSELF else -1)
    return np.asarray(rows * vectors + columns, np.int64)


def top_inputs(model: ModelSpec) -> int:
    """Width of the top MLP's input under the built-in tower's interaction."""
    tower = builtin_spec(model)
    x = tower.bottom_mlp[-1]
    pairs = interaction_pairs(tower.interaction, len(model.feature_dims) + 1)
    return x + (sum(model.feature_dims) if pairs is None else len(pairs))


def tower_layers(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the built-in tower's tensors, in file order.

    `bottom.I.weight` (out, in), `bottom.I.bias` (out,), then `top.I.…`; between them those of a
    cross net over n inputs: `cross.I.down.weight` (rank, n), `cross.I.up.weight` (n, rank) and
    `cross.I.up.bias` (n,).
    """
    tower = builtin_spec(model)
    shapes: dict[str, tuple[int, ...]] = {}
    crossed = top_inputs(model)
    _add_layers(shapes, "bottom", model.dense_features, tower.bottom_mlp)
    layers, rank = (tower.cross.layers, tower.cross.rank) if tower.cross else (0, 0)
    for layer in range(layers):
        shapes[f"cross.{layer}.down.weight"] = (rank, crossed)
        shapes[f"cross.{layer}.up.weight"] = (crossed, rank)
        shapes[f"cross.{layer}.up.bias"] = (crossed,)
    _add_layers(shapes, "top", crossed, tower.top_mlp)
    return shapes


def _add_layers(
    shapes: dict[str, tuple[int, ...]], name: str, width: int, sizes: tuple[int, ...]
) -> None:
    """Add the layers of an MLP with `width` inputs."""
    for layer, size in enumerate(sizes):
        shapes[f"{name}.{layer}.weight"] = (size, width)
        shapes[f"{name}.{layer}.bias"] = (size,)
        width = size


def check_layers(model: ModelSpec, shapes: dict[str, tuple[int, ...]]) -> None:
    """The tower's tensors must be named and shaped as `tower_layers` says.

    Raises:
        ModelError: one is missing or of another shape.
    """
    for name, shape in tower_layers(model).items():
        if name not in shapes:
            raise ModelError(f"the tower has no tensor {name}")
        if shapes[name] != shape:
            raise ModelError(f"tower tensor {name} has shape {shapes[name]}, expected {shape}")
