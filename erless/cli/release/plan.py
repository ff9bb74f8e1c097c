"""`erless plan`: from a model and its profile to a costed set of functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.option_groups import FilledBy, grouped
from erless.cli.release.plan_inputs import BY_TIER, SEVERAL, PlanInputs, SourceOptions, read_inputs
from erless.cli.run import Output, OutputOption, emit, note, verb
from erless.plan.request import PlanRequest

if TYPE_CHECKING:
    from rich.console import Console

    from erless.plan.nodes.prices import Prices
    from erless.plan.nodes.shared_pool import SharedPool
    from erless.plan.planner import Outcome
    from erless.plan.report.break_even import Point
    from erless.plan.source import PlanSource
    from erless.specs.plan import Plan

__all__ = ["plan"]

RequestOptions = Annotated[
    Mapping[str, Any],
    FilledBy(
        PlanRequest,
        words=(*BY_TIER, *SEVERAL),
        without=("allowed", "tier_precision", "tier_replicas"),
    ),
]


@dataclass(frozen=True)
class ReportOptions:
    """Reports beside the plan."""

    compare: Annotated[bool, typer.Option("--compare", help="All policies.")] = False
    explain: Annotated[str | None, typer.Option(help="Why this shard is cut there.")] = None
    plot: Annotated[Path | None, typer.Option(help="Write a page with the curves.")] = None
    nodes_from: Annotated[
        Path | None, typer.Option(help="Terraform folder: its types; write its pools' sizes.")
    ] = None
    beside: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Another plan.json on the same nodes; may repeat."),
    ] = None


@verb
@grouped
def plan(
    source: SourceOptions,
    requested: RequestOptions,
    report: ReportOptions,
    output: OutputOption = Output.TEXT,
) -> None:
    """Choose which rows live in which function, on how many replicas and nodes.

    Example: `erless plan --workload rm1 --traffic 8x --equal-containers --compare`
    """
    from erless.plan.nodes.prices import read_prices
    from erless.plan.nodes.shared_pool import pool_lines
    from erless.plan.nodes.terraform_pools import limit_prices, read_pools, size_pools, write_pools
    from erless.plan.planner import POLICIES, Planner
    from erless.plan.report import tables
    from erless.plan.report.break_even import lines
    from erless.plan.report.document import plan_document
    from erless.plan.report.plot import write_plot

    inputs = read_inputs(source, requested)
    model_source, request = inputs.source, inputs.request
    pools = read_pools(report.nodes_from) if report.nodes_from else {}
    prices = limit_prices(read_prices(inputs.prices), pools)
    planner = Planner(
        model_source.model, model_source.tables, request, prices, model_source.measured
    )
    outcome = planner.outcome(POLICIES if report.compare else ())
    document = plan_document(
        outcome, model_source.model_digest, model_source.profile_digest, model_source.notes
    )
    points = _scales(report, model_source, outcome, prices)
    reasons = tables.explain(document, report.explain) if report.explain else []
    sized = size_pools(document, prices, pools) if report.nodes_from else {}
    shared = _shared(report, inputs, document, prices)
    verdict = [
        *document.notes,
        *([tables.verdict(document)] if report.compare else []),
        *(lines(points) if points else []),
        *_levers(report, model_source, outcome, prices),
        *(f"pool {name}: {size}" for name, size in sized.items()),
        *(pool_lines(shared) if shared else []),
    ]
    if report.nodes_from:
        note(f"wrote {write_pools(report.nodes_from, sized)}")
    if inputs.out:
        document.save(inputs.out)
        note(f"wrote {inputs.out}")
    if report.plot:
        write_plot(report.plot, document, outcome.demand, points)
        note(f"wrote {report.plot}")
    shown = {
        **document.model_dump(mode="json"),
        "verdict": verdict,
        "explain": reasons,
        "pool": _pool(shared) if shared else None,
    }
    sentences = [*reasons, *verdict]
    emit(output, shown, lambda console: _draw(console, document, sentences, report.compare))


def _scales(
    report: ReportOptions, source: PlanSource, outcome: Outcome, prices: Prices
) -> list[Point]:
    """The same plan at other scales, where the report is to say from where on sharding pays."""
    from erless.plan.report.break_even import break_even

    if not (report.plot or (report.compare and not outcome.request.equal_containers)):
        return []
    return break_even(
        source.model,
        source.tables,
        outcome.request,
        outcome.demand.qps,
        prices,
        source.measured,
    )


def _levers(
    report: ReportOptions, source: PlanSource, outcome: Outcome, prices: Prices
) -> list[str]:
    """What would make this plan cheaper, where policies are compared in dollars."""
    from erless.plan.report.levers import lever_lines, levers

    joint = outcome.best.get("joint")
    if not report.compare or joint is None or outcome.request.aim != "dollars":
        return []
    tried = levers(
        source.model,
        source.tables,
        outcome.request,
        outcome.demand.qps,
        prices,
        source.measured,
    )
    return lever_lines(tried, joint.packing.usd_per_month)


def _shared(
    report: ReportOptions, inputs: PlanInputs, document: Plan, prices: Prices
) -> SharedPool | None:
    """This plan and those beside it on one pool of nodes.

    Raises:
        ArtifactError: a plan is missing or damaged.
        PlanError: the plans cannot share nodes.
    """
    from erless.plan.nodes.shared_pool import PoolMember, share_pool
    from erless.specs.plan import Plan

    if not report.beside:
        return None
    this = PoolMember(str(inputs.out or "this plan"), document, inputs.request.arch)
    others = [PoolMember.of(str(path), Plan.load(path)) for path in report.beside]
    return share_pool([this, *others], prices)


def _pool(shared: SharedPool) -> dict[str, Any]:
    """The shared pool as JSON."""
    from dataclasses import asdict

    return {
        "nodes": {kind.name: number for kind, number in shared.packing.nodes},
        "usd_per_month": shared.usd_per_month,
        "usd_apart": shared.usd_apart,
        "shares": [asdict(share) for share in shared.shares],
    }


def _draw(console: Console, document: Plan, sentences: list[str], compare: bool) -> None:
    from erless.plan.report import tables

    console.print(tables.shard_table(document))
    console.print(tables.node_line(document))
    if compare:
        console.print(tables.policy_table(document))
    for line in sentences:
        console.print(line)
    for key, value in document.assumptions.items():
        console.print(f"[dim]{key}: {value}[/dim]")
