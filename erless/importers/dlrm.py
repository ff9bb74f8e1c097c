"""Checkpoints of facebookresearch/dlrm (`dlrm_s_pytorch.py`) and of torchrec's DLRM.

Both are found by their tensors' names:

    dlrm       emb_l.N.weight, bot_l.K.weight/bias, top_l.K.weight/bias
    torchrec   ….embedding_bags.NAME.weight, dense_arch.model._mlp.K._linear.weight/bias,
               over_arch.model.0._mlp.K._linear.weight/bias, over_arch.model.1.weight/bias

Neither records pooling; DLRM tells its interaction only by the width of the top MLP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from erless.errors import CheckpointError
from erless.importers.bundle import new_bundle
from erless.importers.checkpoint import float_rows, layer_stack, open_checkpoint
from erless.importers.options import ImportOptions, order_tables
from erless.importers.samples import check_predictions
from erless.importers.specs import make_model, table_spec
from erless.specs.bundle import BundleManifest
from erless.specs.model import DlrmTower, Interaction, Pooling

__all__ = ["import_dlrm", "import_torchrec"]

# Tensors beside a model's weights that no prediction depends on.
_NOT_COMPUTED_WITH = {"n_averaged"}  # torch.optim.swa_utils.AveragedModel counts with it

Stack = list[tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class _Parts:
    """A checkpoint sorted out: tables by name in order, linear layers by name in order.

    Args:
        interactions: those that models of its library have.
    """

    tables: dict[str, Tensor]
    bottom: list[str]
    top: list[str]
    interactions: tuple[Interaction, ...]


def import_dlrm(
    checkpoint: Path,
    target: Path,
    options: ImportOptions | None = None,
    *,
    interaction: Interaction | None = None,
    sigmoid: bool = True,
) -> BundleManifest:
    """Import a checkpoint as `dlrm_s_pytorch.py --save-model` writes it.

    Its tables are numbered and pool by sum, where the options say nothing else.

    Args:
        interaction: None derives it from the top MLP's width.
        sigmoid: whether the prediction is the sigmoid of the top MLP's output, as in DLRM.

    Raises:
        CheckpointError: the checkpoint is not a DLRM's, inconsistent, or holds more than one; or
            the bundle does not predict the given samples as the original did.
    """
    options = options or ImportOptions()
    tensors = open_checkpoint(checkpoint).tensors
    tables = _dlrm_tables(tensors)
    parts = _Parts(
        {name: tensors[tensor] for name, tensor in tables.items()},
        _layers(tensors, "bot_l"),
        _layers(tensors, "top_l"),
        (Interaction.DOT, Interaction.DOT_ITSELF, Interaction.CAT),
    )
    _refuse_unused(checkpoint, tensors, [*tables.values()], parts)
    options = replace(options, poolings=options.poolings.otherwise(Pooling.SUM))
    return _import(tensors, parts, target, interaction, sigmoid, options)


def import_torchrec(
    checkpoint: Path,
    target: Path,
    options: ImportOptions | None = None,
    *,
    interaction: Interaction | None = None,
    sigmoid: bool = True,
) -> BundleManifest:
    """Import the state dict of torchrec's DLRM: `EmbeddingBagCollection`, dense and over arch.

    A state dict that `torch.save` wrote keeps the order of the collection's features. safetensors
    and merged distributed checkpoints keep none, so the options must say it. So they must say how
    tables pool.

    Args:
        interaction: None takes `DOT_UPPER` (torchrec's `InteractionArch`), with which the over
            arch's width must agree.
        sigmoid: torchrec's model gives logits; True makes the prediction their sigmoid.

    Raises:
        CheckpointError: the checkpoint is not such a DLRM's, inconsistent, or holds more than one;
            or the bundle does not predict the given samples as the original did.
        OptionError: the order or the pooling of tables is not given.
    """
    options = options or ImportOptions()
    tensors, ordered = open_checkpoint(checkpoint)
    tables = {
        tensor: match[1]
        for tensor in tensors
        if (match := re.fullmatch(r"(?:.*\.)?embedding_bags\.([^.]+)\.weight", tensor))
    }
    if not tables:
        raise CheckpointError(f"{checkpoint}: no tensor named ….embedding_bags.NAME.weight")
    crossed = next((name for name in tensors if "inter_arch" in name), None)
    if crossed:
        raise CheckpointError(
            f"{checkpoint}: {crossed} belongs to an interaction that the built-in tower lacks; "
            "export its tower and import it with the tables"
        )
    order = order_tables([*tables.values()], options.tables, ordered, str(checkpoint))
    bottom = _layers(tensors, r"(?:.*\.)?dense_arch\.model\._mlp", r"\._linear")
    top = _layers(tensors, r"(?:.*\.)?over_arch\.model\.0\._mlp", r"\._linear")
    top += _layers(tensors, r"(?:.*\.)?over_arch\.model", "", only=1)
    by_name = {name: tensors[tensor] for tensor, name in tables.items()}
    in_order = {name: by_name[name] for name in order}
    parts = _Parts(in_order, bottom, top, (Interaction.DOT_UPPER,))
    _refuse_unused(checkpoint, tensors, list(tables), parts)
    return _import(tensors, parts, target, interaction, sigmoid, options)


def _refuse_unused(
    checkpoint: Path, tensors: Mapping[str, Tensor], tables: list[str], parts: _Parts
) -> None:
    """Refuse a checkpoint with a tensor that no part takes: the model computes with it."""
    layers = {f"{name}.{part}" for name in parts.bottom + parts.top for part in ("weight", "bias")}
    unused = [name for name in tensors if name not in layers | {*tables} | _NOT_COMPUTED_WITH]
    if unused:
        more = f" and {len(unused) - 1:,} more" if len(unused) > 1 else ""
        raise CheckpointError(
            f"{checkpoint}: tensor {unused[0]}{more} belongs to nothing that the built-in tower "
            "computes; the import would predict otherwise than the model"
        )


def _dlrm_tables(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The tables' names, in their order, and those of their tensors."""
    numbers = []
    for name in tensors:
        if name.startswith("emb_l."):
            match = re.fullmatch(r"emb_l\.(\d{1,9})\.weight", name)
            if not match:
                raise CheckpointError(
                    f"{name}: only plain embedding tables import; this one is composed (QR, mixed "
                    "dimension) or quantized. Write out its rows and import them as tables"
                )
            numbers.append(int(match[1]))
    if not numbers:
        raise CheckpointError("no tensor named emb_l.0.weight: not a DLRM checkpoint")
    for number in range(max(numbers) + 1):
        if number not in numbers:
            raise CheckpointError(f"table emb_l.{number}.weight is missing from the checkpoint")
    return {f"table_{n}": f"emb_l.{n}.weight" for n in range(len(numbers))}


def _layers(
    tensors: Mapping[str, Tensor], prefix: str, suffix: str = "", only: int | None = None
) -> list[str]:
    """Names of the linear layers `PREFIX.K SUFFIX`, by K."""
    pattern = re.compile(rf"({prefix}\.(\d{{1,9}}){suffix})\.weight")
    matches = [match for name in tensors if (match := pattern.fullmatch(name))]
    numbered = sorted((int(match[2]), match[1]) for match in matches)
    return [layer for number, layer in numbered if only in (None, number)]


def _widths(dim: int, table_dims: list[int]) -> dict[Interaction, int]:
    """The top MLP's input width under each interaction that takes tables of these dims."""
    vectors = len(table_dims) + 1
    widths = {Interaction.CAT: dim + sum(table_dims)}
    if all(table_dim == dim for table_dim in table_dims):
        below = vectors * (vectors - 1) // 2
        widths[Interaction.DOT] = widths[Interaction.DOT_UPPER] = dim + below
        widths[Interaction.DOT_ITSELF] = dim + below + vectors
    return widths


def _derive_interaction(
    dim: int, table_dims: list[int], width: int, kinds: tuple[Interaction, ...]
) -> Interaction:
    """The interaction, one of `kinds`, that gives the top MLP `width` inputs.

    T tables with `dot_itself` give the width of T + 1 tables with `dot`, so the rare former is
    never assumed: it would hide a missing table.
    """
    widths = _widths(dim, table_dims)
    expected = {kind: widths[kind] for kind in kinds if kind in widths}
    fits = [kind for kind, inputs in expected.items() if inputs == width]
    if len(fits) == 1 and fits[0] is not Interaction.DOT_ITSELF:
        return fits[0]
    if len(fits) > 1:
        raise CheckpointError(
            f"a top MLP of {width} inputs fits {' and '.join(fits)}: name the interaction"
        )
    others = [f"{inputs} ({kind})" for kind, inputs in expected.items() if kind not in fits]
    given = ", ".join(others) or f"none, their dims being {', '.join(map(str, table_dims))}"
    raise CheckpointError(
        f"the top MLP takes {width} inputs; {len(table_dims)} tables and a bottom MLP of {dim} "
        f"outputs give {given}: a table is missing, shared by several features, or of a wrong dim"
    )


def _import(
    tensors: Mapping[str, Tensor],
    parts: _Parts,
    target: Path,
    interaction: Interaction | None,
    sigmoid: bool,
    options: ImportOptions,
) -> BundleManifest:
    """What both importers share once the parts are known."""
    bottom, bottom_sizes = layer_stack(tensors, parts.bottom, None, "bottom MLP")
    top, top_sizes = layer_stack(tensors, parts.top, None, "top MLP")
    options.poolings.check(list(parts.tables))
    tables = [
        table_spec(name, tuple(rows.shape), options.poolings.of(name))
        for name, rows in parts.tables.items()
    ]
    width = top[0][0].shape[1]
    kind = interaction or _derive_interaction(
        bottom_sizes[-1], [table.dim for table in tables], width, parts.interactions
    )
    tower = DlrmTower(bottom_mlp=bottom_sizes, top_mlp=top_sizes, interaction=kind, sigmoid=sigmoid)
    model = make_model(bottom[0][0].shape[1], tables, tower, top_mlp_inputs=width)
    named = {
        f"{name}.{index}.{part}": array
        for name, stack in (("bottom", bottom), ("top", top))
        for index, layer in enumerate(stack)
        for part, array in zip(("weight", "bias"), layer, strict=True)
    }
    with new_bundle(
        target, model, overwrite=options.overwrite, progress=options.progress
    ) as bundle:
        for table, rows in zip(model.tables, parts.tables.values(), strict=True):
            bundle.add_table(table, float_rows(table.name, rows))
        bundle.add_tower(named)
        manifest = bundle.finish()
        if options.samples is not None:
            check_predictions(bundle.folder, options.samples)
        return manifest
