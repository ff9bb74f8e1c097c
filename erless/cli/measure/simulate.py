"""`erless simulate`: a plan under a day of traffic, at any scale, in seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.option_groups import grouped
from erless.cli.run import Output, OutputOption, emit, verb

if TYPE_CHECKING:
    from erless.observe.simulator.fleet import NodeType, Terms
    from erless.specs.plan import Plan
    from erless.specs.result import RunResult

__all__ = ["lines", "node_of", "simulate"]

GB = 1e9
HOUR_S = 3600.0
TOLD = {"wait": "waits", "default": "takes default vectors"}


@dataclass(frozen=True)
class TermsOptions:
    """Assumptions about replicas and machines."""

    start_s: Annotated[float, typer.Option(help="Start of a replica, without its rows.")] = 2.0
    load_gb_s: Annotated[float, typer.Option(min=1e-3, help="GB/s that rows load at.")] = 1.0
    node_boot_s: Annotated[float, typer.Option(help="Until a new machine is there.")] = 90.0
    replica_mtbf_h: Annotated[
        float | None, typer.Option(help="Hours between failures of one replica.")
    ] = None
    node_mtbf_h: Annotated[
        float | None, typer.Option(help="Hours between failures of one machine.")
    ] = None
    host_cores: Annotated[
        float | None, typer.Option(help="All replicas share a host of so many cores.")
    ] = None
    cold_miss: Annotated[str, typer.Option(help="At a function asleep: wait or default.")] = "wait"
    autoscaler: Annotated[
        str | None,
        typer.Option(help="Instead of the plan's: kpa, status, showar, autothrottle, kpa-partial."),
    ] = None
    growth: Annotated[
        float, typer.Option(min=1.0, help="A replica may then grow to so many times its vCPU.")
    ] = 2.0
    lost_scrapes: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of the ticks without data, in gaps.")
    ] = 0.0

    def terms(self) -> Terms:
        """The simulator's terms, in its units.

        Raises:
            PlanError: no such policy for cold misses, or no such autoscaler.
        """
        from erless.errors import PlanError
        from erless.observe.simulator.fleet import Terms
        from erless.observe.simulator.policies import POLICIES

        if self.cold_miss not in ("wait", "default"):
            raise PlanError(f"cold_miss is {self.cold_miss!r}: wait or default")
        chosen = next((name for name in POLICIES if name == self.autoscaler), None)
        if self.autoscaler is not None and chosen is None:
            raise PlanError(f"autoscaler is {self.autoscaler!r}: one of {', '.join(POLICIES)}")
        return Terms(
            start_s=self.start_s,
            load_bytes_s=self.load_gb_s * GB,
            node_boot_s=self.node_boot_s,
            replica_mtbf_s=self.replica_mtbf_h * HOUR_S if self.replica_mtbf_h else math.inf,
            node_mtbf_s=self.node_mtbf_h * HOUR_S if self.node_mtbf_h else math.inf,
            host_cores=self.host_cores,
            cold_miss="wait" if self.cold_miss == "wait" else "default",
            autoscaler=chosen,
            growth=self.growth,
            lost_scrapes=self.lost_scrapes,
        )


@dataclass(frozen=True)
class MachineOptions:
    """The machines, and how long a call takes on them."""

    elastic_nodes: Annotated[
        bool, typer.Option("--elastic-nodes/--fixed-nodes", help="Machines follow the replicas.")
    ] = True
    prices: Annotated[Path | None, typer.Option(help="Your own instance types (CSV).")] = None
    service: Annotated[
        list[str] | None, typer.Option(help="NAME=MS: measured time of one call.")
    ] = None

    def node(self, plan: Plan) -> NodeType | None:
        """The machine that a plan's replicas are put on; None where machines are fixed."""
        return node_of(plan, self.prices) if self.elastic_nodes else None


@dataclass(frozen=True)
class SimulationOptions:
    """Where the result goes, and the plan that it is compared with."""

    out: Annotated[Path, typer.Option(help="Result directory to make.")]
    against: Annotated[
        Path | None, typer.Option(help="plan.json to compare with, e.g. of --policy model-wise.")
    ] = None
    sla_p95_ms: Annotated[float | None, typer.Option(help="p95 allowed.")] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result.")] = False


