"""`erless plan`: from a model and its profile to a costed set of functions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["plan"]


@verb
def plan(
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model bundle [default: erless.yaml's].")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option("--profile", "-p", help="Profile of its access log [erless.yaml's]."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the plan [plan.json if erless.yaml says the rest].")
    ] = None,
    workload: Annotated[str | None, typer.Option(help="rm1, rm2, rm3: no weights needed.")] = None,
    locality: Annotated[float | None, typer.Option(help="P of the workload [0.9].")] = None,
    traffic: Annotated[
        str | None, typer.Option(help="8x: eight model-wise replicas' worth [8x].")
    ] = None,
    qps: Annotated[float | None, typer.Option(help="Queries/s, instead of --traffic.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples per query [32].")] = None,
    policy: Annotated[
        str | None, typer.Option(help="joint, elasticrec, table-wise or model-wise [joint].")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="memory or dollars (memory with --equal-containers).")
    ] = None,
    equal_containers: Annotated[
        bool, typer.Option("--equal-containers", help="The paper's terms: 1 vCPU each.")
    ] = False,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="int8, or TIER=int8; repeat it to let the plan choose [fp32]."),
    ] = None,
    sla_p95_ms: Annotated[float | None, typer.Option(help="p95 allowed.")] = None,
    shards: Annotated[
        int | None, typer.Option(min=1, help="Remote functions; per table for elasticrec.")
    ] = None,
    resident_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of the gathers, inside the gateway.")
    ] = None,
    max_resident_bytes: Annotated[
        float | None, typer.Option(min=0, help="Most bytes of rows inside one gateway.")
    ] = None,
    frozen: Annotated[bool, typer.Option("--frozen", help="Let idle rows scale to zero.")] = False,
    frozen_share: Annotated[
        float | None, typer.Option(help="Freeze so many gathers though they are not idle.")
    ] = None,
    dense: Annotated[
        str | None, typer.Option(help="The tower: auto, gateway, function or gpu [auto].")
    ] = None,
    max_fan_out: Annotated[int | None, typer.Option(help="Remote calls per query.")] = None,
    max_shard_bytes: Annotated[float | None, typer.Option(help="Of one replica.")] = None,
    min_replicas: Annotated[
        list[str] | None, typer.Option(help="2, or TIER=2; repeatable [1; cold, frozen 0].")
    ] = None,
    max_vcpu: Annotated[float | None, typer.Option(help="Of one container.")] = None,
    tower_ms: Annotated[float | None, typer.Option(help="Tower CPU per query.")] = None,
    stale_profile: Annotated[
        bool, typer.Option("--stale-profile", help="Accept another bundle's profile.")
    ] = False,
    compare: Annotated[bool, typer.Option("--compare", help="All policies.")] = False,
    explain: Annotated[str | None, typer.Option(help="Why this shard is cut there.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a page with the curves.")] = None,
    prices: Annotated[Path | None, typer.Option(help="Your own instance types (CSV).")] = None,
    nodes_from: Annotated[
        Path | None, typer.Option(help="Terraform folder: its types; write its pools' sizes.")
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Choose which rows live in which function, on how many replicas and nodes.

    Example: `erless plan --workload rm1 --traffic 8x --equal-containers --compare`
    """
    from erless.cli.plan_inputs import read_inputs
    from erless.plan.nodes.prices import read_prices
    from erless.plan.nodes.terraform_pools import limit_prices, read_pools, size_pools, write_pools
    from erless.plan.planner import POLICIES, Planner
    from erless.plan.report import tables as report
    from erless.plan.report.break_even import break_even, lines
    from erless.plan.report.document import plan_document
    from erless.plan.report.plot import write_plot

    inputs = read_inputs(
        {
            "policy": policy,
            "objective": objective,
            "qps": qps,
            "traffic": traffic,
            "batch": batch,
            "equal_containers": equal_containers or None,
            "dense": dense,
            "precision": precision or (),
            "min_replicas": min_replicas or (),
            "sla_p95_ms": sla_p95_ms,
            "max_fan_out": max_fan_out,
            "tower_ms": tower_ms,
            "max_shard_bytes": max_shard_bytes,
            "max_vcpu": max_vcpu,
            "stale_profile": stale_profile or None,
            "frozen": frozen or None,
            "shards": shards,
            "resident_share": resident_share,
            "max_resident_bytes": max_resident_bytes,
            "frozen_share": frozen_share,
        },
        model=model,
        profile=profile,
        workload=workload,
        locality=locality,
        prices=prices,
        out=out,
    )
    source, request = inputs.source, inputs.request
    pools = read_pools(nodes_from) if nodes_from else {}
    known = limit_prices(read_prices(inputs.prices), pools)
    planner = Planner(source.model, source.tables, request, known, source.measured)
    outcome = planner.outcome(POLICIES if compare else ())
    document = plan_document(outcome, source.model_digest, source.profile_digest, source.notes)
    points = []
    if plot or (compare and not request.equal_containers):
        points = break_even(
            source.model, source.tables, request, outcome.demand.qps, known, source.measured
        )
    said = [
        *document.notes,
        *([report.verdict(document)] if compare else []),
        *(lines(points) if points else []),
    ]
    reasons = report.explain(document, explain) if explain else []
    sized = size_pools(document, known, pools) if nodes_from else {}
    said += [f"pool {name}: {each}" for name, each in sized.items()]
    if nodes_from:
        note(f"wrote {write_pools(nodes_from, sized)}")
    if inputs.out:
        document.save(inputs.out)
        note(f"wrote {inputs.out}")
    if plot:
        write_plot(plot, document, outcome.demand, points)
        note(f"wrote {plot}")

    def text(console: Console) -> None:
        console.print(report.shard_table(document))
        console.print(report.node_line(document))
        if compare:
            console.print(report.policy_table(document))
        for line in [*reasons, *said]:
            console.print(line)
        for key, value in document.assumptions.items():
            console.print(f"[dim]{key}: {value}[/dim]")

    emit(output, {**document.model_dump(mode="json"), "verdict": said, "explain": reasons}, text)
