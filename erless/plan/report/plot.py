"""`--plot`: what a plan comes to, policies side by side, cuts, functions, cost over traffic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from erless.pages.access import HotnessCurve, access_chart
from erless.pages.bars import Bar, bar_chart
from erless.pages.charts import Axis, ChartLine, line_chart, number, size
from erless.pages.page import figure, notes, page, save_page, sentences, tiles
from erless.plan.costs.layout import Demand
from erless.plan.report.break_even import Point
from erless.specs.plan import DensePlan, GatewayPlan, Plan, PolicyResult, ShardPlan, Tier

__all__ = ["plot_page", "write_plot"]

MOST_MARKS, MOST_TOLD = 24, 8
MEMORY, REPLICAS = 0, 1  # colours of the bars
POLICY_COLOURS = {"model-wise": 7, "table-wise": 4, "elasticrec": 1, "joint": 0}  # on every figure


def write_plot(
    path: Path, plan: Plan, demand: Demand, points: Sequence[Point], said: Sequence[str] = ()
) -> None:
    """Write one self-contained page, with the sentences `said` on top: it needs no network.

    Raises:
        StorageError: the disk refused.
    """
    save_page(path, plot_page(plan, demand, points, said))


def plot_page(plan: Plan, demand: Demand, points: Sequence[Point], said: Sequence[str] = ()) -> str:
    """The page as HTML."""
    figures = [
        tiles(_tiles(plan)),
        sentences(said),
        *_policies(plan),
        figure(
            "Where the rows are cut",
            "Share of a table's accesses that its hottest rows take. Dotted: the rank at which a "
            "function begins.",
            _access_chart(plan, demand),
        ),
        figure(
            "Memory",
            "Of all replicas of each function.",
            bar_chart(_bars(plan, MEMORY), text=size),
        ),
        figure(
            "Replicas",
            "As planned, before anything scales.",
            bar_chart(_bars(plan, REPLICAS), text=number),
        ),
    ]
    if points:
        figures.append(
            figure(
                "Dollars a month over traffic",
                "Whole nodes at the shipped or given prices, sharding left free to choose. Dashed: "
                "this plan.",
                _cost_chart(plan, points),
            )
        )
    rate = f"{plan.qps:,.4g} queries/s of {plan.batch} samples"
    return page(f"erless plan: {plan.policy}", rate, figures)


def _tiles(plan: Plan) -> list[tuple[str, str]]:
    """What the plan comes to."""
    result = plan.result
    if result is None:
        return []
    ratio = result.memory_reduction
    word = "less" if ratio >= 1 else "more"
    return [
        (f"${result.usd_per_month:,.0f}", f"a month on {result.nodes} node(s)"),
        (size(result.memory_bytes), f"memory in {result.containers} container(s)"),
        (f"{max(ratio, 1 / ratio):.2f}×", f"{word} memory than model-wise"),
        (f"{result.predicted_p95_ms:.3g} ms", "predicted p95"),
        (f"{result.functions}", f"function(s), {result.fan_out} asked by a query"),
    ]


def _policies(plan: Plan) -> list[str]:
    """Dollars and memory of all policies that were compared."""
    if len(plan.policies) < 2:
        return []

    def bars(of: Callable[[PolicyResult], float]) -> list[Bar]:
        return [
            Bar(each.policy, ((each.policy, of(each), POLICY_COLOURS[each.policy]),))
            for each in plan.policies
        ]

    dollars = bar_chart(
        bars(lambda each: each.usd_per_month), text=lambda usd: f"${usd:,.0f}", legend=False
    )
    memory = bar_chart(bars(lambda each: float(each.memory_bytes)), text=size, legend=False)
    return [
        figure("Policies: dollars a month", "Each at its best, on whole nodes.", dollars),
        figure("Policies: memory", "Of all containers.", memory),
    ]


def _access_chart(plan: Plan, demand: Demand) -> str:
    """The tables' curves with the cuts in them, and the cuts in words."""
    begins = [
        (float(part.start), f"{shard.name} begins at rank {part.start:,} of {part.table}")
        for shard in plan.shards
        for part in shard.slices
        if part.start
    ]
    first: dict[str, tuple[float, str]] = {}  # of each function and rank, one is told
    for rank, text in sorted(begins):
        first.setdefault(text.split(" of ")[0], (rank, text))
    marks = list(first.values())[:MOST_MARKS]
    curves = [
        HotnessCurve(
            table.spec.name, table.curve.ranks[1:].astype(np.float64), table.curve.share[1:]
        )
        for table in demand.tables
    ]
    return access_chart(curves, marks) + notes([text for _, text in marks[:MOST_TOLD]])


def _bars(plan: Plan, colour: int) -> list[Bar]:
    """Memory, or replicas, of each function."""
    functions: list[tuple[str, ShardPlan | GatewayPlan | DensePlan]] = [
        *((shard.name, shard) for shard in plan.shards if shard.tier is not Tier.RESIDENT),
        ("gateway", plan.gateway),
        *([("dense", plan.dense)] if plan.dense else []),
    ]
    return [
        Bar(
            name,
            (("memory", float(function.replicas * function.memory_bytes), colour),)
            if colour == MEMORY
            else (("replicas", float(function.replicas), colour),),
        )
        for name, function in functions
    ]


def _cost_chart(plan: Plan, points: Sequence[Point]) -> str:
    traffic = [point for point in points if point.kind == "traffic"]
    rates = np.array([point.factor * plan.qps for point in traffic], np.float64)
    costs = {
        "joint": [point.joint for point in traffic],
        "model-wise": [point.model_wise for point in traffic],  # dashed, above where they are one
    }
    lines = [
        ChartLine(name, rates, np.array(dollars, np.float64), POLICY_COLOURS[name], dash)
        for (name, dollars), dash in zip(costs.items(), (False, True), strict=True)
    ]
    planned = plan.result
    return line_chart(
        lines,
        Axis("traffic (queries/s)", log=True),
        Axis("cost ($/month)", text=lambda dollars: f"${dollars:,.0f}", log=True),
        limit=(planned.usd_per_month, "this plan") if planned else None,
        marks=[(plan.qps, "the planned traffic")],
    )
