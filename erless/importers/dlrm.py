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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from erless.errors import CheckpointError
from erless.importers.bundle import new_bundle
from erless.importers.checkpoint import float_rows, layer_stack, open_state_dict
from erless.importers.poolings import Poolings
from erless.importers.specs import make_model, table_spec
from erless.progress import Progress
from erless.specs.bundle import BundleManifest
from erless.specs.model import DlrmTower, Interaction

__all__ = ["import_dlrm", "import_torchrec"]

Stack = list[tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class _Parts:
    """A checkpoint sorted out: tables by name in order, linear layers by name in order."""

    tables: dict[str, Tensor]
    bottom: list[str]
    top: list[str]


def import_dlrm(
    checkpoint: Path,
    target: Path,
    *,
    interaction: Interaction | None = None,
    poolings: Poolings | None = None,
    sigmoid: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BundleManifest:
    """Import a checkpoint as `dlrm_s_pytorch.py --save-model` writes it.

    Args:
        interaction: None derives it from the top MLP's width.
        sigmoid: whether the prediction is the sigmoid of the top MLP's output, as in DLRM.

    Raises:
        CheckpointError: the checkpoint is not a DLRM's, or inconsistent.
    """
    tensors = open_state_dict(checkpoint)
    parts = _Parts(_dlrm_tables(tensors), _layers(tensors, "bot_l"), _layers(tensors, "top_l"))
    return _import(tensors, parts, target, interaction, poolings, sigmoid, overwrite, progress)


def import_torchrec(
    checkpoint: Path,
    target: Path,
    *,
    interaction: Interaction | None = None,
    poolings: Poolings | None = None,
    sigmoid: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BundleManifest:
    """Import the state dict of torchrec's DLRM: `EmbeddingBagCollection`, dense and over arch.

    Tables keep the order of the state dict, which is the order of the collection's features.

    Args:
        interaction: None takes `DOT_UPPER` (torchrec's `InteractionArch`) where the over arch's
            width agrees.
        sigmoid: torchrec's model gives logits; True makes the prediction their sigmoid.

    Raises:
        CheckpointError: the checkpoint is not such a DLRM's, or inconsistent.
    """
    tensors = open_state_dict(checkpoint)
    tables = {
        found[1]: tensor
        for name, tensor in tensors.items()
        if (found := re.fullmatch(r"(?:.*\.)?embedding_bags\.([^.]+)\.weight", name))
    }
    if not tables:
        raise CheckpointError(f"{checkpoint}: no tensor named ….embedding_bags.NAME.weight")
    crossed = next((name for name in tensors if "inter_arch" in name), None)
    if crossed:
        raise CheckpointError(
            f"{checkpoint}: {crossed} belongs to an interaction that the built-in tower lacks; "
            "export its tower and import it with the tables"
        )
    bottom = _layers(tensors, r"(?:.*\.)?dense_arch\.model\._mlp", r"\._linear")
    top = _layers(tensors, r"(?:.*\.)?over_arch\.model\.0\._mlp", r"\._linear")
    top += _layers(tensors, r"(?:.*\.)?over_arch\.model", "", only=1)
    parts = _Parts(tables, bottom, top)
    kind = interaction or _torchrec_interaction(tensors, parts)
    return _import(tensors, parts, target, kind, poolings, sigmoid, overwrite, progress)


def _dlrm_tables(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    numbers = []
    for name in tensors:
        if name.startswith("emb_l."):
            found = re.fullmatch(r"emb_l\.(\d+)\.weight", name)
            if not found:
                raise CheckpointError(
                    f"{name}: only plain embedding tables import; this one is composed (QR, mixed "
                    "dimension) or quantized. Write out its rows and import them as tables"
                )
            numbers.append(int(found[1]))
    if not numbers:
        raise CheckpointError("no tensor named emb_l.0.weight: not a DLRM checkpoint")
    for number in range(max(numbers) + 1):
        if number not in numbers:
            raise CheckpointError(f"table emb_l.{number}.weight is missing from the checkpoint")
    return {f"table_{n}": tensors[f"emb_l.{n}.weight"] for n in range(len(numbers))}


def _layers(
    tensors: Mapping[str, Tensor], prefix: str, suffix: str = "", only: int | None = None
) -> list[str]:
    """Names of the linear layers `PREFIX.K SUFFIX`, by K."""
    pattern = re.compile(rf"({prefix}\.(\d+){suffix})\.weight")
    found = [match for name in tensors if (match := pattern.fullmatch(name))]
    return [m[1] for m in sorted(found, key=lambda m: int(m[2])) if only in (None, int(m[2]))]


def _widths(dim: int, tables: int) -> dict[Interaction, int]:
    """The top MLP's input width under each interaction."""
    vectors = tables + 1
    return {
        Interaction.DOT: dim + vectors * (vectors - 1) // 2,
        Interaction.DOT_ITSELF: dim + vectors * (vectors + 1) // 2,
        Interaction.CAT: dim * vectors,
    }


def _derive_interaction(dim: int, table_dims: list[int], width: int) -> Interaction:
    """The interaction that gives the top MLP `width` inputs.

    T tables with `dot_itself` give the width of T + 1 tables with `dot`, so the rare former is
    never assumed: it would hide a missing table.
    """
    if any(each != dim for each in table_dims):
        expected = {Interaction.CAT: dim + sum(table_dims)}
    else:
        expected = _widths(dim, len(table_dims))
    fits = [kind for kind, each in expected.items() if each == width]
    if len(fits) == 1 and fits[0] is not Interaction.DOT_ITSELF:
        return fits[0]
    if len(fits) > 1:
        kinds = " and ".join(fits)
        raise CheckpointError(f"a top MLP of {width} inputs fits {kinds}: name the interaction")
    widths = ", ".join(f"{each} ({kind})" for kind, each in expected.items())
    either = "a table is missing or of a wrong dim"
    if fits:
        either += ", or name the interaction dot_itself"
    raise CheckpointError(
        f"the top MLP takes {width} inputs; {len(table_dims)} tables and a bottom MLP of {dim} "
        f"outputs give {widths}: {either}"
    )


def _torchrec_interaction(tensors: Mapping[str, Tensor], parts: _Parts) -> Interaction | None:
    if not parts.bottom or not parts.top:
        return None
    dim = len(tensors[f"{parts.bottom[-1]}.weight"])
    width = tensors[f"{parts.top[0]}.weight"].shape[1]
    same = width == _widths(dim, len(parts.tables))[Interaction.DOT]
    return Interaction.DOT_UPPER if same else None


def _import(
    tensors: Mapping[str, Tensor],
    parts: _Parts,
    target: Path,
    interaction: Interaction | None,
    poolings: Poolings | None,
    sigmoid: bool,
    overwrite: bool,
    progress: Progress | None,
) -> BundleManifest:
    """What both importers share once the parts are known."""
    bottom, bottom_sizes = layer_stack(tensors, parts.bottom, None, "bottom MLP")
    top, top_sizes = layer_stack(tensors, parts.top, None, "top MLP")
    poolings = poolings or Poolings()
    poolings.check(list(parts.tables))
    tables = [
        table_spec(name, tuple(rows.shape), poolings.of(name))
        for name, rows in parts.tables.items()
    ]
    width = top[0][0].shape[1]
    kind = interaction or _derive_interaction(bottom_sizes[-1], [t.dim for t in tables], width)
    tower = DlrmTower(bottom_mlp=bottom_sizes, top_mlp=top_sizes, interaction=kind, sigmoid=sigmoid)
    model = make_model(bottom[0][0].shape[1], tables, tower, top_inputs_found=width)
    named = {
        f"{name}.{index}.{part}": array
        for name, stack in (("bottom", bottom), ("top", top))
        for index, layer in enumerate(stack)
        for part, array in zip(("weight", "bias"), layer, strict=True)
    }
    with new_bundle(target, model, overwrite=overwrite, progress=progress) as bundle:
        for table, rows in zip(model.tables, parts.tables.values(), strict=True):
            bundle.add_table(table, float_rows(table.name, rows))
        bundle.add_tower(named)
        return bundle.finish()
