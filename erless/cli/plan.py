"""`erless plan`: from a model and its profile to a costed set of functions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["plan"]


@verb
def plan(
    model: Annotated[Path | None, typer.Option(help="Model bundle.")] = None,
    profile: Annotated[Path | None, typer.Option(help="Profile of its access log.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write plan.json here.")] = None,
    workload: Annotated[str | None, typer.Option(help="rm1, rm2, rm3: no weights needed.")] = None,
    locality: Annotated[float, typer.Option(help="P of the workload.")] = 0.9,
    traffic: Annotated[str, typer.Option(help="8x: eight model-wise replicas' worth.")] = "8x",
    qps: Annotated[float | None, typer.Option(help="Queries/s, instead of --traffic.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples per query.")] = 32,
    policy: Annotated[
        str, typer.Option(help="joint, elasticrec, table-wise or model-wise.")
    ] = "joint",
    objective: Annotated[
        str | None, typer.Option(help="memory or dollars (memory with --equal-containers).")
    ] = None,
    equal_containers: Annotated[
        bool, typer.Option("--equal-containers", help="The paper's terms: 1 vCPU each.")
    ] = False,
    precision: Annotated[str, typer.Option(help="Below the resident tier.")] = "fp32",
    sla_p95_ms: Annotated[float | None, typer.Option(help="p95 allowed.")] = None,
    frozen: Annotated[bool, typer.Option("--frozen", help="Let idle rows scale to zero.")] = False,
    shards: Annotated[
        int | None, typer.Option(min=1, help="Remote functions; per table for elasticrec.")
    ] = None,
    resident_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of the gathers, inside the gateway.")
    ] = None,
    max_resident_bytes: Annotated[
        float | None, typer.Option(help="Most bytes of rows inside one gateway.")
    ] = None,
    frozen_share: Annotated[
        float | None, typer.Option(help="Freeze the coldest gathers though they are not idle.")
    ] = None,
    max_fan_out: Annotated[int, typer.Option(help="Remote calls per query.")] = 254,
    max_shard_bytes: Annotated[float | None, typer.Option(help="Of one replica.")] = None,
    min_replicas: Annotated[int, typer.Option(min=1, help="Of every function.")] = 1,
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
    from pydantic import ValidationError

    from erless.errors import PlanError
    from erless.plan import report
    from erless.plan.breakeven import break_even, lines
    from erless.plan.document import plan_document
    from erless.plan.planner import POLICIES, Planner
    from erless.plan.plot import write_plot
    from erless.plan.pools import limit_prices, read_pools, size_pools, write_pools
    from erless.plan.prices import read_prices
    from erless.plan.request import PlanRequest

    try:
        request = PlanRequest.model_validate({
            "policy": policy, "objective": objective, "qps": qps, "traffic": _times(traffic),
            "batch": batch, "equal_containers": equal_containers, "precision": precision,
            "sla_p95_ms": sla_p95_ms, "max_fan_out": max_fan_out, "tower_ms": tower_ms,
            "max_shard_bytes": max_shard_bytes, "min_replicas": min_replicas,
            "max_vcpu": max_vcpu, "stale_profile": stale_profile, "frozen": frozen,
            "shards": shards, "resident_share": resident_share,
            "max_resident_bytes": max_resident_bytes, "frozen_share": frozen_share,
        })  # fmt: skip
    except ValidationError as error:
        first = error.errors()[0]
        raise PlanError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    spec, tables, curve, digests, notes = _source(
        model, profile, workload, locality, batch, stale_profile
    )
    known = read_prices(prices)
    pools = read_pools(nodes_from) if nodes_from else {}
    known = limit_prices(known, pools)
    outcome = Planner(spec, tables, request, known, curve).outcome(POLICIES if compare else ())
    document = plan_document(outcome, digests[0], digests[1], notes)
    points = []
    if plot or (compare and not equal_containers):
        points = break_even(spec, tables, request, outcome.demand.qps, known)
    said = [*document.notes, *([report.verdict(document)] if compare else []),
            *(lines(points) if points else [])]  # fmt: skip
    reasons = report.explain(document, explain) if explain else []
    sized = size_pools(document, known, pools) if nodes_from else {}
    said += [f"pool {name}: {each}" for name, each in sized.items()]
    if nodes_from:
        note(f"wrote {write_pools(nodes_from, sized)}")
    if out:
        document.save(out)
        note(f"wrote {out}")
    if plot:
        write_plot(plot, document, outcome.demand, points)
        note(f"wrote {plot}")

    def text(console: Console) -> None:
        console.print(report.shard_table(document))
        if compare:
            console.print(report.policy_table(document))
        for line in [*reasons, *said]:
            console.print(line)
        for key, value in document.assumptions.items():
            console.print(f"[dim]{key}: {value}[/dim]")

    emit(output, {**document.model_dump(mode="json"), "verdict": said, "explain": reasons}, text)


def _times(text: str) -> float:
    from erless.errors import PlanError

    try:
        return float(text.lower().removesuffix("x"))
    except ValueError:
        raise PlanError(f"traffic {text!r} is not a number of replicas like 8x") from None


def _source(
    model: Path | None, profile: Path | None, workload: str | None, locality: float, batch: int,
    stale: bool,
) -> Any:  # fmt: skip
    """Model, tables, curve, digests and notes, from a profile or a reference workload."""
    from erless.errors import PlanError
    from erless.plan.source import profile_tables, workload_tables
    from erless.specs.bundle import BundleManifest
    from erless.storage.digests import digest_json

    if workload:
        if model or profile:
            raise PlanError("--workload plans without a model: leave out --model and --profile")
        spec, tables = workload_tables(workload, locality, batch)
        digest = digest_json(spec.model_dump(mode="json"))
        hotness = digest_json({"workload": workload, "locality": locality})
        return spec, tables, None, (digest, hotness), []
    if not (model and profile):
        raise PlanError("give --model and --profile, or --workload")
    bundle = BundleManifest.open(model)
    found, tables, notes = profile_tables(bundle, profile, batch, stale)
    fp32 = [each for each in found.curves if each.precision == "fp32"]
    return (bundle.model, tables, fp32[0] if fp32 else None, (bundle.digest, found.digest), notes)
