"""`erless import`: a trained model from elsewhere becomes a model bundle."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from erless.cli.bars import bars
from erless.cli.options import OutOption, OverwriteOption
from erless.cli.run import Output, OutputOption, emit, verb

if TYPE_CHECKING:
    from erless.importers.options import ImportOptions
    from erless.progress import Progress
    from erless.specs.bundle import BundleManifest
    from erless.specs.model import Interaction

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
TablesOption = Annotated[
    str | None,
    typer.Option(
        "--tables",
        metavar="NAME,NAME",
        help="Tables in the model's order; needed where the checkpoint keeps none.",
    ),
]
CheckOption = Annotated[
    Path | None,
    typer.Option(
        metavar="SAMPLES",
        help="Query file with the original's `predictions`; refuse what differs beyond 1e-5.",
    ),
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
    check: CheckOption = None,
    overwrite: OverwriteOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Import a checkpoint of facebookresearch/dlrm (`emb_l.N.weight`, `bot_l`, `top_l`).

    Example: `erless import dlrm dlrm.pt --out model`
    """
    from erless.importers.dlrm import import_dlrm

    with bars() as progress:
        manifest = import_dlrm(
            checkpoint,
            out,
            _options(pooling, None, check, overwrite, progress),
            interaction=_interaction(interaction),
            sigmoid=not logits,
        )
    _emit(output, out, manifest)


@app.command()
@verb
def torchrec(
    checkpoint: CheckpointArgument,
    out: OutOption,
    pooling: PoolingOption = None,
    interaction: InteractionOption = None,
    logits: LogitsOption = False,
    tables: TablesOption = None,
    check: CheckOption = None,
    overwrite: OverwriteOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Import a state dict of torchrec's DLRM (`EmbeddingBagCollection`, dense and over arch).

    Example: `erless import torchrec dlrm.pt --pooling mean --out model`
    """
    from erless.importers.dlrm import import_torchrec

    with bars() as progress:
        manifest = import_torchrec(
            checkpoint,
            out,
            _options(pooling, tables, check, overwrite, progress),
            interaction=_interaction(interaction),
            sigmoid=not logits,
        )
    _emit(output, out, manifest)


@app.command("tables")
@verb
def named_tables(
    sources: Annotated[
        list[str],
        typer.Argument(help="Folder, PATH or NAME=PATH of .npy or safetensors tables, in order."),
    ],
    tower: Annotated[Path, typer.Option(help="torch.export archive: dense (B,F), pooled (B,T,D).")],
    dense_features: Annotated[int, typer.Option(min=0, help="Dense features F.")],
    out: OutOption,
    pooling: PoolingOption = None,
    tables: TablesOption = None,
    check: CheckOption = None,
    overwrite: OverwriteOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Import named tables and an exported tower: DCN-v2, DeepFM, or any other architecture.

    Example: `erless import tables u=u.npy i=i.npy --tower t.pt2 --dense-features 13 --pooling sum
    --out m`
    """
    from erless.importers.tables import import_tables

    with bars() as progress:
        options = _options(pooling, tables, check, overwrite, progress)
        manifest = import_tables(sources, tower, dense_features, out, options)
    _emit(output, out, manifest)


def _options(
    pooling: list[str] | None,
    tables: str | None,
    check: Path | None,
    overwrite: bool,
    progress: Progress,
) -> ImportOptions:
    """What all importers share, from the options of the command line."""
    from erless.importers.options import ImportOptions
    from erless.importers.poolings import Poolings

    return ImportOptions(
        poolings=Poolings.parse(pooling or []),
        tables=None if tables is None else [name.strip() for name in tables.split(",")],
        samples=check,
        overwrite=overwrite,
        progress=progress,
    )


def _interaction(choice: InteractionChoice | None) -> Interaction | None:
    from erless.specs.model import Interaction

    return None if choice is None else Interaction(choice.value)


def _emit(output: Output, out: Path, manifest: BundleManifest) -> None:
    from erless.cli.model.bundle import describe, draw

    emit(output, describe(out, manifest), lambda console: draw(console, out, manifest))