@verb
@grouped
def simulate(
    plan: Annotated[Path, typer.Option(help="plan.json of `erless plan --out`.")],
    traffic: Annotated[
        str, typer.Option(help="step:50,150,50, a trace (t_s, qps) or FORMAT:FILE.")
    ],
    result_options: SimulationOptions,
    assumed: TermsOptions,
    machines: MachineOptions,
    duration: Annotated[float | None, typer.Option(help="Seconds of a shape [60].")] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals and failures.")] = 0,
    output: OutputOption = Output.TEXT,
) -> None:
    """Simulate a plan under a traffic trace; `erless report` draws the result.

    Example: `erless simulate --plan plan.json --traffic diurnal:20,400 --duration 86400 --out sim`
    """
    import time

    from erless.observe.simulator.outcome import run_simulation, write_simulation
    from erless.specs.plan import Plan
    from erless.specs.traffic import parse_traffic

    terms = assumed.terms()
    load, offered = Plan.load(plan), parse_traffic(traffic, duration)
    times = _times(machines.service or [])
    begin = time.perf_counter()
    done = run_simulation(load, offered, terms, machines.node(load), seed, times)
    base = None
    if result_options.against:
        other = Plan.load(result_options.against)
        base = run_simulation(other, offered, terms, machines.node(other), seed)
    result = write_simulation(
        result_options.out,
        done,
        title=f"{load.policy} plan under {offered.name}",
        sla_ms=result_options.sla_p95_ms,
        against=base,
        overwrite=result_options.overwrite,
        notes=(
            f"simulated in {time.perf_counter() - begin:.1f} s",
            f"assumed: {_terms_line(terms)}",
        ),
    )
    document = {"result": str(result_options.out), **_document(result)}
    then = f"erless report {result_options.out}"
    emit(output, document, lambda console: console.print("\n".join(lines(result))), then=then)


def _terms_line(terms: Terms) -> str:
    """The assumed terms, in a line for people."""
    parts = [
        f"a replica starts in {terms.start_s:g} s and loads {terms.load_bytes_s / GB:g} GB/s",
        f"a call's network {terms.hop_s * 1e3:g} ms",
        f"a machine boots in {terms.node_boot_s:g} s and goes after {terms.node_idle_s:g} s idle",
        f"a query at a sleeping function {TOLD[terms.cold_miss]}",
        f"deadline {terms.deadline_s:g} s",
    ]
    for name, hours in (("replica", terms.replica_mtbf_s), ("machine", terms.node_mtbf_s)):
        if math.isfinite(hours):
            parts.append(f"a {name} fails every {hours / HOUR_S:g} h")
    if terms.host_cores is not None:
        parts.append(f"all replicas share {terms.host_cores:g} cores")
    return "; ".join(parts)


def _times(pairs: list[str]) -> dict[str, float]:
    from erless.errors import PlanError

    times = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            times[name] = float(text)
        except ValueError:
            raise PlanError(f"service {pair!r}: write it as hot=0.8, in milliseconds") from None
        if not times[name] > 0:
            raise PlanError(f"service {pair!r}: a call takes more than 0 ms")
    return times


def node_of(plan: Plan, prices: Path | None) -> NodeType | None:
    """The plan's most common machine; of those with a local disk, where rows lie on disks.

    Raises:
        PlanError: rows lie on disks, and the prices have no machine of the plan with one.
    """
    from erless.errors import PlanError
    from erless.observe.simulator.fleet import NodeType
    from erless.plan.nodes.prices import read_prices

    if not plan.nodes:
        return None
    known = {machine.name: machine for machine in read_prices(prices).every}
    machines = [
        known[group.instance_type]
        for group in sorted(plan.nodes, key=lambda group: -group.count)
        if group.instance_type in known
    ]
    if machines and any(shard.disk for shard in plan.shards):
        machines = [machine for machine in machines if machine.disk_bytes]
        if not machines:
            raise PlanError(
                "the plan has rows on disks, and none of its machines has a local disk in the "
                "prices: give those that it was made with (--prices), or --fixed-nodes"
            )
    if not machines:
        return None
    machine_type = machines[0]
    return NodeType(
        machine_type.name,
        machine_type.usable_vcpu,
        machine_type.usable_bytes,
        machine_type.disk_bytes,
        machine_type.read_iops,
    )


def _document(result: RunResult) -> dict[str, Any]:
    return {**result.model_dump(mode="json"), "memory_reduction": result.memory_reduction}


def lines(result: RunResult) -> list[str]:
    """A result in a few lines, for a terminal."""
    from erless.pages.charts import number, size

    latency = result.latency
    lines = [
        f"{result.queries:,} queries in {result.duration_s:,.0f} s: {result.answered:,} answered, "
        f"{result.failed:,} failed, {result.degraded:,} degraded, {result.cold_starts:,} met a "
        "cold start"
    ]
    if latency.p95_ms is not None:
        lines.append(
            f"latency: p50 {number(latency.p50_ms or 0)} ms, p95 {number(latency.p95_ms)} "
            f"ms, p99 {number(latency.p99_ms or 0)} ms"
        )
    if result.sla_p95_ms is not None:
        lines.append(f"SLA {number(result.sla_p95_ms)} ms: {result.late_share:.2%} of queries late")
    lines.append(
        f"memory: {size(result.memory_bytes.mean)} on average, {size(result.memory_bytes.peak)} at "
        f"most; replicas: {result.replicas.mean:,.1f}, {result.replicas.peak:,.0f} at most"
    )
    if result.vcpu is not None:
        lines.append(f"vCPU: {result.vcpu.mean:,.2f} on average, {result.vcpu.peak:,.2f} at most")
    base = result.model_wise
    if base and result.memory_reduction:
        lines.append(
            f"model-wise: {size(base.memory_bytes.mean)}, {result.memory_reduction:.2f}× as much "
            f"({base.source})"
        )
    for reason, count in result.failures.items():
        lines.append(f"failed: {count:,} {reason}")
    return lines
