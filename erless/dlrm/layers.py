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

    >>> interaction_pairs(Interaction.DOT, 3).tolist()
    [3, 6, 7]
    """
    if interaction is Interaction.CAT:
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
    pairs = interaction_pairs(tower.interaction, len(model.tables) + 1)
    return x + (sum(table.dim for table in model.tables) if pairs is None else len(pairs))


def tower_layers(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the built-in tower's tensors, in file order.

    `bottom.I.weight` (out, in), `bottom.I.bias` (out,), then `top.I.…`.
    """
    tower = builtin_spec(model)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, inputs, sizes in (
        ("bottom", model.dense_features, tower.bottom_mlp),
        ("top", top_inputs(model), tower.top_mlp),
    ):
        width = inputs
        for layer, size in enumerate(sizes):
            shapes[f"{name}.{layer}.weight"] = (size, width)
            shapes[f"{name}.{layer}.bias"] = (size,)
            width = size
    return shapes


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
