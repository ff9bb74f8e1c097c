"""`erless import`: a trained model from elsewhere becomes a model bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.bars import bars
from erless.cli.option_groups import grouped
from erless.cli.options import EndpointOption, OutOption, OverwriteOption
from erless.cli.run import Output, OutputOption, emit, verb

if TYPE_CHECKING:
    from rich.console import Console

    from erless.importers.options import ImportOptions
    from erless.progress import Progress
    from erless.specs.bundle import BundleManifest

app = typer.Typer(
    no_args_is_help=True,
    help="Import a trained model. Pickles are never executed: only plain tensors load.",
    epilog="Example: `erless import dlrm dlrm.pt --out model`",
)


class QuantizedChoice(StrEnum):
    """The precisions of quantized tables, without importing torch."""

    INT8 = "int8"
    INT4 = "int4"
    FP16 = "fp16"


class InteractionChoice(StrEnum):
    """The built-in tower's interactions, without importing pydantic."""

    DOT = "dot"
    DOT_ITSELF = "dot_itself"
    DOT_UPPER = "dot_upper"
    CAT = "cat"


CheckpointArgument = Annotated[
    str,
    typer.Argument(
        help="Checkpoint: torch.save's (zip or legacy) or safetensors; a path or s3://bucket/key."
    ),
]
TablesOption = Annotated[
    str | None,
    typer.Option(
        "--tables",
        metavar="NAME,NAME",
        help="Tables in the model's order; needed where the checkpoint keeps none.",
    ),
]


@dataclass(frozen=True)
class SharedOptions:
    """What every importer takes."""

    out: OutOption
    pooling: Annotated[
        list[str] | None,
        typer.Option(
            help="sum, mean, max or weighted_sum for all tables, or TABLE=POOLING; repeat."
        ),
    ] = None
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="SAMPLES",
            help="Query file with the original's `predictions`; refuse what differs beyond 1e-5.",
        ),
    ] = None
    overwrite: OverwriteOption = False
    endpoint_url: EndpointOption = None

    def of_import(self, progress: Progress, tables: str | None = None) -> ImportOptions:
        """These as the importers take them; `tables` is their order, separated by commas."""
        from erless.importers.options import ImportOptions
        from erless.importers.poolings import Poolings

        return ImportOptions(
            poolings=Poolings.parse(self.pooling or []),
            tables=None if tables is None else [name.strip() for name in tables.split(",")],
            samples=self.check,
            overwrite=self.overwrite,
            endpoint_url=self.endpoint_url,
            progress=progress,
        )


@dataclass(frozen=True)
class TowerOptions:
    """What a checkpoint does not contain of the built-in tower."""

    interaction: Annotated[
        InteractionChoice | None, typer.Option(help="Default: by the width of the top MLP.")
    ] = None
    logits: Annotated[
        bool,
        typer.Option("--logits", help="Predict the top MLP's output, without the sigmoid."),
    ] = False

    def of_import(self) -> Mapping[str, Any]:
        """These as the importers take them."""
        from erless.specs.model import Interaction

        named = self.interaction and Interaction(self.interaction.value)
        return {"interaction": named, "sigmoid": not self.logits}


@dataclass(frozen=True)
class TorchrecOptions:
    """What a collection's checkpoint does not contain of its tables."""

    tables: TablesOption = None
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TABLE=FEATURE,FEATURE",
            help="Features that read a table, where it is not one of the table's name; repeat.",
        ),
    ] = None
    quantized: Annotated[
        QuantizedChoice | None,
        typer.Option(help="What the bytes of quantized tables are; no checkpoint says."),
    ] = None

    def of_import(self, options: ImportOptions) -> ImportOptions:
        """`options` with these."""
        from erless.importers.options import Quantization, parse_features

        return replace(
            options,
            features=parse_features(self.features or []),
            quantized=Quantization(self.quantized.value) if self.quantized else None,
        )


