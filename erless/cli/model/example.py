"""`erless example`: a model, its queries and its access log, to try everything on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from erless.cli.bars import bars
from erless.cli.option_groups import grouped
from erless.cli.options import OutOption, OverwriteOption
from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from erless.dlrm.workload import Workload
    from erless.importers.training import Trained

app = typer.Typer(
    no_args_is_help=True,
    help="Make a model bundle with queries and an access log: rm1, rm2, rm3, dlrmv2, movielens "
    "or sequence.",
    epilog="Example: `erless example rm1 --rows 200000 --out m`",
)

SeedOption = Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")]


@dataclass(frozen=True)
class WorkloadOptions:
    """How large the model is."""

    rows: Annotated[int, typer.Option(min=1, help="Rows per table (the paper has 20000000).")] = (
        200_000
    )
    tables: Annotated[
        int | None, typer.Option(min=1, help="Tables; default: as many as the workload has.")
    ] = None

    def of(self, base: Workload) -> Workload:
        """`base` of this size."""
        return replace(base, rows=self.rows, tables=self.tables or base.tables)


@dataclass(frozen=True)
class ScaleOptions:
    """How large a workload of tables that differ is."""

    scale: Annotated[
        float, typer.Option(help="Times the rows of MLPerf's tables; 1 is 104 GB of rows.")
    ] = 0.01

    def of(self, base: Workload) -> Workload:
        """`base` of this size."""
        if not 0 < self.scale <= 100:
            raise typer.BadParameter("must lie between 0 and 100", param_hint="--scale")
        return base.scaled(self.scale)


@dataclass(frozen=True)
class AccessOptions:
    """How its rows are asked for."""

    locality: Annotated[
        float, typer.Option(help="P: share of accesses that the hottest 10 % of rows take.")
    ] = 0.9
    batch: Annotated[int, typer.Option(min=1, help="Samples per query.")] = 32

    def of(self, base: Workload) -> Workload:
        """`base` asked so."""
        if not 0 < self.locality < 1:
            raise typer.BadParameter("must lie between 0 and 1", param_hint="--locality")
        return replace(base, locality=self.locality, batch=self.batch)


@dataclass(frozen=True)
class SampleOptions:
    """Queries and log that are drawn beside the model."""

    queries: Annotated[int, typer.Option(min=1, help="Queries in queries.safetensors.")] = 64
    log_samples: Annotated[int, typer.Option(min=1, help="Samples in access.parquet.")] = 8192
    seed: SeedOption = 0


def _make(
    workload: Workload, out: Path, drawn: SampleOptions, overwrite: bool, output: Output
) -> None:
    """Write the example and report it."""
    from erless.importers.synthetic import make_example

    with bars() as progress:
        manifest = make_example(
            workload,
            out,
            queries=drawn.queries,
            log_samples=drawn.log_samples,
            seed=drawn.seed,
            overwrite=overwrite,
            progress=progress,
        )
    model = manifest.model
    document = {
        "bundle": str(out),
        "digest": manifest.digest,
        "tables": len(model.tables),
        "embedding_bytes": model.embedding_bytes,
        "queries": str(out / "queries.safetensors"),
        "access_log": str(out / "access.parquet"),
    }
    most = max(table.rows for table in model.tables)
    many = f"up to {most:,}" if workload.sizes else f"{most:,}"
    emit(
        output,
        document,
        lambda console: console.print(
            f"{out}: {workload.name}, {len(model.tables)} tables of {many} rows "
            f"({model.embedding_bytes / 1e6:,.0f} MB)"
        ),
        then=f"erless predict --monolith {out} {out}/queries.safetensors",
    )


def _add_workload(name: str, summary: str) -> None:
    """Register `erless example NAME`."""

    @verb
    @grouped
    def make(
        out: OutOption,
        size: WorkloadOptions,
        traffic: AccessOptions,
        drawn: SampleOptions,
        overwrite: OverwriteOption = False,
        output: OutputOption = Output.TEXT,
    ) -> None:
        from erless.dlrm.workload import WORKLOADS

        _make(traffic.of(size.of(WORKLOADS[name])), out, drawn, overwrite, output)

    make.__doc__ = f"{summary}\n\nExample: `erless example {name} --rows 200000 --out m`"
    app.command(name)(make)


_add_workload("rm1", "10 tables, pooling 128: the paper's RM1, with seeded weights.")
_add_workload("rm2", "32 tables, pooling 128: the paper's RM2, with seeded weights.")
_add_workload("rm3", "10 tables, pooling 32, a large dense tower: the paper's RM3.")


@app.command()
@verb
@grouped
def dlrmv2(
    out: OutOption,
    size: ScaleOptions,
    traffic: AccessOptions,
    drawn: SampleOptions,
    overwrite: OverwriteOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """MLPerf's DLRM-v2: 26 tables of dim 128, multi-hot, a cross net; with seeded weights.

    Example: `erless example dlrmv2 --scale 0.01 --out m`
    """
    from erless.dlrm.workload import WORKLOADS

    _make(traffic.of(size.of(WORKLOADS["dlrmv2"])), out, drawn, overwrite, output)


DataOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of ml-100k.inter, .user and .item (RecBole's format); without it, made-up "
        "ratings of as many."
    ),
]


@contextmanager
def ratings_in(data: Path | None) -> Iterator[Path]:
    """The folder of the ratings: `data`, or one of made-up ratings, which is said."""
    if data is not None:
        yield data
        return
    from tempfile import TemporaryDirectory

    from erless.importers.made_up_ratings import SHA256, SOURCE, write_ratings

    note(
        f"no --data: these ratings are made up. The real ones: {SOURCE} "
        f"(ml-100k.inter: sha256 {SHA256})"
    )
    with TemporaryDirectory(prefix="erless-ratings-") as folder:
        yield write_ratings(Path(folder))


@app.command()
@verb
def movielens(
    data: DataOption = None,
    out: OutOption = Path("movielens"),
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Train a real DLRM on MovieLens 100k and report its held-out AUC.

    Example: `erless example movielens`, `erless example movielens --data ml-100k --out m`
    """
    from erless.importers.synthetic import ACCESS_LOG
    from erless.importers.training import make_movielens

    with bars() as progress, ratings_in(data) as folder:
        trained = make_movielens(folder, out, seed=seed, overwrite=overwrite, progress=progress)
    _tell(trained, out, ACCESS_LOG, output)


