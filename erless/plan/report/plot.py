"""`--plot`: access CDF with the cuts, memory and replicas per shard, cost over traffic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from erless.plan.costs.layout import Demand
from erless.plan.report.break_even import Point
from erless.specs.plan import Plan
from erless.storage.atomic import os_errors, staged_file

__all__ = ["write_plot"]

MOST_CURVES = 12


def write_plot(path: Path, plan: Plan, demand: Demand, points: Sequence[Point]) -> None:
    """Write one self-contained page: it needs no network.

    Raises:
        StorageError: the disk refused.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=2,
        cols=2,
        vertical_spacing=0.16,
        subplot_titles=(
            "Access CDF and cuts",
            "Memory per shard (all replicas)",
            "Replicas per shard",
            "Dollars a month over traffic",
        ),
    )
    known: dict[bytes, str] = {}
    for table in demand.tables:
        known.setdefault(table.curve.share.tobytes() + bytes([table.rows % 251]), table.spec.name)
    shown = set(list(known.values())[:MOST_CURVES])
    for table in demand.tables:
        if table.spec.name in shown:
            ranks = table.curve.ranks[1:].tolist()
            group = {"name": table.spec.name, "legendgroup": table.spec.name}
            line = go.Scatter(x=ranks, y=table.curve.share[1:].tolist(), mode="lines", **group)
            figure.add_trace(line, row=1, col=1)
            cuts = sorted(
                {
                    part.start
                    for shard in plan.shards
                    for part in shard.slices
                    if part.table == table.spec.name
                }
                - {0}
            )
            marks = go.Scatter(
                x=cuts,
                y=[table.curve.at(cut) for cut in cuts],
                mode="markers",
                marker={"symbol": "line-ns-open", "size": 16, "line_width": 2},
                showlegend=False,
                hovertemplate="cut at rank %{x:,}",
                **group,
            )
            figure.add_trace(marks, row=1, col=1)
    names = [each.name for each in plan.shards if each.tier != "resident"] + ["gateway"]
    sized = [each for each in plan.shards if each.tier != "resident"]
    memory = [each.replicas * each.memory_bytes / 1e9 for each in sized]
    memory.append(plan.gateway.replicas * plan.gateway.memory_bytes / 1e9)
    counts = [*(each.replicas for each in sized), plan.gateway.replicas]
    if plan.dense:
        names.append("dense")
        memory.append(plan.dense.replicas * plan.dense.memory_bytes / 1e9)
        counts.append(plan.dense.replicas)
    figure.add_trace(go.Bar(x=names, y=memory, showlegend=False), row=1, col=2)
    figure.add_trace(go.Bar(x=names, y=counts, showlegend=False), row=2, col=1)
    traffic = [each for each in points if each.kind == "traffic"]
    for label, values in (
        ("model-wise", [each.model_wise for each in traffic]),
        ("joint", [each.joint for each in traffic]),
    ):
        scaled = [each.factor * plan.qps for each in traffic]
        figure.add_trace(go.Scatter(x=scaled, y=values, name=label), row=2, col=2)
    figure.update_xaxes(type="log", title_text="rank; marks are cuts", row=1, col=1)
    figure.update_xaxes(type="log", title_text="queries/s", row=2, col=2)
    figure.update_yaxes(title_text="share of accesses", row=1, col=1)
    figure.update_yaxes(title_text="GB", row=1, col=2)
    figure.update_yaxes(title_text="replicas", row=2, col=1)
    figure.update_yaxes(type="log", title_text="$/month", row=2, col=2)
    figure.update_layout(title=f"erless plan: {plan.policy}", template="plotly_white", height=900)
    page = figure.to_html(include_plotlyjs=True, full_html=True, div_id="erless-plan")
    with staged_file(path) as stage, os_errors(stage):
        stage.write_text(page, encoding="utf-8")
