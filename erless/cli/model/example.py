"""`erless example`: a model, its queries and its access log, to try everything on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from erless.cli.bars import bars
from erless.cli.options import OutOption, OverwriteOption
from erless.cli.run import Output, OutputOption, emit, verb

app = typer.Typer(
    no_args_is_help=True,
    help="Make a model bundle with queries and an access log: rm1, rm2, rm3 or movielens.",
)

RowsOption = Annotated[int, typer.Option(min=1, help="Rows per table (the paper has 20000000).")]
TablesOption = Annotated[
    int | None, typer.Option(min=1, help="Tables; default: as many as the workload has.")
]
LocalityOption = Annotated[
    float, typer.Option(help="P: share of accesses that the hottest 10 % of rows take.")
]
QueriesOption = Annotated[int, typer.Option(min=1, help="Queries in queries.safetensors.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Samples per query.")]
LogOption = Annotated[int, typer.Option(min=1, help="Samples in access.parquet.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")]


def _add_workload(name: str, summary: str) -> None:
    """Register `erless example NAME`."""

    @verb
    def make(
        out: OutOption,
        rows: RowsOption = 200_000,
        tables: TablesOption = None,
        locality: LocalityOption = 0.9,
        batch: BatchOption = 32,
        queries: QueriesOption = 64,
        log_samples: LogOption = 8192,
        seed: SeedOption = 0,
        overwrite: OverwriteOption = False,
        output: OutputOption = Output.TEXT,
    ) -> None:
        import dataclasses

        from erless.dlrm.workload import WORKLOADS
        from erless.importers.synthetic import make_example

        if not 0 < locality < 1:
            raise typer.BadParameter("must lie between 0 and 1", param_hint="--locality")
        base = WORKLOADS[name]
        workload = dataclasses.replace(
            base, rows=rows, tables=tables or base.tables, locality=locality, batch=batch
        )
        with bars() as progress:
            manifest = make_example(
                workload,
                out,
                queries=queries,
                log_samples=log_samples,
                seed=seed,
                overwrite=overwrite,
                progress=progress,
            )
        document = {
            "bundle": str(out),
            "digest": manifest.digest,
            "tables": len(manifest.model.tables),
            "embedding_bytes": manifest.model.embedding_bytes,
            "queries": str(out / "queries.safetensors"),
            "access_log": str(out / "access.parquet"),
        }
        emit(
            output,
            document,
            lambda console: console.print(
                f"{out}: {name}, {len(manifest.model.tables)} tables of {rows:,} rows "
                f"({manifest.model.embedding_bytes / 1e6:,.0f} MB)\n"
                f"next: erless predict --monolith {out} {out}/queries.safetensors"
            ),
        )

    make.__doc__ = f"{summary}\n\nExample: `erless example {name} --rows 200000 --out m`"
    app.command(name)(make)


_add_workload("rm1", "10 tables, pooling 128: the paper's RM1, with seeded weights.")
_add_workload("rm2", "32 tables, pooling 128: the paper's RM2, with seeded weights.")
_add_workload("rm3", "10 tables, pooling 32, a large dense tower: the paper's RM3.")


@app.command()
@verb
def movielens(
    data: Annotated[
        Path, typer.Option(help="Folder of ml-100k.inter, .user and .item (RecBole's format).")
    ],
    out: OutOption = Path("movielens"),
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Train a real DLRM on MovieLens 100k and tell its held-out AUC.

    Example: `erless example movielens --data ../shared/data --out movielens`
    """
    from erless.importers.training import make_movielens

    with bars() as progress:
        trained = make_movielens(data, out, seed=seed, overwrite=overwrite, progress=progress)
    document = {
        "bundle": str(out),
        "digest": trained.manifest.digest,
        "auc": round(trained.auc, 6),
        "validation_auc": round(trained.validation_auc, 6),
        "epochs": trained.epochs,
        "train_samples": trained.train_samples,
        "held_out_samples": trained.held_out_samples,
        "queries": str(out / "queries.safetensors"),
        "access_log": str(out / "access.parquet"),
    }
    emit(
        output,
        document,
        lambda console: console.print(
            f"{out}: trained on {trained.train_samples:,} ratings, "
            f"AUC {trained.auc:.4f} on the {trained.held_out_samples:,} that followed\n"
            f"next: erless predict --monolith {out} {out}/queries.safetensors"
        ),
    )
