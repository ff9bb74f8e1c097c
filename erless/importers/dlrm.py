"""Checkpoints of facebookresearch/dlrm (`dlrm_s_pytorch.py`), found by their tensors' names:

    emb_l.N.weight, bot_l.K.weight/bias, top_l.K.weight/bias

They record no pooling, and of the interaction only the width of the top MLP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from erless.errors import CheckpointError
from erless.importers.checkpoint import Stored, open_checkpoint
from erless.importers.options import ImportOptions
from erless.importers.parts import Parts, import_parts, layer_names, refuse_unused
from erless.specs.bundle import BundleManifest
from erless.specs.model import Interaction, Pooling

__all__ = ["import_dlrm"]


def import_dlrm(
    checkpoint: Path | str,
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
    tensors = open_checkpoint(checkpoint, options.endpoint_url).tensors
    tables = _dlrm_tables(tensors)
    parts = Parts(
        {name: tensors[tensor] for name, tensor in tables.items()},
        layer_names(tensors, "bot_l"),
        layer_names(tensors, "top_l"),
        (Interaction.DOT, Interaction.DOT_ITSELF, Interaction.CAT),
    )
    refuse_unused(checkpoint, tensors, [*tables.values()], parts)
    options = replace(options, poolings=options.poolings.otherwise(Pooling.SUM))
    return import_parts(tensors, parts, target, options, interaction=interaction, sigmoid=sigmoid)


def _dlrm_tables(tensors: Mapping[str, Stored]) -> dict[str, str]:
    """The tables' names, in their order, and those of their tensors."""
    numbers = []
    for name in tensors:
        if name.startswith("emb_l."):
            match = re.fullmatch(r"emb_l\.(\d{1,9})\.weight", name)
            if not match:
                raise CheckpointError(
                    f"{name}: only plain embedding tables import; this one is composed (QR, mixed "
                    "dimension) or quantized. Bring the model in by erless.export, or write out "
                    "its rows and import them as tables"
                )
            numbers.append(int(match[1]))
    if not numbers:
        raise CheckpointError("no tensor named emb_l.0.weight: not a DLRM checkpoint")
    for number in range(max(numbers) + 1):
        if number not in numbers:
            raise CheckpointError(f"table emb_l.{number}.weight is missing from the checkpoint")
    return {f"table_{n}": f"emb_l.{n}.weight" for n in range(len(numbers))}
