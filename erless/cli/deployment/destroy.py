"""`erless destroy`: remove what was deployed."""

from __future__ import annotations

import typer

from erless.cli.bars import bars
from erless.cli.cluster.cluster_options import ContextOption, KubeconfigOption, NamespaceOption
from erless.cli.deployment.target_options import (
    StateOption,
    TargetOption,
    TimeoutOption,
    resolve_target,
)
from erless.cli.run import Output, OutputOption, emit, verb

__all__ = ["destroy"]


@verb
def destroy(
    target: TargetOption = None,
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    timeout_s: TimeoutOption = 120,
    state: StateOption = None,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    namespace: NamespaceOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Answer what is in flight, then remove all functions, their state and logs.

    Releases in the store stay. On a terminal it asks first.

    Example: `erless destroy --yes`
    """
    import sys

    destination, _ = resolve_target(
        target, state=state, kubeconfig=kubeconfig, context=context, namespace=namespace
    )
    if not yes and sys.stdin.isatty():
        typer.confirm(
            f"Remove everything of erless at target {destination.name}?", abort=True, err=True
        )
    with bars() as progress:
        destination.destroy(progress, timeout_s)
    document = {"target": destination.name, "destroyed": True}
    emit(output, document, lambda console: console.print(f"nothing is left at {destination.name}"))
