"""`erless loadtest`: send queries to a deployment, watch it, keep what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.option_groups import grouped
from erless.cli.options import CaOption
from erless.cli.query_columns import QueryColumnOption, query_file
from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from erless.deploy.target import Target
    from erless.observe.loadtest.locust.process import Load
    from erless.observe.loadtest.measure import Measuring
    from erless.observe.loadtest.sampler import Probe
    from erless.specs.plan import Plan
    from erless.specs.result import RunResult

__all__ = ["loadtest", "probe_of"]

MANY = 1 << 20  # queries: more than there are, or than memory may hold


@dataclass(frozen=True)
class LoadedGatewayOptions:
    """The gateway under load: by its URL, a target's, or a process with the whole model."""

    host: Annotated[str | None, typer.Option(help="A gateway's URL, instead of a target.")] = None
    connect: Annotated[
        str | None, typer.Option(help="HOST:PORT to connect to, for the URL (an ingress).")
    ] = None
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="local, knative or kubernetes.")
    ] = None
    ca: CaOption = None
    monolith: Annotated[
        Path | None, typer.Option(help="Bundle: measure it whole in one process here.")
    ] = None


@dataclass(frozen=True)
class TrafficOptions:
    """How often, for how long, over how many connections."""

    traffic: Annotated[
        str | None, typer.Option(help="step:50,150, a trace or FORMAT:FILE; else closed loops.")
    ] = None
    duration: Annotated[float, typer.Option(min=1, help="Seconds.")] = 60.0
    users: Annotated[int, typer.Option(min=1, help="Connections.")] = 64
    processes: Annotated[int, typer.Option(min=1, help="Of Locust.")] = 1
    search: Annotated[
        bool, typer.Option("--search", help="Find the highest rate that meets the SLA.")
    ] = False
    start_qps: Annotated[float, typer.Option(min=0.1, help="First rate of --search.")] = 50.0


@dataclass(frozen=True)
class QueryOptions:
    """The queries, and how their answers are checked."""

    queries: Annotated[
        Path | None,
        typer.Option(help="Query file, or samples as parquet or CSV; else drawn."),
    ] = None
    column: QueryColumnOption = None
    expected: Annotated[
        Path | None, typer.Option(help="`erless predict --monolith … -o json` of that file.")
    ] = None
    profile: Annotated[Path | None, typer.Option(help="Draw rows as its log had them.")] = None
    batch: Annotated[int | None, typer.Option(min=1, help="Samples per query.")] = None
    pooling: Annotated[int | None, typer.Option(min=1, help="Ids per bag, drawn queries.")] = None
    locality: Annotated[float, typer.Option(help="P of drawn queries.")] = 0.9
    deadline_ms: Annotated[float, typer.Option(min=1, help="Of one query.")] = 10_000.0
    tolerance: Annotated[float, typer.Option(help="Relative, of predictions.")] = 1e-5
    seed: Annotated[int, typer.Option(help="Of arrivals and drawn queries.")] = 0
    distinct: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most different queries [64; as many as 256 MB hold with rows on disks]."
        ),
    ] = None
    cold: Annotated[
        bool, typer.Option("--cold", help="Measure from a cold start: wake nothing before.")
    ] = False

    def of_locust(self, queries: Path | None, *, disks: bool) -> tuple[str, ...]:
        """The locustfile's options, with what it can read of `queries`.

        Where rows lie on `disks`, few queries asked over and over would meet them in a cache.
        """
        words: list[str] = []
        distinct = self.distinct or (MANY if disks else None)
        read = replace(self, queries=queries, column=None, distinct=distinct)
        for option in fields(self):
            value = getattr(read, option.name)
            if value is True:
                words.append(f"--{option.name}")
            elif value is not None and value is not False:
                name = "hotness" if option.name == "profile" else option.name.replace("_", "-")
                words += [f"--{name}", str(value)]
        return tuple(words)


@dataclass(frozen=True)
class ResultOptions:
    """Where the result goes, and what else it records."""

    out: Annotated[Path, typer.Option(help="Result directory to make.")] = Path("result")
    plan: Annotated[
        Path | None, typer.Option(help="plan.json: its cuts and its dollars are shown.")
    ] = None
    sla_p95_ms: Annotated[float | None, typer.Option(help="[default: erless.yaml's]")] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result.")] = False


