"""State dicts of torchrec's `DLRM` and `DLRM_DCN` (MLPerf's DLRM-v2), found by tensors' names:

    ….embedding_bags.NAME.weight
    dense_arch.model._mlp.K._linear.weight/bias
    over_arch.model.0._mlp.K._linear.weight/bias, over_arch.model.1.weight/bias
    inter_arch.crossnet.V_kernels.K, .W_kernels.K, .bias.K       of DLRM_DCN

They record neither poolings nor which features read a table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from erless.errors import CheckpointError, OptionError
from erless.importers.checkpoint import Stored, open_checkpoint
from erless.importers.options import ImportOptions, order_tables
from erless.importers.parts import Parts, import_parts, layer_names, refuse_unused
from erless.specs.bundle import BundleManifest
from erless.specs.model import Interaction

__all__ = ["import_torchrec"]

_CROSS = ("V_kernels", "W_kernels", "bias")
# Tensors that fbgemm keeps beside quantized tables; no prediction depends on them.
_BESIDE_ROWS = re.compile(r"(?:.*\.)?tbes\.\d+\.[a-zA-Z_]+")


def import_torchrec(
    checkpoint: Path | str,
    target: Path,
    options: ImportOptions | None = None,
    *,
    interaction: Interaction | None = None,
    sigmoid: bool = True,
) -> BundleManifest:
    """Import the state of torchrec's DLRM or DLRM_DCN, plain, quantized, or sharded in a folder.

    Where features share a table, the options say which; they must say how tables pool, and which
    precision quantized tables have. A state dict that `torch.save` wrote keeps the order of the
    collection's features. safetensors and distributed checkpoints keep none, so the options must
    say it.

    Args:
        interaction: None takes `DOT_UPPER` (torchrec's `InteractionArch`), or `DCN` where there
            is a cross net; the over arch's width must agree.
        sigmoid: torchrec's model gives logits; True makes the prediction their sigmoid.

    Raises:
        CheckpointError: the checkpoint is not such a DLRM's, inconsistent, or holds more than one;
            or the bundle does not predict the given samples as the original did.
        OptionError: the order, the pooling or the features of tables are not given or do not fit.
    """
    options = options or ImportOptions()
    tensors, ordered = open_checkpoint(checkpoint, options.endpoint_url)
    tables = {
        tensor: match[1]
        for tensor in tensors
        if (match := re.fullmatch(r"(?:.*\.)?embedding_bags\.([^.]+)\.weight", tensor))
    }
    if not tables:
        raise CheckpointError(f"{checkpoint}: no tensor named ….embedding_bags.NAME.weight")
    cross = _cross_layers(checkpoint, tensors)
    expected = Interaction.DCN if cross else Interaction.DOT_UPPER
    if interaction not in (None, expected):
        raise OptionError(
            f"{checkpoint}: torchrec's interaction is {expected} here, not {interaction}"
        )
    _refuse_managed_collisions(checkpoint, tensors)
    order = order_tables([*tables.values()], options.tables, ordered, str(checkpoint))
    bottom = layer_names(tensors, r"(?:.*\.)?dense_arch\.model\._mlp", r"\._linear")
    top = layer_names(tensors, r"(?:.*\.)?over_arch\.model\.0\._mlp", r"\._linear")
    top += layer_names(tensors, r"(?:.*\.)?over_arch\.model", "", only=1)
    by_name = {name: tensors[tensor] for tensor, name in tables.items()}
    in_order = {name: by_name[name] for name in order}
    parts = Parts(in_order, bottom, top, (expected,), cross)
    beside = [name for name in tensors if options.quantized and _BESIDE_ROWS.fullmatch(name)]
    refuse_unused(checkpoint, tensors, [*tables, *beside], parts)
    return import_parts(tensors, parts, target, options, interaction=interaction, sigmoid=sigmoid)


def _cross_layers(
    checkpoint: Path | str, tensors: Mapping[str, Stored]
) -> tuple[tuple[str, str, str], ...]:
    """The names of V, W and b of each layer of a cross net of low rank.

    Raises:
        CheckpointError: the interaction has weights of another kind.
    """
    pattern = re.compile(r"((?:.*\.)?inter_arch\.crossnet)\.(V_kernels|W_kernels|bias)\.(\d{1,4})")
    by_name = {name: pattern.fullmatch(name) for name in tensors if "inter_arch" in name}
    other = next((name for name, match in by_name.items() if match is None), None)
    matches = [match for match in by_name.values() if match]
    layers = sorted({int(match[3]) for match in matches})
    low_rank = {match[2] for match in matches} in (set(), set(_CROSS))
    if other is not None or not low_rank or layers != list(range(len(layers))):
        raise CheckpointError(
            f"{checkpoint}: {other or next(iter(by_name))} belongs to an interaction that the "
            "built-in tower lacks; export the whole model instead"
        )
    prefix = matches[0][1] if matches else ""
    return tuple(
        (f"{prefix}.V_kernels.{layer}", f"{prefix}.W_kernels.{layer}", f"{prefix}.bias.{layer}")
        for layer in layers
    )


def _refuse_managed_collisions(checkpoint: Path | str, tensors: Mapping[str, Stored]) -> None:
    """Refuse tables whose ids torchrec moves to rows by a state of its own."""
    moved = next((name for name in tensors if "managed_collision" in name), None)
    if moved:
        raise CheckpointError(
            f"{checkpoint}: {moved} belongs to a managed collision module (MCH, ZCH), which moves "
            "ids to rows before the lookup; erless imports no such state yet"
        )