@app.command()
@verb
def sequence(
    data: DataOption = None,
    out: OutOption = Path("sequence"),
    seed: SeedOption = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training ratings.")] = 3,
    overwrite: OverwriteOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Train a ranker of histories (SASRec, DIN) on MovieLens 100k, and cut it by `erless.export`.

    Histories and targets share the table of films; the outputs are the chance of four stars or
    more, whose held-out AUC is told, and the stars expected.

    Example: `erless example sequence`, `erless example sequence --data ml-100k --out m`
    """
    import torch

    from erless.importers.sequence.training import ACCESS_LOG, make_sequence

    torch.set_num_threads(1)  # small layers gain nothing from more
    with bars() as progress, ratings_in(data) as folder:
        trained = make_sequence(
            folder, out, seed=seed, epochs=epochs, overwrite=overwrite, progress=progress
        )
    _tell(trained, out, ACCESS_LOG, output)


def _tell(trained: Trained, out: Path, log: str, output: Output) -> None:
    """Show what training gave."""
    from erless.importers.synthetic import QUERIES

    document = {
        "bundle": str(out),
        "digest": trained.manifest.digest,
        "auc": round(trained.auc, 6),
        "validation_auc": round(trained.validation_auc, 6),
        "epochs": trained.epochs,
        "train_samples": trained.train_samples,
        "held_out_samples": trained.held_out_samples,
        "queries": str(out / QUERIES),
        "access_log": str(out / log),
    }
    emit(
        output,
        document,
        lambda console: console.print(
            f"{out}: trained on {trained.train_samples:,} ratings, "
            f"AUC {trained.auc:.4f} on the {trained.held_out_samples:,} that followed"
        ),
        then=f"erless predict --monolith {out} {out}/{QUERIES}",
    )
