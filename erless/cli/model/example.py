"""`erless example`: a model, its queries and its access log, to try everything on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from erless.cli.bars import bars
from erless.cli.option_groups import grouped
from erless.cli.options import OutOption, OverwriteOption
from erless.cli.run import Output, OutputOption, emit, verb

if TYPE_CHECKING:
    from erless.dlrm.workload import Workload

app = typer.Typer(
    no_args_is_help=True,
    help="Make a model bundle with queries and an access log: rm1, rm2, rm3 or movielens.",
)

SeedOption = Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")]


@dataclass(frozen=True)
class WorkloadOptions:
    """How large the model is, and how its rows are asked for."""

    rows: Annotated[int, typer.Option(min=1, help="Rows per table (the paper has 20000000).")] = (
        200_000
    )
    tables: Annotated[
        int | None, typer.Option(min=1, help="Tables; default: as many as the workload has.")
    ] = None
    locality: Annotated[
        float, typer.Option(help="P: share of accesses that the hottest 10 % of rows take.")
    ] = 0.9
    batch: Annotated[int, typer.Option(min=1, help="Samples per query.")] = 32

    def of(self, base: Workload) -> Workload:
        """`base` of this size."""
        if not 0 < self.locality < 1:
            raise typer.BadParameter("must lie between 0 and 1", param_hint="--locality")
        return replace(
            base,
            rows=self.rows,
            tables=self.tables or base.tables,
            locality=self.locality,
            batch=self.batch,
        )


@dataclass(frozen=True)
class SampleOptions:
    """What is drawn beside the model."""

    queries: Annotated[int, typer.Option(min=1, help="Queries in queries.safetensors.")] = 64
    log_samples: Annotated[int, typer.Option(min=1, help="Samples in access.parquet.")] = 8192
    seed: SeedOption = 0


def _add_workload(name: str, summary: str) -> None:
    """Register `erless example NAME`."""

    @verb
    @grouped
    def make(
        out: OutOption,
        size: WorkloadOptions,
        drawn: SampleOptions,
        overwrite: OverwriteOption = False,
        output: OutputOption = Output.TEXT,
    ) -> None:
        from erless.dlrm.workload import WORKLOADS
        from erless.importers.synthetic import make_example

        workload = size.of(WORKLOADS[name])
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
                f"{out}: {name}, {len(manifest.model.tables)} tables of {size.rows:,} rows "
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
