"""`erless demo`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.bars import bars
from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from rich.console import Console

    from erless.specs.plan import Plan

__all__ = ["demo"]


class Model(StrEnum):
    """What the demo can serve."""

    RM1 = "rm1"
    RM2 = "rm2"
    RM3 = "rm3"
    MOVIELENS = "movielens"


@verb
def demo(
    model: Annotated[Model, typer.Option(help="The paper's workloads, or a real model.")] = (
        Model.RM1
    ),
    rows: Annotated[int, typer.Option(min=10_000, help="Per table of rm1, rm2, rm3.")] = 500_000,
    data: Annotated[
        Path | None, typer.Option(help="Folder of ml-100k.* [movielens; made-up ratings].")
    ] = None,
    live: Annotated[
        float,
        typer.Option(min=0.05, max=1, help="Share of rm1's, rm2's, rm3's rows that are asked for."),
    ] = 0.4,
    seconds: Annotated[float, typer.Option(min=2, help="Of the spike.")] = 14,
    disk: Annotated[
        bool, typer.Option("--disk", help="Frozen rows lie on this machine's disk.")
    ] = False,
    report: Annotated[Path, typer.Option(help="The page to write.")] = Path("erless-demo.html"),
    output: OutputOption = Output.TEXT,
) -> None:
    """Serve a model by shards on this machine, in about a minute, and show what it takes.

    Builds (or trains) a model, profiles, plans, packs, measures the whole model, deploys, sends
    low, then spike, then no traffic, wakes what sleeps, compares every answer, writes a page.

    Example: `erless demo`, `erless demo --model movielens --data ml-100k -o json`
    """
    from erless.cli.demo.inputs import Prepared
    from erless.cli.demo.page import TOLERANCE, document_of, summary_table, tier_table, write_page
    from erless.cli.demo.stage import Demo, Measured

    documents: list[dict[str, Any]] = []

    def write(measured: Measured, prepared: Prepared) -> None:
        result = write_page(measured, prepared, report, prepared.bundle.parent / "result")
        documents.append(document_of(measured, prepared, result, report))

    with bars() as progress:
        stage = Demo(model.value, rows, data, seconds, progress, note, disk, live)
        measured = stage.run(_show_plan, write)
    document = documents[0]

    def draw(console: Console) -> None:
        console.print(summary_table(document, measured))
        if disk:
            console.print(tier_table(measured))
        for line in (*document["assumptions"], f"The plan: {document['verdict']}."):
            console.print(f"- {line}")
        console.print(f"the page: {report}")

    emit(
        output, document, draw, then=f"open {report} in a browser; then erless example rm1 --out m"
    )
    if document["max_relative_error"] > TOLERANCE or document["queries_failed"]:
        note(
            f"error: {document['queries_failed']} queries failed; largest relative difference "
            f"{document['max_relative_error']:.2g}, allowed {TOLERANCE:g}"
        )
        raise SystemExit(1)


def _show_plan(plan: Plan) -> None:
    """Draw the plan on stderr, before it is packed."""
    from rich.console import Console

    from erless.plan.report.tables import policy_table, shard_table

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=True, highlight=False, width=150)
    console.print(shard_table(plan))
    console.print(policy_table(plan))
    for line in plan.notes:
        console.print(line)
