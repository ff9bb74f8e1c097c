"""`erless report`: a result, or two, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from erless.cli.run import Output, OutputOption, emit, verb

__all__ = ["report"]


@verb
def report(
    result: Annotated[Path | None, typer.Argument(help="Result of loadtest or simulate.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two results, side by side.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    output: OutputOption = Output.TEXT,
) -> None:
    """Write a self-contained page: works offline, light and dark, on a phone.

    Example: `erless report result --out report.html`, `erless report --compare A B`
    """
    from erless.observe.report.comparison import write_comparison
    from erless.observe.report.result import write_report

    if (result is None) == (compare is None):
        raise typer.BadParameter("give one RESULT, or --compare A B")
    documents = list(write_comparison(*compare, out)) if compare else []
    if result is not None:
        documents.append(write_report(result, out))
    shown = [document.model_dump(mode="json") for document in documents]
    emit(
        output,
        {"report": str(out), "results": shown},
        lambda console: console.print(f"wrote {out} ({out.stat().st_size:,} bytes)"),
        then=f"open {out} in a browser",
    )
