"""`erless alerts`: who touched what nobody should."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from erless.cli.deployment.target_options import TargetOptions, resolve_target
from erless.cli.option_groups import grouped
from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from rich.console import Console

    from erless.deploy.target import Target, Watched
    from erless.specs.alerts import Alert
    from erless.specs.config import Config
    from erless.specs.odds import ShardOdds

__all__ = ["alerts"]


@verb
@grouped
def alerts(
    lines: Annotated[int, typer.Option("--lines", min=0, help="The last so many.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Then what comes.")] = False,
    *,
    where: TargetOptions,
    output: OutputOption = Output.TEXT,
) -> None:
    """Print the alerts of decoys, canary tokens and alarms; with --follow as they come.

    With --follow -o json each alert is a line.

    Example: `erless alerts --follow`
    """
    from erless.deploy.target import Alerting
    from erless.errors import DeployError

    destination, config = resolve_target(where)
    if not isinstance(destination, Alerting):
        raise DeployError(f"target {destination.name} raises no alerts")
    told = destination.alerts(lines, follow, lambda: _watched(destination, config))
    if not follow:
        found = list(told)

        def draw(console: Console) -> None:
            for alert in found:
                console.print(alert_line(alert), markup=False)
            if not found:
                console.print("no alerts")

        document = [alert.model_dump(mode="json") for alert in found]
        answer = {"target": destination.name, "alerts": document}
        emit(output, answer, draw, then="erless alerts --follow" if not found else "erless logs")
        return
    with suppress(KeyboardInterrupt):  # how one ends it
        for alert in told:
            as_json = output is Output.JSON
            text = json.dumps(alert.model_dump(mode="json")) if as_json else alert_line(alert)
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


def _watched(destination: Target, config: Config) -> Watched:
    """Decoys and odds of what is deployed, as the store has them.

    Where the store cannot be read, decoys are known by what they log themselves.
    """
    from erless.deploy.desired_release import load_desired
    from erless.deploy.target import Watched
    from erless.errors import ErlessError
    from erless.specs.odds import release_odds

    decoys: set[str] = set()
    odds: dict[str, ShardOdds] = {}
    try:
        for kept in destination.deployments():
            desired = load_desired(config.store, kept.release, config.targets.knative.endpoint_url)
            decoys |= {decoy.shard.digest for decoy in desired.decoys}
            if kept.current:
                odds = release_odds(desired.release, desired.plan)
    except ErlessError as error:
        note(f"decoys are told by their own logs alone, after a cold start: {error}")
    return Watched(frozenset(decoys), odds)


def alert_line(alert: Alert) -> str:
    """An alert as a line of text."""
    who = alert.source or "somebody"
    who += f" ({alert.process})" if alert.process else ""
    counted = alert.kind == "scraping"  # of all callers together: nobody in particular
    claims = ", ".join(f"{name}: {value}" for name, value in alert.forwarded.items())
    parts = (
        f"{alert.time} {alert.kind} {alert.function}",
        "" if counted else f"{who} {alert.asked or 'connected'}",
        f"{alert.size_bytes:,} bytes" if alert.size_bytes else "",
        f"{alert.count:,} times" if alert.count > 1 else "",
        f"it says {claims}" if claims else "",
        alert.detail,
    )
    return "; ".join(filter(None, parts))
