"""`erless open`: a live page of what runs."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.deployment.target_options import TargetOptions, resolve_target
from erless.cli.option_groups import grouped
from erless.cli.run import Output, OutputOption, emit, verb

if TYPE_CHECKING:
    from collections.abc import Mapping

    from erless.deploy.target import Target
    from erless.specs.config import Config

__all__ = ["open_"]


@verb
@grouped
def open_(
    port: Annotated[int, typer.Option(min=0, max=65535, help="On loopback; 0: any free one.")] = 0,
    browser: Annotated[
        bool | None,
        typer.Option("--browser/--no-browser", help="Open it too [where there is a desktop]."),
    ] = None,
    *,
    where: TargetOptions,
    output: OutputOption = Output.TEXT,
) -> None:
    """Serve a live page of what runs, on loopback and read-only, until Ctrl-C.

    It shows every function with its replicas, traffic, latency, memory and events as they happen;
    it needs no network and works on any target.

    Example: `erless open`
    """
    from contextlib import suppress
    from threading import Event

    from erless.cli.deployment.status import freshness, status_document
    from erless.observe.live import LivePage

    destination, config = resolve_target(where)
    token = os.environ.get(config.gateway.token_env) if config.gateway.token_env else None
    first = destination.status()  # where nothing is deployed, say so now

    def ask() -> dict[str, Any]:
        report = destination.status()
        return status_document(report) | freshness(report, token)

    title = f"erless: {destination.name}"
    desktop = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    with (
        LivePage(ask, title, _planned(destination, config, first.release), port) as page,
        suppress(KeyboardInterrupt),  # how one ends it
    ):
        emit(
            output,
            {"url": page.url, "target": destination.name, "release": first.release},
            lambda console: console.print(f"{page.url}  (Ctrl-C ends it)"),
            then="in another terminal: erless predict QUERIES, or erless loadtest",
        )
        sys.stdout.flush()
        if browser if browser is not None else desktop and sys.stdout.isatty():
            import webbrowser

            webbrowser.open(page.url)
        Event().wait()


def _planned(target: Target, config: Config, release: str) -> Mapping[str, Any] | None:
    """What the plan of `release` says, where the store of erless.yaml has it, and what is newer."""
    from erless.deploy.desired_release import load_desired
    from erless.errors import ErlessError
    from erless.plan.report.tables import node_line, verdict

    try:
        plan = load_desired(config.store, release).plan
        newer = _newer(target, config.store, release)
    except ErlessError:
        return None
    lines = (verdict(plan), *plan.notes, node_line(plan), newer)
    return {"lines": [line for line in lines if line]}


def _newer(target: Target, store: str, release: str) -> str:
    """What deploying the newest release of the store would change; empty where it answers now."""
    from erless.deploy.desired_release import load_desired

    newest = load_desired(store)
    if newest.release.digest == release:
        return ""
    changes = [
        f"{change.action} {change.what}"
        for change in target.diff(newest)
        if change.action != "keep"
    ]
    return (
        f"{store} has a newer release, {newest.release.digest[:12]}: `erless deploy` would "
        f"{', '.join(changes) or 'change nothing'}"
    )
