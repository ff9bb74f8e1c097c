"""`erless bundle`: look at a model bundle, and check every byte of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.bars import bars
from erless.cli.options import OverwriteOption
from erless.cli.run import Output, OutputOption, emit, verb

if TYPE_CHECKING:
    from rich.console import Console

    from erless.specs.bundle import BundleManifest

app = typer.Typer(
    no_args_is_help=True,
    help="Show or verify a model bundle; say how its ids become rows.",
    epilog="Example: `erless bundle show m`",
)

BundleArgument = Annotated[Path, typer.Argument(help="Folder of the model bundle.")]


@app.command()
@verb
def show(bundle: BundleArgument, output: OutputOption = Output.TEXT) -> None:
    """Show tables, sizes and tower.

    Example: `erless bundle show m`
    """
    from erless.specs.bundle import BundleManifest

    manifest = BundleManifest.open(bundle)
    emit(
        output,
        describe(bundle, manifest),
        lambda console: draw(console, bundle, manifest),
        then=f"erless profile --model {bundle} --log LOG --out profile",
    )


@app.command()
@verb
def verify(bundle: BundleArgument, output: OutputOption = Output.TEXT) -> None:
    """Read every file and compare it with its digest.

    Example: `erless bundle verify m`
    """
    from erless.specs.bundle import BundleManifest

    manifest = BundleManifest.open(bundle)
    with bars() as progress:
        manifest.verify(bundle, progress)
    size = sum(entry.size_bytes for entry in manifest.files())
    document = {"bundle": str(bundle), "digest": manifest.digest, "verified_bytes": size}
    emit(
        output,
        document,
        lambda console: console.print(f"{bundle}: {size:,} bytes, all as written"),
        then=f"erless bundle show {bundle}",
    )


@app.command()
@verb
def ids(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=RULE",
            help="Of a feature, or a table's: exact, modulo, hash:xxh64:SEED, "
            "hash:splitmix64:SEED, vocabulary:FILE.parquet or vocabulary:CHECKPOINT#MODULE.",
        ),
    ] = None,
    unknown: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=WHAT", help="reject, zero, default or a row; repeat."),
    ] = None,
    overwrite: OverwriteOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Write a bundle whose ids become rows otherwise: by a vocabulary, a hash, modulo.

    Example: `erless bundle ids m --rule user=vocabulary:u.parquet --unknown user=default --out n`
    """
    from erless.importers.ids import IdOptions, set_ids

    with bars() as progress:
        manifest = set_ids(
            bundle,
            out,
            IdOptions.parse(rule or [], unknown or []),
            overwrite=overwrite,
            progress=progress,
        )
    emit(
        output,
        describe(out, manifest),
        lambda console: draw(console, out, manifest),
        then=f"erless profile --model {out} --log LOG --out profile",
    )


def describe(folder: Path, manifest: BundleManifest) -> dict[str, Any]:
    """The bundle as a JSON document."""
    model = manifest.model
    return {
        "bundle": str(folder),
        "digest": manifest.digest,
        "model": model.model_dump(mode="json"),
        "embedding_bytes": model.embedding_bytes,
    }


def draw(console: Console, folder: Path, manifest: BundleManifest) -> None:
    """The bundle as a table."""
    from rich.table import Table

    model = manifest.model
    table = Table("table", "rows", "dim", "pooling", "MB", title=f"{folder} ({model.name})")
    for spec in model.tables:
        size = f"{spec.table_bytes / 1e6:,.1f}"
        table.add_row(spec.name, f"{spec.rows:,}", str(spec.dim), spec.pooling, size)
    console.print(table)
    fields = model.tower.model_dump(mode="json")
    tower = ", ".join(f"{key} {value}" for key, value in fields.items())
    console.print(f"dense features {model.dense_features}; tower {tower}")
    console.print(f"digest {manifest.digest}")