@verb
@grouped
def loadtest(
    gateway: LoadedGatewayOptions,
    load: TrafficOptions,
    query: QueryOptions,
    result: ResultOptions,
    output: OutputOption = Output.TEXT,
) -> None:
    """Put a deployment under load. Ctrl-C keeps what was measured; `erless report` draws it.

    Example: `erless loadtest --traffic step:50,150,50 --duration 90 --out result`,
    `erless loadtest --search --queries m/queries.safetensors --sla-p95-ms 20`
    """
    from erless.cli.options import project
    from erless.errors import OptionError
    from erless.observe.loadtest.locust.process import Load
    from erless.observe.loadtest.measure import Measuring, measure
    from erless.specs.plan import Plan
    from erless.specs.traffic import parse_traffic

    if gateway.host and gateway.monolith:
        raise OptionError("--host and --monolith name two gateways: give one")
    parsed = parse_traffic(load.traffic, load.duration) if load.traffic else None
    length_s = parsed.duration_s if parsed else load.duration
    sla_ms = result.sla_p95_ms or project().traffic.sla_p95_ms
    plan = Plan.load(result.plan) if result.plan else None
    with ExitStack() as running:
        target = _open_gateway(gateway, running)
        measuring = Measuring(
            probe=target.probe,
            fields={**_facts(plan, query.profile), **target.facts},
            overwrite=result.overwrite,
            tolerance=query.tolerance,
            plan=plan,
        )
        locust = Load(
            target.url,
            length_s,
            load.traffic,
            load.users,
            query.of_locust(_query_file(query, target, running), disks=target.disks),
            load.processes,
            target.address,
            target.authorities or "",
        )
        if load.search:
            _search(locust, result.out, sla_ms, load.start_qps, output, measuring)
            return
        measured = measure(locust, result.out, measuring, sla_ms=sla_ms)
    _show(output, result.out, measured)


def _query_file(query: QueryOptions, target: _LoadedGateway, running: ExitStack) -> Path | None:
    """The queries as a file that Locust reads, while `running`; None: they are drawn."""
    import os

    from erless.cli.deployment.predictions import GatewayAddress, gateway_shape

    if query.queries is None:
        return None
    token = os.environ.get("ERLESS_TOKEN")
    gateway = GatewayAddress(target.url, target.address, token, target.authorities)
    made = query_file(query.queries, query.column, lambda: gateway_shape(gateway), query.batch)
    return running.enter_context(made)


def _facts(plan: Plan | None, profile: Path | None) -> dict[str, Any]:
    """What a result says about the plan and the profile besides what was measured."""
    from erless.observe.access import access_plots

    facts: dict[str, Any] = {}
    if plan is not None:
        facts |= {"plan_digest": plan.digest, "policy": plan.policy}
    if profile is not None:
        facts["access"] = access_plots(profile, plan)
    return facts


def _show(output: Output, out: Path, measured: RunResult) -> None:
    from erless.cli.measure.simulate import lines

    if measured.interrupted:
        note(f"stopped; {out} has what the first {measured.duration_s:.0f} s measured")
    document = {
        "result": str(out),
        **measured.model_dump(mode="json"),
        "memory_reduction": measured.memory_reduction,
    }
    text = "\n".join(lines(measured))
    emit(output, document, lambda console: console.print(text), then=f"erless report {out}")


@dataclass(frozen=True)
class _LoadedGateway:
    """A gateway's URL and address, the probe to sample meanwhile, and facts for the result."""

    url: str
    address: str = ""
    probe: Probe | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    authorities: str | None = None
    disks: bool = False  # some rows lie on one


def _open_gateway(options: LoadedGatewayOptions, running: ExitStack) -> _LoadedGateway:
    """The gateway that the options name; a process that it needs ends with `running`."""
    authorities = str(options.ca) if options.ca else None
    if options.monolith:
        from erless.observe.loadtest.monolith import MonolithServer

        server = running.enter_context(MonolithServer(options.monolith))
        title = f"Load test of {options.monolith}, whole"
        return _LoadedGateway(server.url, options.connect or "", server.probe, {"title": title})
    if options.host is not None:
        return _LoadedGateway(options.host, options.connect or "", authorities=authorities)
    from erless.cli.options import project
    from erless.deploy.targets import open_target

    target = open_target(options.target, project())
    now = target.status()
    facts = {
        "title": f"Load test of release {now.release[:12]} on {now.target}",
        "release": now.release,
    }
    return _LoadedGateway(
        now.answering_url(),
        options.connect or now.address,
        probe_of(target),
        facts,
        authorities,
        any(function.disk_bytes for function in now.functions),
    )


def probe_of(target: Target) -> Probe:
    """A probe of a target for the sampler: replicas and memory by function."""
    from erless.observe.loadtest.sampler import FunctionSample

    def ask() -> tuple[list[FunctionSample], int]:
        now = target.status()
        return [FunctionSample.of(function) for function in now.functions], now.model_wise_bytes

    return ask


def _search(
    load: Load, out: Path, limit: float, start_qps: float, output: Output, measuring: Measuring
) -> None:
    from dataclasses import asdict

    from erless.observe.loadtest.highest import find_highest, summary, trial_text

    highest = find_highest(
        load,
        out,
        measuring,
        sla_ms=limit,
        start_qps=start_qps,
        on_trial=lambda trial: note(trial_text(trial)),
    )
    document = {
        "host": load.host,
        "sla_p95_ms": limit,
        "qps": highest.qps,
        "result": str(out),
        "not_met_at": None if highest.beyond == float("inf") else highest.beyond,
        "interrupted": highest.interrupted,
        "trials": [asdict(trial) for trial in highest.trials],
    }
    line = f"{summary(highest, limit)}; {out} has that run"
    emit(output, document, lambda console: console.print(line), then=f"erless report {out}")