@app.command()
@verb
@grouped
def dlrm(
    checkpoint: CheckpointArgument,
    shared: SharedOptions,
    tower: TowerOptions,
    output: OutputOption = Output.TEXT,
) -> None:
    """Import a checkpoint of facebookresearch/dlrm (`emb_l.N.weight`, `bot_l`, `top_l`).

    Example: `erless import dlrm dlrm.pt --out model`
    """
    from erless.importers.dlrm import import_dlrm

    with bars() as progress:
        options = shared.of_import(progress)
        manifest = import_dlrm(checkpoint, shared.out, options, **tower.of_import())
    _emit(output, shared.out, manifest)


@app.command()
@verb
@grouped
def torchrec(
    checkpoint: CheckpointArgument,
    shared: SharedOptions,
    tower: TowerOptions,
    collection: TorchrecOptions,
    output: OutputOption = Output.TEXT,
) -> None:
    """Import torchrec's DLRM or DLRM_DCN: a state dict, or a distributed checkpoint's folder.

    Example: `erless import torchrec dlrm.pt --pooling mean --out model`
    """
    from erless.importers.torchrec import import_torchrec

    with bars() as progress:
        options = collection.of_import(shared.of_import(progress, collection.tables))
        manifest = import_torchrec(checkpoint, shared.out, options, **tower.of_import())
    _emit(output, shared.out, manifest)


@app.command("tables")
@verb
@grouped
def named_tables(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Folder, PATH or NAME=PATH of .npy or safetensors tables, in order; or s3://….safetensors."
        ),
    ],
    tower: Annotated[Path, typer.Option(help="torch.export archive: dense (B,F), pooled (B,T,D).")],
    dense_features: Annotated[int, typer.Option(min=0, help="Dense features F.")],
    shared: SharedOptions,
    tables: TablesOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Import named tables and an exported tower: DCN-v2, DeepFM, or any other architecture.

    Example: `erless import tables u=u.npy i=i.npy --tower t.pt2 --dense-features 13 --pooling sum
    --out m`
    """
    from erless.importers.tables import import_tables

    with bars() as progress:
        options = shared.of_import(progress, tables)
        manifest = import_tables(sources, tower, dense_features, shared.out, options)
    _emit(output, shared.out, manifest)


@app.command("torch")
@verb
def saved_by_torch(
    archive: Annotated[
        str,
        typer.Argument(
            help="A whole model, saved by torch.export.save; a path or s3://bucket/key."
        ),
    ],
    out: OutOption,
    small_rows: Annotated[
        int, typer.Option(min=0, help="Tables with fewer rows stay in the tower.")
    ] = 1_000,
    overwrite: OverwriteOption = False,
    endpoint_url: EndpointOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Import a whole model of any architecture, cut at its embedding lookups.

    Example: `erless import torch model.pt2 --out model`
    """
    from erless.importers.archives.whole_model import import_archive

    with bars() as progress:
        manifest = import_archive(
            archive,
            out,
            small_rows=small_rows,
            overwrite=overwrite,
            endpoint_url=endpoint_url,
            progress=progress,
        )
    _emit(output, out, manifest)


@app.command("inspect")
@verb
def look(
    checkpoint: Annotated[
        str, typer.Argument(help="What a model was saved to: a file, a folder, or s3://bucket/….")
    ],
    endpoint_url: EndpointOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """List a checkpoint's tensors and say which command would import it; nothing is executed.

    Example: `erless import inspect dlrm.pt`
    """
    from dataclasses import asdict

    from erless.importers.inspect import inspect_checkpoint

    found = inspect_checkpoint(checkpoint, endpoint_url)

    def draw(console: Console) -> None:
        from rich.table import Table

        table = Table("tensor", "type", "shape", "", title=f"{checkpoint}: by {found.made_by}")
        for tensor in found.tensors:
            shape = " × ".join(f"{size:,}" for size in tensor.shape)
            table.add_row(tensor.name, tensor.dtype, shape, "table" if tensor.table else "")
        console.print(table)

    emit(output, {"checkpoint": str(checkpoint), **asdict(found)}, draw, then=found.command)


def _emit(output: Output, out: Path, manifest: BundleManifest) -> None:
    from erless.cli.model.bundle import describe, draw

    emit(
        output,
        describe(out, manifest),
        lambda console: draw(console, out, manifest),
        then=f"erless profile --model {out} --log LOG --out profile",
    )
