"""`erless status`: what runs, how busy it is, what it costs in memory."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.cluster_options import ContextOption, KubeconfigOption, NamespaceOption
from erless.cli.run import Output, OutputOption, emit, verb
from erless.cli.target_options import StateOption, TargetOption, chosen_target

if TYPE_CHECKING:
    from rich.console import Group

    from erless.deploy.target import Status, Target

__all__ = ["status"]

COLOURS = {
    "serving": "green",
    "idle": "green",
    "at zero": "dim",
    "waking": "yellow",
    "draining": "yellow",
    "failing": "red",
}


@verb
def status(
    target: TargetOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C.")] = False,
    interval_s: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds.")] = 1.0,
    state: StateOption = None,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    namespace: NamespaceOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show every function: replicas, rate, latency, memory, state and, where it fails, why.

    Exit 1 where nothing is deployed.

    Example: `erless status --watch`
    """
    if watch and output is Output.JSON:
        raise typer.BadParameter("--watch draws a table; leave out -o json")
    chosen, _ = chosen_target(
        target, state=state, kubeconfig=kubeconfig, context=context, namespace=namespace
    )
    if watch:
        with suppress(KeyboardInterrupt):  # how one ends it
            _watch(chosen, interval_s)
        return
    found = chosen.status()
    emit(output, status_document(found), lambda console: console.print(status_view(found)))


def status_document(found: Status) -> dict[str, Any]:
    """`-o json`."""
    from dataclasses import asdict

    reduction = found.model_wise_bytes / found.memory_bytes if found.memory_bytes else None
    return {**asdict(found), "memory_reduction": reduction and round(reduction, 3)}


def status_view(found: Status) -> Group:
    """The table, and one line about memory."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"{found.target}: release {found.release[:12]} at {found.url or 'no address'}"
    )
    for heading in ("function", "tier", "replicas", "rps", "p95 ms", "MB", "state"):
        numeric = heading in ("replicas", "rps", "p95 ms", "MB")
        table.add_column(heading, justify="right" if numeric else "left")
    for each in found.functions:
        colour = COLOURS.get(each.state.value, "")
        said = each.state.value + (f": {each.reason}" if each.reason else "")
        table.add_row(
            each.name,
            each.tier,
            f"{each.ready}/{each.wanted}",
            f"{each.rps:,.1f}",
            "" if each.p95_ms is None else f"{each.p95_ms:,.1f}",
            f"{each.memory_bytes / 1e6:,.0f}",
            Text(said, style=colour),
        )
    reduction = found.model_wise_bytes / found.memory_bytes if found.memory_bytes else 0
    memory = (
        f"{found.memory_bytes / 1e6:,.0f} MB in all; as many model-wise replicas would hold "
        f"{found.model_wise_bytes / 1e6:,.0f} MB ({reduction:.2f}× as much)"
    )
    return Group(table, Text(memory))


def _watch(target: Target, interval_s: float) -> None:
    import time

    from rich.console import Console
    from rich.live import Live

    with Live(status_view(target.status()), console=Console(), auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            live.update(status_view(target.status()), refresh=True)
