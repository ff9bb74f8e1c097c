"""`erless plan`: from a model and its profile to a costed set of functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.option_groups import FilledBy, grouped
from erless.cli.release.plan_inputs import BY_TIER, SEVERAL, PlanInputs, SourceOptions, read_inputs
from erless.cli.run import Output, OutputOption, emit, note, verb
from erless.plan.request import PlanRequest

if TYPE_CHECKING:
    from rich.console import Console

    from erless.api.decoys import PlacedDecoys
    from erless.plan.nodes.prices import Prices
    from erless.plan.nodes.shared_pool import SharedPool
    from erless.plan.planner import Outcome
    from erless.plan.report.break_even import Point
    from erless.plan.report.variations import AskedPlan
    from erless.plan.source import PlanSource
    from erless.specs.plan import Plan

__all__ = ["plan"]

ALL = "all"  # of --explain

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
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="SHARD|all", help="Why this shard is cut there; all: every number, assumptions."
        ),
    ] = None
    plot: Annotated[Path | None, typer.Option(help="Write a page with the curves.")] = None
    nodes_from: Annotated[
        Path | None, typer.Option(help="Terraform folder: its types; write its pools' sizes.")
    ] = None
    beside: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Another plan.json on the same nodes; may repeat."),
    ] = None
    decoys: Annotated[
        int | None,
        typer.Option(min=0, max=32, help="Where so many decoys stand, and who meets one first."),
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
    from erless.cli.bars import bars
    from erless.plan.nodes.prices import read_prices
    from erless.plan.nodes.shared_pool import pool_lines
    from erless.plan.nodes.terraform_pools import limit_prices, read_pools, size_pools, write_pools
    from erless.plan.planner import POLICIES, Planner
    from erless.plan.report import tables
    from erless.plan.report.break_even import lines
    from erless.plan.report.document import plan_document
    from erless.plan.report.plot import write_plot

    inputs = read_inputs(source, requested)
    if source.log:  # the question is then whether it would pay
        report = replace(report, compare=True)
    model_source, request = inputs.source, inputs.request
    pools = read_pools(report.nodes_from) if report.nodes_from else {}
    prices = limit_prices(read_prices(inputs.prices), pools)
    planner = Planner(
        model_source.model, model_source.tables, request, prices, model_source.measured
    )
    digests = model_source.model_digest, model_source.profile_digest
    with bars() as progress, progress.step("planning", None, "steps"):
        outcome = planner.outcome(POLICIES if report.compare else ())
        document = plan_document(outcome, *digests, model_source.notes)
        points = _scales(report, model_source, outcome, prices)
        helping = _levers(report, model_source, outcome, prices)
    lost = _lost(inputs, document)
    if lost:
        document = plan_document(outcome, *digests, [*model_source.notes, *lost])
    named = report.explain if report.explain != ALL else None
    reasons = tables.explain(document, named) if named else []
    sized = size_pools(document, prices, pools) if report.nodes_from else {}
    shared = _shared(report, inputs, document, prices)
    placed = _placed(report, document)
    verdict = [
        *([tables.verdict(document)] if report.compare else []),
        *document.notes,
        *(lines(points) if points else []),
        *helping,
        *(f"pool {name}: {size}" for name, size in sized.items()),
        *(pool_lines(shared) if shared else []),
        *([placed.sentence] if placed else []),
    ]
    if report.nodes_from:
        note(f"wrote {write_pools(report.nodes_from, sized)}")
    if inputs.out:
        document.save(inputs.out)
        note(f"wrote {inputs.out}")
    if report.plot:
        write_plot(report.plot, document, outcome.demand, points, verdict)
        note(f"wrote {report.plot}")
    shown = {
        **document.model_dump(mode="json"),
        "verdict": verdict,
        "explain": reasons,
        "pool": _pool(shared) if shared else None,
        "decoys": placed.document if placed else None,
    }
    sentences = [*reasons, *verdict]
    emit(
        output,
        shown,
        lambda console: _draw(console, document, sentences, report),
        then=_next(source, inputs),
    )


def _placed(report: ReportOptions, document: Plan) -> PlacedDecoys | None:
    """Where decoys stand beside the plan's shards, where some are asked for."""
    from erless.cli.options import project

    config = project()
    count = config.decoys.count if report.decoys is None else report.decoys
    if not count:
        return None
    from erless.api.decoys import place_decoys

    return place_decoys(config, config.targets.default, document, count)


