"""`erless logs`: what the functions say."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import Annotated

import typer

from erless.cli.deployment.target_options import TargetOptions, resolve_target
from erless.cli.option_groups import grouped
from erless.cli.run import Output, OutputOption, emit, verb

__all__ = ["logs"]


@verb
@grouped
def logs(
    function: Annotated[
        str | None, typer.Argument(help="Name from `erless status`, or supervisor [all].")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", min=0, help="The last so many.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Then what comes.")] = False,
    *,
    where: TargetOptions,
    output: OutputOption = Output.TEXT,
) -> None:
    """Print the log lines of one function, or of all in order of time.

    Example: `erless logs gateway --follow`
    """
    if follow and output is Output.JSON:
        raise typer.BadParameter("--follow never ends; leave out -o json")
    destination, _ = resolve_target(where)
    log_lines = destination.logs(function, lines, follow)
    if output is Output.JSON:
        document = {"target": destination.name, "lines": list(log_lines)}
        emit(output, document, lambda _: None, then="erless status")
        return
    with suppress(KeyboardInterrupt) if follow else nullcontext():  # how one ends it
        for line in log_lines:
            typer.echo(line)
