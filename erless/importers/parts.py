"""What importers of DLRM checkpoints share: tensors sorted into parts become a bundle."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from erless.errors import CheckpointError
from erless.importers.checkpoint import Stored, layer_stack, to_float32
from erless.importers.options import ImportOptions
from erless.importers.quantized import table_rows
from erless.importers.samples import checked_bundle
from erless.importers.specs import make_features, make_model, table_spec
from erless.specs.bundle import BundleManifest
from erless.specs.model import CrossNet, DlrmTower, Interaction

__all__ = ["Parts", "import_parts", "layer_names", "refuse_unused"]

# Tensors beside a model's weights that no prediction depends on.
_NOT_COMPUTED_WITH = {"n_averaged"}  # torch.optim.swa_utils.AveragedModel counts with it

Layer = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Parts:
    """The tensors of a checkpoint, sorted into the parts of a model.

    Args:
        tables: by name, in the model's order.
        bottom: names of the bottom MLP's layers, in order.
        top: likewise of the top MLP.
        interactions: those that models of the checkpoint's library have.
        cross: names of the tensors V, W and b of each layer of a cross net.
    """

    tables: dict[str, Stored]
    bottom: list[str]
    top: list[str]
    interactions: tuple[Interaction, ...]
    cross: tuple[tuple[str, str, str], ...] = ()


def refuse_unused(
    checkpoint: Path | str, tensors: Mapping[str, Stored], tables: list[str], parts: Parts
) -> None:
    """Refuse a checkpoint with a tensor that no part takes: the model computes with it.

    Args:
        tables: names of tensors that are tables.

    Raises:
        CheckpointError: naming the first such tensor.
    """
    layers = {f"{name}.{part}" for name in parts.bottom + parts.top for part in ("weight", "bias")}
    crossed = {name for layer in parts.cross for name in layer}
    used = layers | crossed | {*tables} | _NOT_COMPUTED_WITH
    unused = [name for name in tensors if name not in used]
    if unused:
        more = f" and {len(unused) - 1:,} more" if len(unused) > 1 else ""
        raise CheckpointError(
            f"{checkpoint}: tensor {unused[0]}{more} belongs to nothing that the built-in tower "
            "computes; the import would predict otherwise than the model. Bring the model in by "
            "erless.export"
        )


def layer_names(
    tensors: Mapping[str, Stored], prefix: str, suffix: str = "", only: int | None = None
) -> list[str]:
    """Names of the linear layers `PREFIX.K SUFFIX`, by K."""
    pattern = re.compile(rf"({prefix}\.(\d{{1,9}}){suffix})\.weight")
    matches = [match for name in tensors if (match := pattern.fullmatch(name))]
    numbered = sorted((int(match[2]), match[1]) for match in matches)
    return [layer for number, layer in numbered if only in (None, number)]


def _widths(dim: int, dims: list[int]) -> dict[Interaction, int]:
    """The top MLP's input width under each interaction that takes vectors of these dims."""
    vectors = len(dims) + 1
    appended = dim + sum(dims)
    widths = {Interaction.CAT: appended, Interaction.DCN: appended}
    if all(table_dim == dim for table_dim in dims):
        below = vectors * (vectors - 1) // 2
        widths[Interaction.DOT] = widths[Interaction.DOT_UPPER] = dim + below
        widths[Interaction.DOT_ITSELF] = dim + below + vectors
    return widths


def _derive_interaction(
    dim: int, dims: list[int], width: int, interactions: tuple[Interaction, ...]
) -> Interaction:
    """The one of `interactions` that gives the top MLP `width` inputs.

    T features with `dot_itself` give the width of T + 1 features with `dot`, so the rare former is
    never assumed: it would hide a missing table, or one that features share.
    """
    widths = _widths(dim, dims)
    expected = {name: widths[name] for name in interactions if name in widths}
    fits = [name for name, inputs in expected.items() if inputs == width]
    if len(fits) == 1 and fits[0] is not Interaction.DOT_ITSELF:
        return fits[0]
    if len(fits) > 1:
        raise CheckpointError(
            f"a top MLP of {width} inputs fits {' and '.join(fits)}: name the interaction"
        )
    others = [f"{inputs} ({name})" for name, inputs in expected.items() if name not in fits]
    alternatives = ", ".join(others) or f"none, their dims being {', '.join(map(str, dims))}"
    raise CheckpointError(
        f"the top MLP takes {width} inputs; {len(dims)} tables and a bottom MLP of {dim} "
        f"outputs give {alternatives}: a table is missing, shared by several features, or of a "
        "wrong dim"
    )


def import_parts(
    tensors: Mapping[str, Stored],
    parts: Parts,
    target: Path,
    options: ImportOptions,
    *,
    interaction: Interaction | None,
    sigmoid: bool,
) -> BundleManifest:
    """Write the bundle of a checkpoint whose tensors are sorted into parts.

    Args:
        tensors: of the checkpoint, by name.
        interaction: None derives it from the top MLP's width.

    Raises:
        CheckpointError: parts are missing or contradict each other, or the bundle does not predict
            the given samples as the original did.
        ModelError: the tower does not take these tables and features.
        OptionError: poolings or features are not given, or of other tables.
    """
    bottom, bottom_sizes = layer_stack(tensors, parts.bottom, None, "bottom MLP")
    top, top_sizes = layer_stack(tensors, parts.top, None, "top MLP")
    cross, cross_net = _cross_net(tensors, parts)
    options.poolings.check(list(parts.tables))
    dim, width = bottom_sizes[-1], top[0][0].shape[1]
    rows = {
        name: table_rows(name, stored, options.quantized, dim)
        for name, stored in parts.tables.items()
    }
    tables = [table_spec(n, table.shape, options.poolings.of(n)) for n, table in rows.items()]
    features = make_features(tables, options.features)
    dims = {table.name: table.dim for table in tables}
    read = [dims[feature.table] for feature in features] or list(dims.values())
    tower = DlrmTower(
        bottom_mlp=bottom_sizes,
        top_mlp=top_sizes,
        interaction=interaction or _derive_interaction(dim, read, width, parts.interactions),
        sigmoid=sigmoid,
        cross=cross_net,
    )
    model = make_model(
        bottom[0][0].shape[1], tables, tower, top_mlp_inputs=width, features=features
    )
    named = _named("bottom", bottom) | cross | _named("top", top)
    with checked_bundle(target, model, options) as bundle:
        for table in model.tables:
            bundle.add_table(table, rows[table.name].chunks())
        bundle.add_tower(named)
        return bundle.finish()


def _named(name: str, stack: list[Layer]) -> dict[str, NDArray[np.float32]]:
    return {
        f"{name}.{index}.{part}": array
        for index, layer in enumerate(stack)
        for part, array in zip(("weight", "bias"), layer, strict=True)
    }


def _cross_net(
    tensors: Mapping[str, Stored], parts: Parts
) -> tuple[dict[str, NDArray[np.float32]], CrossNet | None]:
    """The cross net's tensors under the names of the built-in tower, and its shape."""
    named = {}
    for index, names in enumerate(parts.cross):
        for name, part in zip(names, ("down.weight", "up.weight", "up.bias"), strict=True):
            if name not in tensors:
                raise CheckpointError(f"the checkpoint has no {name}")
            named[f"cross.{index}.{part}"] = to_float32(name, tensors[name])
    if not named:
        return {}, None
    return named, CrossNet(layers=len(parts.cross), rank=len(named["cross.0.down.weight"]))