def _next(source: SourceOptions, inputs: PlanInputs) -> str:
    """What usually comes behind this plan."""
    if source.log:
        return "erless import inspect CHECKPOINT, or in Python: erless.export(model, inputs, out)"
    if source.workload:
        return "erless import inspect CHECKPOINT, and erless plan --model BUNDLE --qps 500"
    named = "".join(
        f" --{name} {path}"
        for name, path in (("model", source.model), ("profile", source.profile))
        if path
    )
    if inputs.out is None:
        return f"erless plan{named} --out plan.json"
    return f"erless pack{named} --plan {inputs.out}"


def _lost(inputs: PlanInputs, document: Plan) -> list[str]:
    """What the plan's own precisions lose on the queries they were chosen by, tier by tier.

    Nothing where all rows are fp32, or the profile is another bundle's, which ranks other rows.
    """
    import tempfile

    from erless.specs.plan import Precision

    losses, stale = inputs.losses, inputs.request.stale_profile
    below = any(
        shard.precision_of(part.table) is not Precision.FP32
        for shard in document.shards
        for part in shard.slices
    )
    if losses is None or stale or not below:
        return []
    from erless.cli.bars import bars
    from erless.pack.evaluate import AS_PLANNED, planned_losses
    from erless.pack.inputs import PackInputs

    with tempfile.TemporaryDirectory(prefix="erless-") as folder, bars() as progress:
        path = Path(folder) / "plan.json"
        document.save(path)
        found = planned_losses(
            PackInputs(losses.bundle, losses.profile, path), losses.queries, progress
        )
    budget = losses.precisions.budget
    over = "" if found[AS_PLANNED].within(budget) else f": over the budget ({budget}); try --exact"
    tiers = [f"{name} rows alone: {loss}" for name, loss in found.items() if name != AS_PLANNED]
    return [f"{AS_PLANNED}: {found[AS_PLANNED]}{over}", *tiers]


def _scales(
    report: ReportOptions, source: PlanSource, outcome: Outcome, prices: Prices
) -> list[Point]:
    """The same plan at other scales, where the report is to say from where on sharding pays."""
    from erless.plan.report.break_even import break_even

    if not (report.plot or (report.compare and not outcome.request.equal_containers)):
        return []
    return break_even(_asked(source, outcome, prices), outcome)


def _asked(source: PlanSource, outcome: Outcome, prices: Prices) -> AskedPlan:
    from erless.plan.report.variations import AskedPlan

    return AskedPlan(
        source.model, source.tables, outcome.request, outcome.demand.qps, prices, source.measured
    )


def _levers(
    report: ReportOptions, source: PlanSource, outcome: Outcome, prices: Prices
) -> list[str]:
    """What would make this plan cheaper, where policies are compared in dollars."""
    from erless.plan.report.levers import lever_lines, levers

    joint = outcome.best.get("joint")
    if not report.compare or joint is None or outcome.request.aim != "dollars":
        return []
    tried = levers(_asked(source, outcome, prices))
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


def _draw(console: Console, document: Plan, sentences: list[str], report: ReportOptions) -> None:
    """What it comes to, then the tables; with `--explain all` every number and assumption."""
    from erless.plan.report import tables

    every = report.explain == ALL
    for line in (*sentences, tables.node_line(document)):
        console.print(f"- {line}")
    console.print(tables.shard_table(document, every=every))
    if report.compare:
        console.print(tables.policy_table(document, every=every))
    for key, value in document.assumptions.items() if every else ():
        console.print(f"[dim]{key}: {value}[/dim]")
    if not every:
        console.print("[dim]all numbers, and what they rest on: --explain all[/dim]")
