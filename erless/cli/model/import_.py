"""`erless import`: a trained model from elsewhere becomes a model bundle."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from erless.cli.bars import bars
from erless.cli.options import OutOption, OverwriteOption
from erless.cli.run import Output, OutputOption, emit, verb

if TYPE_CHECKING:
    from erless.specs.bundle import BundleManifest

app = typer.Typer(
    no_args_is_help=True,
    help="Import a trained model. Pickles are never executed: only plain tensors load.",
)


class InteractionChoice(StrEnum):
    """The built-in tower's interactions, without importing pydantic."""

    DOT = "dot"
    DOT_ITSELF = "dot_itself"
    DOT_UPPER = "dot_upper"
    CAT = "cat"


CheckpointArgument = Annotated[
    Path, typer.Argument(help="Checkpoint: torch.save's (zip or legacy) or safetensors.")
]
PoolingOption = Annotated[
    list[str] | None,
    typer.Option(help="sum, mean, max or weighted_sum for all tables, or TABLE=POOLING; repeat."),
]
InteractionOption = Annotated[
    InteractionChoice | None, typer.Option(help="Default: told by the width of the top MLP.")
]
LogitsOption = Annotated[
    bool, typer.Option("--logits", help="Predict the top MLP's output, without the sigmoid.")
]


@app.command()
@verb
def dlrm(
    checkpoint: CheckpointArgument,
    out: OutOption,
    pooling: PoolingOption = None,
    interaction: InteractionOption = None,
    logits: LogitsOption = False,
    overwrite: OverwriteOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Import a checkpoint of facebookresearch/dlrm (`emb_l.N.weight`, `bot_l`, `top_l`).

    Example: `erless import dlrm dlrm.pt --out model`
    """
    from erless.importers.dlrm import import_dlrm

    _import(
        import_dlrm,
        checkpoint,
        out,
        pooling,
        interaction,
        logits=logits,
        overwrite=overwrite,
        output=output,
    )


@app.command()
@verb
def torchrec(
    checkpoint: CheckpointArgument,
    out: OutOption,
    pooling: PoolingOption = None,
    interaction: InteractionOption = None,
    logits: LogitsOption = False,
    overwrite: OverwriteOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Import a state dict of torchrec's DLRM (`EmbeddingBagCollection`, dense and over arch).

    Example: `erless import torchrec dlrm.pt --pooling mean --out model`
    """
    from erless.importers.dlrm import import_torchrec

    _import(
        import_torchrec,
        checkpoint,
        out,
        pooling,
        interaction,
        logits=logits,
        overwrite=overwrite,
        output=output,
    )


@app.command()
@verb
def tables(
    sources: Annotated[
        list[str],
        typer.Argument(help="Folder, PATH or NAME=PATH of .npy or safetensors tables, in order."),
    ],
    tower: Annotated[Path, typer.Option(help="torch.export archive: dense (B,F), pooled (B,T,D).")],
    dense_features: Annotated[int, typer.Option(min=0, help="Dense features F.")],
    out: OutOption,
    pooling: PoolingOption = None,
    overwrite: OverwriteOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Import named tables and an exported tower: DCN-v2, DeepFM, or any other architecture.

    Example: `erless import tables user=u.npy item=i.npy --tower t.pt2 --dense-features 13 --out m`
    """
    from erless.importers.poolings import Poolings
    from erless.importers.tables import import_tables

    with bars() as progress:
        manifest = import_tables(
            sources,
            tower,
            dense_features,
            out,
            poolings=Poolings.parse(pooling or []),
            overwrite=overwrite,
            progress=progress,
        )
    _emit(output, out, manifest)


def _import(
    importer: Callable[..., BundleManifest],
    checkpoint: Path,
    out: Path,
    pooling: list[str] | None,
    interaction: InteractionChoice | None,
    *,
    logits: bool,
    overwrite: bool,
    output: Output,
) -> None:
    """What the importers of checkpoints share: the same options, and the same answer."""
    from erless.importers.poolings import Poolings
    from erless.specs.model import Interaction

    with bars() as progress:
        manifest = importer(
            checkpoint,
            out,
            interaction=None if interaction is None else Interaction(interaction.value),
            poolings=Poolings.parse(pooling or []),
            sigmoid=not logits,
            overwrite=overwrite,
            progress=progress,
        )
    _emit(output, out, manifest)


def _emit(output: Output, out: Path, manifest: BundleManifest) -> None:
    from erless.cli.model.bundle import describe, draw

    emit(output, describe(out, manifest), lambda console: draw(console, out, manifest))
