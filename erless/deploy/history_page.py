"""The releases that a target keeps, as a page: when each came, what it takes, its generations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from erless.deploy.target import Deployment
from erless.pages.bars import Bar, bar_chart
from erless.pages.charts import size
from erless.pages.page import figure, page, save_page, tiles
from erless.specs.dollars import plan_usd
from erless.specs.generations import GenerationManifest
from erless.specs.plan import Plan

__all__ = ["DeployedRelease", "write_history"]

MOST_GENERATIONS = 8  # of a release, the newest


@dataclass(frozen=True)
class DeployedRelease:
    """A deployed release, its plan where the store has it, and generations, the newest first."""

    deployment: Deployment
    plan: Plan | None
    generations: Sequence[GenerationManifest]


def write_history(out: Path, target: str, releases: Sequence[DeployedRelease]) -> None:
    """Write the page to `out`; `releases` are newest first.

    Raises:
        StorageError: the disk refused.
    """
    generations = sum(len(release.generations) for release in releases)
    current = next((each.deployment for each in releases if each.deployment.current), None)
    parts = [
        tiles(
            [
                (str(len(releases)), "release(s) kept"),
                (str(generations), "generation(s) of changed rows on top of them"),
                (current.release[:12] if current else "none", "answers queries now"),
            ]
        ),
        "<section><h2>Newest first</h2>"
        f'<ol class="timeline">{"".join(map(_entry, releases))}</ol></section>',
        *_planned(releases),
    ]
    save_page(out, page(f"Releases on {target}", "what was deployed, and is kept", parts))


def _entry(release: DeployedRelease) -> str:
    """One release, and below it the generations that were published on it."""
    deployment, plan = release.deployment, release.plan
    facts = [deployment.model and f"model {deployment.model}"]
    if plan is not None:
        facts += [f"{len(plan.shards)} shard(s), {plan.qps:,.4g} queries/s planned for"]
        facts += [f"${plan_usd(plan):,.0f} a month"] if plan.nodes else []
    else:
        facts.append("its plan is not in the store")
    if deployment.note:
        facts.append(deployment.note)
    shown = release.generations[:MOST_GENERATIONS]
    items = "".join(f"<li>{escape(_generation(each))}</li>" for each in shown)
    more = len(release.generations) - len(shown)
    items += f"<li>and {more:,} before</li>" if more else ""
    kind, state = ("now", "answers queries") if deployment.current else ("kept", "kept")
    return (
        f'<li class="{kind}"><b>{escape(deployment.release[:12])}</b> '
        f'<span class="state">{state}</span><br><time>{escape(_moment(deployment.deployed_at))}'
        f'</time><p class="soft">{escape(" · ".join(filter(None, facts)))}</p>'
        + (f'<ul class="notes soft">{items}</ul>' if items else "")
        + "</li>"
    )


def _generation(generation: GenerationManifest) -> str:
    at = datetime.fromtimestamp(generation.made_at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    if generation.returns_to is not None:
        return f"{at}: generation {generation.number}, which is {generation.returns_to} once more"
    counts = (
        (generation.changed, "changed"),
        (generation.added, "added"),
        (generation.deleted, "deleted"),
    )
    parts = [f"{count:,} rows {what}" for count, what in counts if count]
    parts += ["new dense weights"] if generation.tower else []
    return f"{at}: generation {generation.number}, {', '.join(parts) or 'no row changed'}"


def _moment(text: str) -> str:
    """When it was deployed, to the minute; as it is where it is no ISO time."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _planned(releases: Sequence[DeployedRelease]) -> list[str]:
    """Memory and dollars of the releases side by side, where several plans are known."""
    known = [(each.deployment.release[:12], each.plan) for each in releases if each.plan]
    if len(known) < 2:
        return []
    memory = [
        Bar(name, (("memory", float(plan.result.memory_bytes), 0),))
        for name, plan in known
        if plan.result
    ]
    dollars = [Bar(name, (("dollars", plan_usd(plan), 2),)) for name, plan in known]
    figures = []
    if memory:
        figures.append(figure("Memory", "As planned.", bar_chart(memory, text=size)))
    if any(bar.total for bar in dollars):
        chart = bar_chart(dollars, text=lambda usd: f"${usd:,.0f}")
        figures.append(figure("Dollars a month", "As planned, whole nodes.", chart))
    return figures
