"""`erless status`: what runs, how busy it is, what it costs in memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.deployment.target_options import TargetOptions, resolve_target
from erless.cli.option_groups import grouped
from erless.cli.run import Output, OutputOption, emit, verb
from erless.specs.functions import GATEWAY

if TYPE_CHECKING:
    from rich.console import Console, Group

    from erless.deploy.target import FunctionStatus, Status, Target

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

    With --watch the gateway's traffic and latency of the last minutes and what changed are shown
    too; with -o json each look is a line. Where several models are deployed, all are shown and
    summed. Exit 1 where nothing is deployed.

    Example: `erless status --watch`
    """
    destination, config = resolve_target(where)
    token = os.environ.get(config.gateway.token_env) if config.gateway.token_env else None
    models = destination.by_model()
    if len(models) > 1:
        return _several(models, watch, output)
    if watch:
        with suppress(KeyboardInterrupt):  # how one ends it
            _watch(destination, interval_s, output)
        return None
    report = destination.status()
    fresh = freshness(report, token)

    def draw(console: Console) -> None:
        console.print(status_view(report))
        if fresh.get("generation"):
            console.print(_freshness_line(fresh))

    failing = next((each.name for each in report.functions if each.reason), "")
    then = f"erless logs {failing}" if failing else "erless predict QUERIES"
    return emit(output, status_document(report) | fresh, draw, then=then)


def _several(models: Sequence[Target], watch: bool, output: Output) -> None:
    """Every model's table, and what all of them hold together.

    Raises:
        SeveralModelsError: one has to be watched at a time.
    """
    from erless.deploy.target import served_model
    from erless.errors import SeveralModelsError

    by_name = {served_model(model.deployments()): model for model in models}
    if watch:
        raise SeveralModelsError(f"one model is watched at a time; here are {', '.join(by_name)}")
    reports = {name: model.status() for name, model in by_name.items()}
    documents = [{"model": name, **status_document(report)} for name, report in reports.items()]
    memory = sum(report.memory_bytes for report in reports.values())
    model_wise = sum(report.model_wise_bytes for report in reports.values())
    document = {
        "target": models[0].name,
        "models": documents,
        "memory_bytes": memory,
        "model_wise_bytes": model_wise,
    }

    def draw(console: Console) -> None:
        for name, report in reports.items():
            console.print(f"model {name}")
            console.print(status_view(report))
        console.print(f"{len(reports)} models: {memory_line(memory, model_wise)}")

    emit(output, document, draw, then="erless status --model NAME")


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
    sized = [function for function in report.functions if function.vcpu is not None]
    size = ("vCPU",) if sized else ()
    disks = any(function.disk_bytes for function in report.functions)
    on_disk = ("on disk", "reads/s") if disks else ()
    numbers = ("replicas", *size, "calls/s", "p95 ms", "MB", *on_disk)
    for heading in ("function", "tier", *numbers, "state"):
        numeric = heading in numbers
        table.add_column(heading, justify="right" if numeric else "left")
    for function in report.functions:
        colour = COLOURS.get(function.state.value, "")
        state = function.state.value + (f": {function.reason}" if function.reason else "")
        table.add_row(
            function.name,
            function.tier,
            f"{function.ready}/{function.wanted}",
            *(["" if function.vcpu is None else f"{function.vcpu:.2f}"] if sized else []),
            f"{function.rps:,.1f}",
            "" if function.p95_ms is None else f"{function.p95_ms:,.1f}",
            f"{function.memory_bytes / 1e6:,.0f}",
            *(_on_disk(function) if disks else ()),
            Text(state, style=colour),
        )
    memory = memory_line(report.memory_bytes, report.model_wise_bytes)
    decisions = [Text(f"{function.name}: {function.decision}") for function in sized]
    return Group(table, *decisions, Text(memory))


def memory_line(memory_bytes: int, model_wise_bytes: int) -> str:
    """What runs holds, against whole copies of the model."""
    reduction = model_wise_bytes / memory_bytes if memory_bytes else 0
    return (
        f"{memory_bytes / 1e6:,.0f} MB in all; as many model-wise replicas would hold "
        f"{model_wise_bytes / 1e6:,.0f} MB ({reduction:.2f}× as much)"
    )


def _on_disk(function: FunctionStatus) -> tuple[str, str]:
    """MB and reads/s of a function's rows on nodes' disks."""
    if not function.disk_bytes:
        return "", ""
    reads = "" if function.disk_reads_s is None else f"{function.disk_reads_s:,.0f}"
    return f"{function.disk_bytes / 1e6:,.0f}", reads


def _watch(target: Target, interval_s: float, output: Output) -> None:
    """Look every `interval_s` seconds, until interrupted."""
    import json
    import sys
    import time

    if output is Output.JSON:
        while True:
            line = {"time": time.time(), **status_document(target.status())}
            sys.stdout.write(json.dumps(line, allow_nan=False) + "\n")
            sys.stdout.flush()
            time.sleep(interval_s)
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    history = History()

    def look() -> Group:
        report = target.status()
        history.add(report)
        lines = [Text(line, style="dim") for line in history.lines()]
        return Group(status_view(report), *lines, Text("Ctrl-C ends it", style="dim"))

    with Live(look(), console=Console(), auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            live.update(look(), refresh=True)


class History:
    """What `--watch` remembers: the gateway's traffic and p95, and the last changes."""

    LOOKS, EVENTS = 60, 3

    def __init__(self) -> None:
        self._traffic: deque[float] = deque(maxlen=self.LOOKS)
        self._latency: deque[float] = deque(maxlen=self.LOOKS)
        self._events: deque[str] = deque(maxlen=self.EVENTS)
        self._ready: dict[str, int] = {}

    def add(self, report: Status) -> None:
        """One more look."""
        from datetime import datetime

        gateway = next((each for each in report.functions if each.kind == GATEWAY), None)
        self._traffic.append(gateway.rps if gateway else 0.0)
        self._latency.append((gateway and gateway.p95_ms) or 0.0)
        moment = datetime.now().astimezone().strftime("%H:%M:%S")
        for each in report.functions:
            was = self._ready.get(each.name, each.ready)
            if was != each.ready:
                self._events.append(f"{moment} {each.name}: {was} → {each.ready} replicas")
            self._ready[each.name] = each.ready

    def lines(self) -> list[str]:
        """Traffic, latency, and what changed."""
        return [
            f"queries/s {sparkline(self._traffic)} {self._traffic[-1]:,.1f}",
            f"p95 ms    {sparkline(self._latency)} {self._latency[-1]:,.1f}",
            *self._events,
        ]


def sparkline(values: Iterable[float]) -> str:
    """Values as blocks of eight heights, the largest full.

    >>> sparkline([0, 1, 2, 4])
    '▁▃▅█'
    """
    values = list(values)
    top = max(values, default=0.0) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * value / top))] for value in values)
