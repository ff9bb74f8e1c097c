"""`erless drill`: break a deployment on purpose under load, and check every answer."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.deployment.target_options import TargetOptions, resolve_target
from erless.cli.hints import again, trying
from erless.cli.option_groups import grouped
from erless.cli.options import CaOption
from erless.cli.run import Output, OutputOption, emit, note, verb

if TYPE_CHECKING:
    from erless.deploy.target import Status
    from erless.observe.drill.run import Drill
    from erless.observe.loadtest.sampler import Probe
    from erless.specs.churn import FaultSite
    from erless.specs.result import RunResult

__all__ = ["drill"]

MOST_S = 3600.0
PROCESSES_S, PODS_S = 5.0, 30.0  # for the last fault to heal: of processes here, of pods


@dataclass(frozen=True)
class ChurnOptions:
    """What is broken, and how often."""

    churn: Annotated[
        str,
        typer.Option(help="KIND:SECONDS, of kill, hang, add, drain and gateway."),
    ] = "kill:2s,hang:10s,add:7s,drain:9s,gateway:30s"
    duration: Annotated[float, typer.Option(min=1, max=MOST_S, help="Seconds with faults.")] = 60.0
    count: Annotated[
        int | None, typer.Option(min=1, help="Queries with faults, instead of --duration.")
    ] = None
    calm: Annotated[float, typer.Option(min=1, help="Seconds without, before.")] = 15.0
    last: Annotated[
        bool, typer.Option("--last", help="Break a function's only ready replica too.")
    ] = False
    seed: Annotated[int, typer.Option(help="Of arrivals and of whose turn it is.")] = 0


@dataclass(frozen=True)
class DrillLoadOptions:
    """The queries, and what a good answer is."""

    queries: Annotated[Path, typer.Option(help="Query file (safetensors).")]
    against: Annotated[
        Path | None, typer.Option(help="Bundle: its predictions are the right ones.")
    ] = None
    expected: Annotated[
        Path | None, typer.Option(help="Or `erless predict --monolith … -o json` of the file.")
    ] = None
    qps: Annotated[float, typer.Option(min=0.1, help="Queries per second.")] = 200.0
    batch: Annotated[int | None, typer.Option(min=1, help="Samples per query.")] = None
    ca: CaOption = None
    good_ms: Annotated[
        float | None, typer.Option(min=1, help="A later answer is late [default: the SLA].")
    ] = None
    tolerance: Annotated[
        float, typer.Option(min=0, help="Relative, of predictions; more for quantized rows.")
    ] = 1e-5


@dataclass(frozen=True)
class DrillResultOptions:
    """Where the result goes."""

    out: Annotated[Path, typer.Option(help="Result directory to make.")] = Path("drill")
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result.")] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be broken; break nothing.")
    ] = False
    yes: Annotated[
        bool, typer.Option("--yes", help="Break a cluster, which others may depend on.")
    ] = False


@verb
@grouped
def drill(
    churn: ChurnOptions,
    load: DrillLoadOptions,
    result: DrillResultOptions,
    where: TargetOptions,
    output: OutputOption = Output.TEXT,
) -> None:
    """Break a deployment on purpose under load, and check every answer.

    Exit 1 where a query failed or was answered wrongly. `erless report` draws the result.

    Example: `erless drill --queries m/queries.safetensors --against m --qps 100 --out drill`
    """
    from erless.cli.measure.loadtest import probe_of
    from erless.cli.options import project
    from erless.deploy.target import Breakable
    from erless.errors import OptionError
    from erless.observe.drill.run import Drill
    from erless.specs.churn import parse_churn

    if (load.against is None) == (load.expected is None):
        raise OptionError("what is right? give --against BUNDLE, or --expected FILE")
    target, _ = resolve_target(where)
    faulty_s = churn.duration if churn.count is None else churn.count / load.qps
    if faulty_s > MOST_S:
        raise OptionError(f"{churn.count:,} queries take {faulty_s:,.0f} s: {MOST_S:g} at most")
    parsed = parse_churn(churn.churn)
    if not isinstance(target, Breakable):
        raise OptionError(f"target {target.name} cannot be broken on purpose")
    site = target.faults()
    plan = Drill(
        parsed,
        calm_s=churn.calm,
        faulty_s=faulty_s,
        settle_s=PODS_S if site.shared else PROCESSES_S,
        good_ms=load.good_ms or project().traffic.sla_p95_ms,
        last=churn.last,
        tolerance=load.tolerance,
        seed=churn.seed,
    )
    with trying(_possible(site), OptionError):
        plan.check(site)
    now = target.status()
    if result.dry_run:
        document = _planned(plan, site, now, load.qps)
        emit(
            output,
            document,
            lambda console: console.print("\n".join(document["lines"])),
            then="the same without --dry-run",
        )
        return
    if site.shared and not result.yes:
        with trying(f"{again('--dry-run')} shows how, --yes means it", OptionError):
            raise OptionError(f"release {now.release[:12]} on {now.target} would be broken")
    measured = _measure(plan, site, now, load, result, probe_of(target))
    _show(output, result.out, measured)


def _possible(site: FaultSite) -> str:
    """What to try where nothing is there to be broken as asked."""
    from erless.specs.functions import GATEWAY

    if all(replica.kind == GATEWAY for replica in site.replicas()):
        return f"{again('--churn', 'gateway:10s', '--last')} breaks the only function there is"
    return f"{again('--last')} breaks a function's only replica too"


def _planned(plan: Drill, site: FaultSite, now: Status, qps: float) -> dict[str, Any]:
    """What a drill would do, as a document with lines for people."""
    faults = plan.churn.schedule(plan.faulty_s)
    counts = {
        kind.value: sum(fault.kind is kind for fault in faults) for kind, _ in plan.churn.every_s
    }
    replicas = site.replicas()
    lines = [
        f"release {now.release[:12]} on {now.target}: {plan.calm_s:g} s of calm, "
        f"{plan.faulty_s:g} s with faults, at {qps:g} queries/s",
        *(f"  {kind:8} {count:5} times" for kind, count in counts.items()),
    ]
    functions: dict[str, int] = {}
    for replica in replicas:
        functions[replica.function] = functions.get(replica.function, 0) + replica.ready
    lines += [f"  {name:16} {ready} ready" for name, ready in sorted(functions.items())]
    return {"churn": str(plan.churn), "faults": counts, "functions": functions, "lines": lines}


def _measure(
    plan: Drill,
    site: FaultSite,
    now: Status,
    load: DrillLoadOptions,
    options: DrillResultOptions,
    probe: Probe,
) -> RunResult:
    from erless.observe.drill.run import Observed
    from erless.observe.drill.run import drill as run_drill
    from erless.observe.loadtest.locust.process import Load

    with tempfile.TemporaryDirectory(prefix="erless-drill-") as folder:
        expected = load.expected or _expected(load, Path(folder) / "expected.json")
        words = ["--queries", load.queries, "--expected", expected, "--check-every", 1]
        words += ["--tolerance", plan.tolerance, "--seed", plan.seed]
        if load.batch is not None:
            words += ["--batch", load.batch]
        locust = Load(
            now.answering_url(),
            plan.duration_s,
            f"constant:{load.qps:g}",
            options=tuple(map(str, words)),
            connect=now.address,
            authorities=str(load.ca) if load.ca else "",
        )
        observed = Observed(
            probe,
            fields={
                "title": f"Drill of release {now.release[:12]} on {now.target}",
                "release": now.release,
            },
            overwrite=options.overwrite,
        )
        return run_drill(locust, plan, site, options.out, observed)


def _expected(load: DrillLoadOptions, path: Path) -> Path:
    """Write the bundle's own predictions of the query file to `path`."""
    import json

    from erless.cli.deployment.predictions import bundle_shape, open_queries, predict_whole

    assert load.against is not None  # noqa: S101 - checked before
    file = open_queries(load.queries, load.batch, bundle_shape(load.against).inputs)
    outputs, _ = predict_whole(file, load.against, threads=1, check=True)
    scores = next(iter(outputs.values()))
    path.write_text(json.dumps({"predictions": scores.reshape(-1).tolist()}), encoding="utf-8")
    return path


def _show(output: Output, out: Path, measured: RunResult) -> None:
    from erless.observe.drill.summary import summary_lines

    drilled = measured.drill
    assert drilled is not None  # noqa: S101 - a drill's result has it
    if measured.interrupted:
        note(f"stopped; {out} has what the first {measured.duration_s:.0f} s measured")
    document = {
        "result": str(out),
        "goodput_kept": drilled.kept,
        **measured.model_dump(mode="json"),
    }
    lines = summary_lines(drilled)
    emit(
        output,
        document,
        lambda console: console.print("\n".join(lines), highlight=False),
        then=f"erless report {out}",
    )
    if drilled.failed or drilled.wrong:
        raise SystemExit(1)
