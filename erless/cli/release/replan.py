"""`erless replan`: a plan for the heat of now that moves few rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.deployment.target_options import PlaceOptions
from erless.cli.option_groups import grouped
from erless.cli.release.live_inputs import LiveOptions, LivePlan, live_plan
from erless.cli.release.plan import RequestOptions
from erless.cli.release.replan_auto import AutoOptions, watch
from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from rich.console import Console

    from erless.plan.live.replan import Replan, Tolerance

__all__ = ["replan"]

OUT = Path("replan")


@dataclass(frozen=True)
class ReplanOptions:
    """What may be given up for rows that stay where they are, and where the plan goes."""

    out: Annotated[
        Path, typer.Option("--out", help="Folder of plan.json and the profile to pack it with.")
    ] = OUT
    dollars: Annotated[
        float, typer.Option(min=0, help="Dearer than the cheapest plan by at most this share.")
    ] = 0.02
    resident: Annotated[
        float, typer.Option(min=0, max=1, help="Less of all gathers in the gateway, at most.")
    ] = 0.01
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would move and what it saves; write none.")
    ] = False

    @property
    def allowed(self) -> Tolerance:
        """What may be given up."""
        from erless.plan.live.replan import Tolerance

        return Tolerance(self.dollars, self.resident)


@verb
@grouped
def replan(
    source: LiveOptions,
    options: ReplanOptions,
    requested: RequestOptions,
    auto: AutoOptions,
    where: PlaceOptions,
    output: OutputOption = Output.TEXT,
) -> None:
    """Plan the deployed release anew for what gateways see, and move as few rows as that allows.

    Shards that are kept keep their digests, files and processes. Pack and deploy it as any plan:
    `erless pack --plan replan/plan.json --profile replan/profile`, `erless deploy`.

    With --auto it looks every minute until Ctrl-C, and where drift has lasted for --after packs and
    deploys by itself: at most every --at-most-every, and within --gb-a-day.

    Example: `erless replan --dry-run`, `erless replan --auto`
    """
    from erless.errors import OptionError

    if auto.auto and options.dry_run:
        raise OptionError("--auto changes what is deployed: leave out --dry-run")
    if auto.auto:
        note("looking at the drift: Ctrl-C ends")
        for news in watch(source, auto, where, requested, lambda live: _written(live, options)):
            sentence = _sentence(news)
            emit(output, news, partial(_say, sentence), then="")
        return
    written = False
    with live_plan(source, requested) as live:
        found = live.replan(options.allowed)
        if found.changes and not options.dry_run:
            _write(live, found, options.out)
            written = True
            note(f"wrote {options.out / 'plan.json'} and {options.out / 'profile'}")
        digest = live.release.digest
    document: dict[str, Any] = {
        "release": digest,
        "changes": found.changes,
        "before": found.before.document() if found.before else None,
        "taken": found.taken.document(),
        "choices": [choice.document() for choice in found.choices],
        "plan": str(options.out / "plan.json") if written else None,
    }
    then = "the same without --dry-run" if found.changes else "erless status"
    if written:
        then = f"erless pack --plan {options.out / 'plan.json'} --profile {options.out / 'profile'}"
    emit(output, document, lambda console: _draw(console, found, digest), then=then)


def _write(live: LivePlan, found: Replan, out: Path) -> None:
    from erless.plan.live.replan import write_replan

    write_replan(found, live.release, (live.profile, live.folder), live.row_heat(), out)


def _written(live: LivePlan, options: ReplanOptions) -> tuple[int, Path] | None:
    """Plan anew and write it; None where nothing is to be gained."""
    found = live.replan(options.allowed)
    if not found.changes:
        return None
    _write(live, found, options.out)
    return found.taken.moved_bytes, options.out


def _say(sentence: str, console: Console) -> None:
    console.print(sentence)


def _sentence(news: dict[str, Any]) -> str:
    release = f"release {news['release'][:12]}: " if "release" in news else ""
    moved = f", {news['moved_bytes'] / 1e6:,.1f} MB moved" if "moved_bytes" in news else ""
    reason = f": {news['reason']}" if "reason" in news else ""
    return f"{release}{news['decision']}{moved}{reason}"


def _draw(console: Console, found: Replan, digest: str) -> None:
    from rich.table import Table

    table = Table(title=f"release {digest[:12]} under the heat of now")
    for heading in ("", "moves MB", "in the gateway", "vCPU", "$ a month"):
        table.add_column(heading, justify="right" if heading else "left")
    for choice in found.choices:
        entry = choice.document()
        table.add_row(
            entry["what"],
            f"{choice.moved_bytes / 1e6:,.1f}",
            f"{choice.resident:.1%}",
            f"{entry['vcpu']:,.2f}",
            f"{choice.usd_per_month:,.2f}",
            style="bold" if choice is found.taken else "",
        )
    console.print(table)
    if not found.changes:
        console.print("the deployed plan is as good: nothing to change")
