"""`erless status`: what runs, how busy it is, what it costs in memory."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.deployment.target_options import TargetOptions, resolve_target
from erless.cli.option_groups import grouped
from erless.cli.run import Output, OutputOption, emit, verb
from erless.specs.functions import GATEWAY

if TYPE_CHECKING:
    from rich.console import Console, Group

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
@grouped
def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C.")] = False,
    interval_s: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds.")] = 1.0,
    *,
    where: TargetOptions,
    output: OutputOption = Output.TEXT,
) -> None:
    """Show every function: replicas, rate, latency, memory, state and, where it fails, why.

    Exit 1 where nothing is deployed.

    Example: `erless status --watch`
    """
    if watch and output is Output.JSON:
        raise typer.BadParameter("--watch draws a table; leave out -o json")
    destination, config = resolve_target(where)
    token = os.environ.get(config.gateway.token_env) if config.gateway.token_env else None
    if watch:
        with suppress(KeyboardInterrupt):  # how one ends it
            _watch(destination, interval_s)
        return
    report = destination.status()
    fresh = freshness(report, token)

    def draw(console: Console) -> None:
        console.print(status_view(report))
        if fresh.get("generation"):
            console.print(_freshness_line(fresh))

    emit(output, status_document(report) | fresh, draw)


def freshness(report: Status, token: str | None) -> dict[str, Any]:
    """The generation that the gateway answers with, its age, and what the next one waits for.

    Nothing where no gateway is awake, or it does not answer within two seconds.
    """
    from erless.errors import ServeError
    from erless.serve.protocol.client import QueryClient

    awake = any(each.kind == GATEWAY and each.ready for each in report.functions)
    if not report.url or not awake:
        return {}
    try:
        with QueryClient(report.url, token, timeout_s=2.0, address=report.address) as client:
            facts = client.metadata["parameters"]
    except ServeError:
        return {}
    return {name: value for name, value in facts.items() if name.startswith("generation")}


def _freshness_line(fresh: dict[str, Any]) -> str:
    line = f"generation {fresh['generation']}, {fresh.get('generation_age_s', 0):,.0f} s old"
    waits = fresh.get("generation_waits_for")
    return f"{line}; the next is not answered with yet: {waits}" if waits else line


def status_document(report: Status) -> dict[str, Any]:
    """`-o json`."""
    from dataclasses import asdict

    reduction = report.model_wise_bytes / report.memory_bytes if report.memory_bytes else None
    return {**asdict(report), "memory_reduction": reduction and round(reduction, 3)}


def status_view(report: Status) -> Group:
    """The table, and one line about memory."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"{report.target}: release {report.release[:12]} at {report.url or 'no address'}"
    )
    for heading in ("function", "tier", "replicas", "rps", "p95 ms", "MB", "state"):
        numeric = heading in ("replicas", "rps", "p95 ms", "MB")
        table.add_column(heading, justify="right" if numeric else "left")
    for function in report.functions:
        colour = COLOURS.get(function.state.value, "")
        state = function.state.value + (f": {function.reason}" if function.reason else "")
        table.add_row(
            function.name,
            function.tier,
            f"{function.ready}/{function.wanted}",
            f"{function.rps:,.1f}",
            "" if function.p95_ms is None else f"{function.p95_ms:,.1f}",
            f"{function.memory_bytes / 1e6:,.0f}",
            Text(state, style=colour),
        )
    reduction = report.model_wise_bytes / report.memory_bytes if report.memory_bytes else 0
    memory = (
        f"{report.memory_bytes / 1e6:,.0f} MB in all; as many model-wise replicas would hold "
        f"{report.model_wise_bytes / 1e6:,.0f} MB ({reduction:.2f}× as much)"
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
