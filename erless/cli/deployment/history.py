"""`erless history` and `erless rollback`: the releases that a target keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from erless.cli.bars import bars
from erless.cli.deployment.target_options import TargetOptions, TimeoutOption, resolve_target
from erless.cli.option_groups import grouped
from erless.cli.run import Output, OutputOption, emit, verb

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["history", "rollback"]


@verb
@grouped
def history(
    where: TargetOptions,
    output: OutputOption = Output.TEXT,
) -> None:
    """List the releases that were deployed and are kept, newest first.

    Example: `erless history`
    """
    from dataclasses import asdict

    destination, _ = resolve_target(where)
    deployments = destination.deployments()

    def draw(console: Console) -> None:
        from rich.table import Table

        table = Table("", "release", "deployed at", "url")
        for deployment in deployments:
            mark = "→" if deployment.current else ""
            table.add_row(
                mark,
                deployment.release,
                deployment.deployed_at,
                deployment.url if deployment.current else "",
            )
        console.print(table)

    document = {
        "target": destination.name,
        "deployments": [asdict(deployment) for deployment in deployments],
    }
    emit(output, document, draw)


@verb
@grouped
def rollback(
    release: Annotated[
        str | None, typer.Argument(help="Digest or its beginning [the one before the current].")
    ] = None,
    *,
    where: TargetOptions,
    timeout_s: TimeoutOption = 120,
    output: OutputOption = Output.TEXT,
) -> None:
    """Make a kept release current again; queries in flight are answered where they are.

    Example: `erless rollback`, `erless rollback 3f9a`
    """
    from dataclasses import asdict

    destination, _ = resolve_target(where)
    with bars() as progress:
        done = destination.rollback(release, progress, timeout_s)
    emit(
        output,
        {"target": destination.name, **asdict(done)},
        lambda console: console.print(f"release {done.release[:12]} answers at {done.url} again"),
    )
