"""`erless destroy`: remove what was deployed."""

from __future__ import annotations

import typer

from erless.cli.bars import bars
from erless.cli.deployment.target_options import TargetOptions, TimeoutOption, resolve_target
from erless.cli.option_groups import grouped
from erless.cli.run import Output, OutputOption, emit, verb

__all__ = ["destroy"]


@verb
@grouped
def destroy(
    where: TargetOptions,
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    timeout_s: TimeoutOption = 120,
    output: OutputOption = Output.TEXT,
) -> None:
    """Answer what is in flight, then remove all functions, their state and logs.

    Releases in the store stay. On a terminal it asks first.

    Example: `erless destroy --yes`
    """
    import sys

    destination, _ = resolve_target(where)
    if not yes and sys.stdin.isatty():
        typer.confirm(
            f"Remove everything of erless at target {destination.name}?", abort=True, err=True
        )
    with bars() as progress:
        destination.destroy(progress, timeout_s)
    document = {"target": destination.name, "destroyed": True}
    emit(
        output,
        document,
        lambda console: console.print(f"nothing is left at {destination.name}"),
        then="erless deploy",
    )
