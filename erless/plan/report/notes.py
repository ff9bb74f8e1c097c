"""Notes beside a plan's numbers: the demands that shaped it, and what they cost."""

from __future__ import annotations

import math

from erless.plan.costs.layout import Role
from erless.plan.planner import Outcome
from erless.plan.selection import Candidate

__all__ = ["outcome_notes"]

SELDOM = 0.01  # a probability below which nobody plans with it


def outcome_notes(outcome: Outcome) -> list[str]:
    """One sentence per fact; empty where the plan is simply the best by its objective."""
    notes = [*_dense(outcome)]
    if outcome.request.policy == "joint":
        notes += [*_demanded(outcome), *_frozen(outcome), *_disks(outcome)]
    return notes


def _dense(outcome: Outcome) -> list[str]:
    layout = outcome.best[outcome.request.policy].layout
    if layout.dense is None:
        return []
    where = "a GPU" if layout.dense.gpus else "CPUs"
    if outcome.request.dense in ("function", "gpu"):
        return [f"the dense tower is a function of its own on {where}, as demanded"]
    tower = outcome.tower.seconds
    apart = layout.demand.dense
    source = apart.source if apart else ""
    cpu = outcome.demand.qps * tower / outcome.terms.utilisation
    return [
        f"the dense tower is a function of its own on {where}: in the gateway it would take "
        f"{cpu:,.1f} vCPU and {tower * 1e3:.2f} ms of each query; GPU speed is {source}"
    ]


def _demanded(outcome: Outcome) -> list[str]:
    free = outcome.free
    if free is None:
        return []
    demanded = outcome.best["joint"]
    return [
        f"the shape was demanded: {_cost(demanded)}. Left to choose by {outcome.request.aim}, "
        f"erless takes {_cost(free)}"
    ]


def _disks(outcome: Outcome) -> list[str]:
    layout = outcome.best["joint"].layout
    on_disks = [(shard.row_bytes, shard.disk) for shard in layout.shards if shard.disk]
    if not on_disks:
        why = "disks: no rows lie there: memory costs less, or the SLA leaves no time for reads"
        return [why] if outcome.request.disk else []
    size = sum(row_bytes for row_bytes, _ in on_disks)
    cache = sum(use.cache_bytes for _, use in on_disks)
    reads = sum(use.reads for _, use in on_disks)
    late = max(use.latency_s(0.05 / len(layout.functions)) for _, use in on_disks)
    return [
        f"disks: {size / 1e9:,.2f} GB of rows in {len(on_disks)} functions, under caches of "
        f"{cache / 1e9:,.2f} GB; {reads:,.0f} reads per query, {outcome.demand.qps * reads:,.0f} "
        f"a second, which take up to {late * 1e3:.1f} ms of the p95"
    ]


def _cost(candidate: Candidate) -> str:
    layout = candidate.layout
    shards = len(layout.shards)
    functions = f"{shards} remote function{'s' * (shards != 1)}" if shards else "no remote function"
    dollars = candidate.packing.usd_per_month
    return f"{functions}, {layout.memory / 1e9:,.2f} GB, ${dollars:,.0f} a month"


def _frozen(outcome: Outcome) -> list[str]:
    request, layout = outcome.request, outcome.best["joint"].layout
    if not request.freezes:
        return []
    frozen = next((shard for shard in layout.shards if shard.role is Role.FROZEN), None)
    window = f"{request.frozen_window_s:g} s"
    if frozen is None:
        why = (
            "no rows lie outside the gateway" if not layout.shards else f"no rows idle for {window}"
        )
        return [
            f"nothing is frozen: at {outcome.demand.qps:,.0f} queries/s {why}; --shards or "
            "--frozen-share freezes the coldest rows all the same"
        ]
    touched = -math.expm1(-frozen.gathers)
    idle = math.exp(-min(700.0, outcome.demand.qps * frozen.gathers * request.frozen_window_s))
    sleeps = _asleep(idle, window)
    return [f"frozen: {frozen.rows:,} rows, touched by {touched:.2%} of queries; {sleeps}"]


def _asleep(idle: float, window: str) -> str:
    """How much a function sleeps that is idle for `window` with probability `idle`."""
    if idle < SELDOM:
        return f"awake while traffic lasts, asleep {window} after it"
    if idle > 1 - SELDOM:
        return "asleep also while traffic lasts"
    return (
        f"asleep after {idle:.0%} of its queries while traffic lasts, as {window} pass without one"
    )
