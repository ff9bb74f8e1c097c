"""What a deploy would change, as a page: objects, and the plan that serves beside the new one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from erless.deploy.target import Change, Desired
from erless.pages.bars import Bar, bar_chart
from erless.pages.charts import size
from erless.pages.page import figure, page, save_page, sentences, table, tiles
from erless.specs.dollars import plan_usd
from erless.specs.plan import Plan, Tier

__all__ = ["write_diff"]

COLOURS = 8
ACTIONS = ("create", "update", "remove", "keep")


@dataclass(frozen=True)
class _Planned:
    """One function of a plan, as both are compared by."""

    tier: str
    replicas: int
    memory_bytes: float
    usd_per_month: float


def write_diff(
    out: Path, target: str, served: Plan | None, desired: Desired, changes: Sequence[Change]
) -> None:
    """Write the page to `out`.

    Args:
        out: the page; it needs nothing but a browser.
        target: its name.
        served: the plan of the release that serves; None where none does, or it is not kept.
        desired: what shall run.
        changes: what `deploy` would do.

    Raises:
        StorageError: the disk refused.
    """
    then = _functions(desired.plan)
    now = _functions(served) if served else {}
    count = {action: sum(change.action == action for change in changes) for action in ACTIONS}
    said = [f"{number} to {action}" for action, number in count.items() if number]
    parts = [
        tiles(_tiles(served, desired.plan)),
        sentences([", ".join(said)] if said else ["nothing would change"]),
        figure(
            "Changes",
            "What the deploy would do, in its order.",
            table(
                ["what", "change", "detail"],
                [[change.what, change.action, change.detail] for change in changes],
                "changes",
            ),
        ),
        _bars("Memory", now, then, lambda each: each.memory_bytes, size),
        _bars("Dollars a month", now, then, lambda each: each.usd_per_month, _dollars),
        figure("Functions", "As planned: now → then.", _side_by_side(now, then)),
    ]
    model, digest = desired.release.model.name, desired.release.digest[:12]
    save_page(out, page(f"Deploy {digest} to {target}", f"model {model}", parts))


def _functions(plan: Plan) -> dict[str, _Planned]:
    """The plan's functions by name, all of their replicas together."""
    gateway = plan.gateway
    found = {
        "gateway": _Planned(
            "gateway",
            gateway.replicas,
            gateway.replicas * gateway.memory_bytes,
            gateway.usd_per_month,
        )
    }
    for shard in plan.shards:
        if shard.tier is not Tier.RESIDENT:
            memory = shard.replicas * shard.memory_bytes
            found[shard.name] = _Planned(
                shard.tier.value, shard.replicas, memory, shard.usd_per_month
            )
    if plan.dense is not None:
        memory = plan.dense.replicas * plan.dense.memory_bytes
        found["dense"] = _Planned("dense", plan.dense.replicas, memory, plan.dense.usd_per_month)
    return found


def _tiles(served: Plan | None, plan: Plan) -> list[tuple[str, str]]:
    def both(of: Callable[[Plan], str]) -> str:
        if served is None or of(served) == of(plan):
            return of(plan)
        return f"{of(served)} → {of(plan)}"

    def memory(each: Plan) -> str:
        return size(sum(function.memory_bytes for function in _functions(each).values()))

    return [
        (both(lambda each: _dollars(plan_usd(each))), "a month, as planned"),
        (both(memory), "memory, all replicas"),
        (both(lambda each: str(len(_functions(each)))), "functions"),
        (both(lambda each: f"{each.qps:,.4g}"), "queries/s planned for"),
    ]


def _bars(
    title: str,
    now: dict[str, _Planned],
    then: dict[str, _Planned],
    of: Callable[[_Planned], float],
    text: Callable[[float], str],
) -> str:
    """Both plans as a bar each, a part for every function; one colour a function."""
    names = list(dict.fromkeys([*then, *now]))
    colours = {name: min(index, COLOURS - 1) for index, name in enumerate(names)}
    bars = [
        Bar(label, tuple((name, of(each), colours[name]) for name, each in plan.items()))
        for label, plan in (("now", now), ("then", then))
        if plan
    ]
    if not any(bar.total for bar in bars):
        return ""
    return figure(title, "As planned, all replicas.", bar_chart(bars, text=text))


def _side_by_side(now: dict[str, _Planned], then: dict[str, _Planned]) -> str:
    header = ["function", "tier", "replicas", "memory", "$/month"]
    rows = []
    for name in dict.fromkeys([*then, *now]):
        old, new = now.get(name), then.get(name)
        rows.append(
            [
                name,
                _change(old, new, lambda each: each.tier),
                _change(old, new, lambda each: str(each.replicas)),
                _change(old, new, lambda each: size(each.memory_bytes)),
                _change(old, new, lambda each: _dollars(each.usd_per_month)),
            ]
        )
    return table(header, rows, "functions")


def _change(old: _Planned | None, new: _Planned | None, of: Callable[[_Planned], str]) -> str:
    """What both plans say, once where it is the same.

    >>> one, two = (_Planned("hot", count, 0, 0) for count in (1, 2))
    >>> _change(one, two, lambda planned: str(planned.replicas))
    '1 → 2'
    """
    first, second = ("–" if each is None else of(each) for each in (old, new))
    return first if first == second else f"{first} → {second}"


def _dollars(value: float) -> str:
    return f"${value:,.0f}"
