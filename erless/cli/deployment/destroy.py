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
    all_models: bool = typer.Option(False, "--all", help="Every model that is deployed there."),
    timeout_s: TimeoutOption = 120,
    output: OutputOption = Output.TEXT,
) -> None:
    """Answer what is in flight, then remove a model's functions, their state and logs.

    Releases in the store stay. On a terminal it asks first. Where several models are deployed,
    --model names one.

    Example: `erless destroy --yes`
    """
    import sys

    if all_models and where.model:
        raise typer.BadParameter("--all is every model; leave out --model")
    destination, _ = resolve_target(where)
    doomed = destination.by_model() if all_models else ()
    if not yes and sys.stdin.isatty():
        subject = f"model {where.model}" if where.model else "everything of erless"
        typer.confirm(f"Remove {subject} at target {destination.name}?", abort=True, err=True)
    with bars() as progress:
        for target in doomed or (destination,):
            target.destroy(progress, timeout_s)
    document = {"target": destination.name, "destroyed": True}
    what = f"of model {where.model} " if where.model else ""
    emit(
        output,
        document,
        lambda console: console.print(f"nothing {what}is left at {destination.name}"),
        then="erless deploy",
    )
