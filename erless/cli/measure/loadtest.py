"""`erless loadtest`: send queries to a deployment, watch it, keep what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from erless.deploy.target import Target
    from erless.observe.loadtest.locust.process import Load
    from erless.observe.loadtest.sampler import Probe

__all__ = ["loadtest", "probe_of"]


@verb
def loadtest(
    out: Annotated[Path, typer.Option(help="Result directory to make.")] = Path("result"),
    host: Annotated[str | None, typer.Option(help="A gateway's URL, instead of a target.")] = None,
    connect: Annotated[
        str | None, typer.Option(help="HOST:PORT to connect to, for the URL (an ingress).")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="local or knative.")] = None,
    traffic: Annotated[
        str | None, typer.Option(help="step:50,150,50 or a trace (t_s, qps); else closed loops.")
    ] = None,
    duration: Annotated[float, typer.Option(min=1, help="Seconds.")] = 60.0,
    users: Annotated[int, typer.Option(min=1, help="Connections.")] = 64,
    queries: Annotated[Path | None, typer.Option(help="Query file; else drawn.")] = None,
    expected: Annotated[
        Path | None, typer.Option(help="`erless predict --monolith … -o json` of that file.")
    ] = None,
    profile: Annotated[Path | None, typer.Option(help="Draw rows as its log had them.")] = None,
    plan: Annotated[
        Path | None, typer.Option(help="plan.json: its cuts and its dollars are shown.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples per query.")] = None,
    pooling: Annotated[int | None, typer.Option(min=1, help="Ids per bag, drawn queries.")] = None,
    locality: Annotated[float, typer.Option(help="P of drawn queries.")] = 0.9,
    sla_p95_ms: Annotated[float | None, typer.Option(help="[default: erless.yaml's]")] = None,
    deadline_ms: Annotated[float, typer.Option(min=1, help="Of one query.")] = 10_000.0,
    tolerance: Annotated[float, typer.Option(help="Relative, of predictions.")] = 1e-5,
    search: Annotated[
        bool, typer.Option("--search", help="Find the highest rate that meets the SLA.")
    ] = False,
    monolith: Annotated[
        Path | None, typer.Option(help="Bundle: measure it whole in one process here.")
    ] = None,
    start_qps: Annotated[float, typer.Option(min=0.1, help="First rate of --search.")] = 50.0,
    processes: Annotated[int, typer.Option(min=1, help="Of Locust.")] = 1,
    seed: Annotated[int, typer.Option(help="Of arrivals and drawn queries.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result.")] = False,
    output: OutputOption = Output.TEXT,
) -> None:
    """Put a deployment under load. Ctrl-C keeps what was measured; `erless report` draws it.

    Example: `erless loadtest --traffic step:50,150,50 --duration 90 --out result`,
    `erless loadtest --search --queries m/queries.safetensors --sla-p95-ms 20`
    """
    from contextlib import ExitStack

    from erless.cli.options import project
    from erless.errors import OptionError
    from erless.observe.access import access_plots
    from erless.observe.loadtest.locust.process import Load
    from erless.observe.loadtest.measure import measure
    from erless.specs.plan import Plan
    from erless.specs.traffic import parse_traffic

    if host and monolith:
        raise OptionError("--host and --monolith name two gateways: give one")
    parsed = parse_traffic(traffic, duration) if traffic else None
    length = parsed.duration_s if parsed else duration
    limit = sla_p95_ms or project().traffic.sla_p95_ms
    fields: dict[str, Any] = {}
    loaded = Plan.load(plan) if plan else None
    if loaded is not None:
        fields |= {"plan_digest": loaded.digest, "policy": loaded.policy}
    if profile:
        fields["access"] = access_plots(profile, loaded)
    with ExitStack() as running:
        probe: Probe | None = None
        if monolith:
            host, probe = _whole(monolith, running)
            fields["title"] = f"Load test of {monolith}, whole"
        elif host is None:
            host, address, probe, facts = _deployed(target)
            connect = connect or address
            fields |= facts
        options = _options(
            queries, expected, profile, batch, pooling, locality, deadline_ms, tolerance, seed
        )
        load = Load(host, length, traffic, users, options, processes, connect or "")
        known: dict[str, Any] = {
            "probe": probe,
            "fields": fields,
            "overwrite": overwrite,
            "tolerance": tolerance,
            "plan": loaded,
        }
        if search:
            _search(load, out, limit, start_qps, output, known)
            return
        result = measure(load, out, sla_ms=limit, **known)
    if result.interrupted:
        note(f"stopped; {out} has what the first {result.duration_s:.0f} s measured")
    from erless.cli.measure.simulate import lines

    document = {
        "result": str(out),
        **result.model_dump(mode="json"),
        "memory_reduction": result.memory_reduction,
    }
    emit(output, document, lambda console: console.print("\n".join(lines(result))))


def _options(
    queries: Path | None,
    expected: Path | None,
    profile: Path | None,
    batch: int | None,
    pooling: int | None,
    locality: float,
    deadline_ms: float,
    tolerance: float,
    seed: int,
) -> tuple[str, ...]:
    """The locustfile's options."""
    given = {
        "--queries": queries,
        "--expected": expected,
        "--hotness": profile,
        "--batch": batch,
        "--pooling": pooling,
        "--locality": locality,
        "--deadline-ms": deadline_ms,
        "--tolerance": tolerance,
        "--seed": seed,
    }
    return tuple(
        text for name, value in given.items() if value is not None for text in (name, str(value))
    )


def _deployed(name: str | None) -> tuple[str, str, Probe, dict[str, Any]]:
    """The current release of a target: URL, where to connect, what to ask meanwhile, its facts."""
    from erless.cli.options import project
    from erless.deploy.targets import open_target

    target = open_target(name, project())
    now = target.status()
    facts = {
        "title": f"Load test of release {now.release[:12]} on {now.target}",
        "release": now.release,
    }
    return now.answering_url(), now.address, probe_of(target), facts


def probe_of(target: Target) -> Probe:
    """What the sampler asks of a target: replicas and memory by function."""
    from erless.observe.loadtest.sampler import FunctionSample

    def ask() -> tuple[list[FunctionSample], int]:
        now = target.status()
        return [FunctionSample.of(function) for function in now.functions], now.model_wise_bytes

    return ask


def _whole(bundle: Path, running: Any) -> tuple[str, Probe]:
    """The monolith as a process of its own, ended with the block."""
    from erless.observe.loadtest.monolith import MonolithServer

    server = running.enter_context(MonolithServer(bundle))
    return server.url, server.probe


def _search(
    load: Load, out: Path, limit: float, start_qps: float, output: Output, known: dict[str, Any]
) -> None:
    from dataclasses import asdict

    from erless.observe.loadtest.highest import find_highest, summary, trial_text

    highest = find_highest(
        load,
        out,
        sla_ms=limit,
        start_qps=start_qps,
        tell=lambda trial: note(trial_text(trial)),
        **known,
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
    emit(output, document, lambda console: console.print(line))
