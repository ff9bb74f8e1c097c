"""`erless drift`: how far live heat has moved from the deployed plan, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.option_groups import grouped
from erless.cli.release.live_inputs import LiveOptions, live_plan
from erless.cli.release.plan import RequestOptions
from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from rich.console import Console

    from erless.plan.live.drift import Drift
    from erless.plan.live.replan import Replan

__all__ = ["drift"]

DRIFTED = 3  # exit code


@verb
@grouped
def drift(
    source: LiveOptions,
    requested: RequestOptions,
    plan: Annotated[
        bool, typer.Option("--plan/--no-plan", help="Say what a new plan would save.")
    ] = True,
    output: OutputOption = Output.TEXT,
) -> None:
    """Compare what gateways see with what the deployed plan was cut for, in shares and dollars.

    Exit 3 where it has drifted: a shard's share of the gathers differs from the planned one by
    more than --tolerance (and than chance explains), or a frozen shard is no longer idle.

    Example: `erless drift`, `erless drift -o json --no-plan`
    """
    from erless.plan.live.replan import Tolerance

    with live_plan(source, requested) as live:
        for line in live.heat.warnings:
            note(f"warning: {line}")
        found = live.drift()
        better = live.replan(Tolerance()) if plan and live.release.folds is None else None
        digest = live.release.digest
    lines = [*found.lines(), *(_saving(found, better) if better else [])]
    document: dict[str, Any] = {
        "release": digest,
        **found.document(),
        "replan": better.taken.document() if better and better.changes else None,
        "words": lines,
    }
    then = "erless replan" if document["replan"] else "erless status"
    emit(output, document, lambda console: _draw(console, digest, found, lines), then=then)
    if found.drifted:
        raise SystemExit(DRIFTED)


def _saving(found: Drift, better: Replan) -> list[str]:
    """What `erless replan` would do."""
    taken = better.taken
    if not better.changes:
        return ["a new plan would save nothing"]
    line = (
        f"`erless replan` moves {taken.moved_bytes / 1e6:,.1f} MB of rows and brings it to "
        f"{taken.resident:.1%} in the gateway, {taken.candidate.layout.vcpu:,.2f} vCPU and "
        f"{taken.usd_per_month:,.2f} $ a month"
    )
    if found.usd_per_month is not None:
        saved = found.usd_per_month - taken.usd_per_month
        line += f": {saved:,.2f} $ less" if saved >= 0 else f": {-saved:,.2f} $ more"
    return [line]


def _draw(console: Console, digest: str, found: Drift, lines: Sequence[str]) -> None:
    from rich.table import Table

    table = Table(
        title=f"release {digest[:12]}: {found.queries:,} sampled queries of {found.seconds:,.0f} s"
    )
    for heading in ("shard", "tier", "planned", "seen", "load"):
        table.add_column(heading, justify="left" if heading in ("shard", "tier") else "right")
    for shard in found.shards:
        table.add_row(
            shard.name,
            shard.tier,
            f"{shard.planned_share:.2%}",
            f"{shard.seen_share:.2%}",
            f"{shard.load:.2f}×" if shard.planned_share else "",
            style="yellow" if shard.drifted else "",
        )
    console.print(table)
    console.print("drifted:" if found.drifted else "no drift:", style="bold")
    for line in lines:
        console.print(f"- {line}")
