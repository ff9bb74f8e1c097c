"""What `erless plan` plans for: options win, then erless.yaml where there is one, then defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.options import CONFIG_FILE, project

if TYPE_CHECKING:
    from erless.pack.accuracy import MeasuredPrecisions
    from erless.plan.request import PlanRequest
    from erless.plan.source import PlanSource
    from erless.specs.config import Config
    from erless.specs.plan import Plan, Precision

__all__ = ["PlanInputs", "SourceOptions", "floors_like", "read_inputs", "request_like"]

PLAN_FILE = Path("plan.json")
DEFAULT_LOCALITY = 0.9
AUTO = "auto"  # as a precision: what the queries allow
MOST_ROWS = 10**12
# Options that take VALUE for all tiers and TIER=VALUE for one: the fields that they fill.
BY_TIER = {
    "precision": ("allowed", "tier_precision"),
    "min_replicas": ("min_replicas", "tier_replicas"),
}
SEVERAL = ("arch",)  # options that may repeat
OPTIONS = {field: option for option, filled in BY_TIER.items() for field in filled}


@dataclass(frozen=True)
class SourceOptions:
    """The model and traffic to plan for, and the plan's file."""

    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model bundle [erless.yaml's].")
    ] = None
    profile: Annotated[
        Path | None, typer.Option("--profile", "-p", help="Profile of its access log [likewise].")
    ] = None
    out: Annotated[
        Path | None, typer.Option(help="Write the plan [plan.json if erless.yaml says the rest].")
    ] = None
    log: Annotated[
        list[str] | None,
        typer.Option(
            help="No model yet: plan from its access logs, PATH or TABLE:PATH; may repeat."
        ),
    ] = None
    table: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ROWSxDIM",
            help="With --log: a table's shape; may repeat [as the log has it, dim 64].",
        ),
    ] = None
    samples: Annotated[
        int | None, typer.Option(min=1, help="With --log: samples that counts cover.")
    ] = None
    workload: Annotated[
        str | None, typer.Option(help="rm1, rm2, rm3, dlrmv2: no weights needed.")
    ] = None
    locality: Annotated[float | None, typer.Option(help="P of the workload [0.9].")] = None
    rows: Annotated[
        str | None, typer.Option(help="Rows of each table of the workload: 200000000, or 10x.")
    ] = None
    prices: Annotated[Path | None, typer.Option(help="Your own instance types (CSV).")] = None
    queries: Annotated[
        Path | None,
        typer.Option(help="Query file: choose precisions by what they lose on it [erless.yaml's]."),
    ] = None
    exact: Annotated[
        bool, typer.Option("--exact", help="All rows in fp32, whatever queries would allow.")
    ] = False


@dataclass(frozen=True)
class PlanInputs:
    """The request, the model with its traffic, the user's prices, and where the plan goes.

    With `losses`, the precisions of the request were chosen by them.
    """

    request: PlanRequest
    source: PlanSource
    prices: Path | None
    out: Path | None
    losses: MeasuredLosses | None = None


@dataclass(frozen=True)
class MeasuredLosses:
    """Precisions measured on queries, and what they were measured with."""

    precisions: MeasuredPrecisions
    bundle: Path
    profile: Path
    queries: Path


def read_inputs(options: SourceOptions, requested: Mapping[str, Any]) -> PlanInputs:
    """Put options and config together.

    Args:
        options: what to plan. No erless.yaml changes a reference workload; where only erless.yaml
            says what to plan, the plan goes to plan.json.
        requested: options named as `PlanRequest`'s fields, without those left out.

    Raises:
        ConfigError: erless.yaml has a mistake.
        PlanError: options contradict each other, or a value is outside its range.
        ArtifactError: the model or profile is missing or damaged.
    """
    from erless.errors import PlanError
    from erless.plan.request import configured
    from erless.plan.source import profile_source, workload_source

    model, profile = options.model, options.profile
    requested = _exact(options, requested)
    if options.workload:
        if model or profile or options.queries:
            raise PlanError(
                "--workload plans without a model: leave out --model, --profile and --queries"
            )
        request = _request(requested, {})
        locality = DEFAULT_LOCALITY if options.locality is None else options.locality
        rows = _rows(options.rows, options.workload) if options.rows else None
        source = workload_source(options.workload, locality, request.batch, rows)
        return PlanInputs(request, source, options.prices, options.out)
    if options.log:
        if model or profile:
            raise PlanError("--log plans without a model: leave out --model and --profile")
        request = _request(requested, {})
        return PlanInputs(request, _from_logs(options, request), options.prices, options.out)
    if options.table or options.samples:
        raise PlanError("--table and --samples go with --log, where there is no model yet")
    if options.locality is not None:
        raise PlanError("--locality is a reference workload's: a profile says how hot its rows are")
    if options.rows is not None:
        raise PlanError("--rows is a reference workload's: a model has the rows that it has")
    config = project()
    written = CONFIG_FILE.exists()
    bundle, hotness = model or config.model, profile or config.profile
    _present(bundle, "model", "--model", "erless import")
    _present(hotness, "profile", "--profile", "erless profile")
    losses = _measured(options, requested, config, bundle, hotness)
    if losses is not None:
        requested = _allowed(requested, losses.precisions)
    request = _request(requested, configured(config) if written else {})
    source = profile_source(bundle, hotness, request.batch, request.stale_profile)
    if losses is not None:
        source = _with_floors(source, losses.precisions)
    implied = PLAN_FILE if written and model is None and profile is None else None
    prices = options.prices or (config.planner.prices if written else None)
    return PlanInputs(request, source, prices, options.out or implied, losses)


def _exact(options: SourceOptions, requested: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options, `--exact` being `--precision fp32`.

    Raises:
        PlanError: another precision is named, too.
    """
    from erless.errors import PlanError
    from erless.specs.plan import Precision

    if not options.exact:
        return requested
    named = [word for word in requested.get("precision", ()) if word != Precision.FP32]
    if named:
        raise PlanError(f"--exact keeps all rows fp32: leave out --precision {named[0]}")
    return {**requested, "precision": (Precision.FP32,)}


def _from_logs(options: SourceOptions, request: PlanRequest) -> PlanSource:
    """What the logs alone say of a model that is not there yet."""
    from tempfile import TemporaryDirectory

    from erless.cli.bars import bars
    from erless.cli.run import note
    from erless.plan.source import shape_source
    from erless.profile.access import profile_shape
    from erless.profile.formats import LogSource
    from erless.profile.shapes import shape_of

    logs = [LogSource.parse(text) for text in options.log or ()]
    model = shape_of(options.table or (), logs)
    for table in model.tables:
        note(f"table {table.name}: {table.rows:,} rows of dim {table.dim}")
    with TemporaryDirectory(prefix="erless-plan-") as folder, bars() as progress:
        out = Path(folder) / "profile"
        report = profile_shape(model, logs, out, samples=options.samples, progress=progress)
        for line in report.warnings:
            note(f"warning: {line}")
        for access, shares in ((hot.access, hot.shares) for hot in report.tables):
            note(
                f"table {access.table}: the hottest 1 % of its rows take {shares[1]:.0%} of "
                f"accesses, 10 % take {shares[2]:.0%}; "
                f"{1 - access.touched / access.rows:.0%} were never asked for"
            )
        return shape_source(model, out, request.batch)


def _measured(
    options: SourceOptions,
    requested: Mapping[str, Any],
    config: Config,
    bundle: Path,
    profile: Path,
) -> MeasuredLosses | None:
    """What precisions lose on the queries, and what each table may have.

    Precisions are measured where there are queries and the command line names none, or `auto`.

    Raises:
        PlanError: `auto` without queries, or beside another precision; or nothing below fp32 keeps
            to the budget.
        QueryError: the queries do not fit the model.
    """
    from erless.errors import PlanError
    from erless.specs.plan import Precision

    words = tuple(requested.get("precision", ()))
    plain = [word for word in words if "=" not in word]
    queries = options.queries or config.precision.queries
    if AUTO in plain and (len(plain) > 1 or queries is None):
        why = "names precisions itself" if queries else "needs --queries, to measure what is lost"
        raise PlanError(f"--precision {AUTO} {why}")
    if queries is None or plain not in ([], [AUTO]):
        return None
    import torch

    from erless.cli.bars import bars
    from erless.pack.accuracy import AccuracyBudget, measure_precisions

    torch.set_num_threads(1)
    allowed = config.precision.allowed
    precisions = tuple(Precision) if allowed == (Precision.FP32,) else allowed
    limits = config.precision
    budget = AccuracyBudget(limits.max_auc_loss, limits.max_relative_error)
    with bars() as progress:
        found = measure_precisions(bundle, queries, precisions, budget, progress)
    if plain == [AUTO] and not found.allowed:
        least = "; ".join(str(each) for each in found.losses if not each.table)
        raise PlanError(
            f"--precision {AUTO}: nothing below fp32 keeps to the accuracy budget ({budget}), in "
            f"any table: {least}: raise precision.max_auc_loss or precision.max_relative_error in "
            f"{CONFIG_FILE}, or plan with --exact"
        )
    return MeasuredLosses(found, bundle, profile, queries)


def _allowed(requested: Mapping[str, Any], measured: MeasuredPrecisions) -> Mapping[str, Any]:
    """The options with the precisions that some table may have."""
    from erless.specs.plan import Precision

    tiers = [word for word in requested.get("precision", ()) if "=" in word]
    return {**requested, "precision": (*tiers, Precision.FP32, *measured.allowed)}


def _with_floors(source: PlanSource, measured: MeasuredPrecisions) -> PlanSource:
    """The source, no table's rows below what the queries allow it, and what they lose told."""
    tables = [
        replace(table, floor=measured.floors.get(table.spec.name, table.floor))
        for table in source.tables
    ]
    return replace(source, tables=tables, notes=[*source.notes, *measured.notes()])


def _rows(text: str, workload: str) -> int | None:
    """Rows of each table: a number, or how many times as many as the workload has.

    Raises:
        PlanError: it is neither, or below one row, or beyond what rank numbers hold.
    """
    from erless.dlrm.workload import WORKLOADS
    from erless.errors import PlanError

    reference = WORKLOADS.get(workload.lower())
    if reference is None:
        return None  # the workload's reader says which there are
    times = text.lower().endswith("x")
    try:
        value = float(text[:-1] if times else text) * (reference.rows if times else 1)
    except ValueError:
        raise PlanError(f"--rows {text}: neither a number of rows nor one like 10x") from None
    if not 1 <= value <= MOST_ROWS:
        raise PlanError(f"--rows {text}: from 1 to {MOST_ROWS:,} rows of each table")
    return round(value)


def _present(path: Path, artifact: str, option: str, verb: str) -> None:
    """Say what to give before an artifact's reader says which file is missing."""
    from erless.errors import PlanError

    if not path.exists():
        missing = PlanError(f"no {artifact} at {path}: give {option}, or name it in erless.yaml")
        missing.add_note(f"`{verb}` makes one; `erless plan --workload rm1 --compare` needs none")
        raise missing


def request_like(plan: Plan, requested: Mapping[str, Any], config: Config) -> PlanRequest:
    """A request as that of `plan`: its rate, batch, objective and precisions, under the options.

    Args:
        plan: that is deployed.
        requested: options named as `PlanRequest`'s fields, without those left out.
        config: says the rest.

    Raises:
        PlanError: a value is outside its range.
    """
    from erless.plan.request import configured
    from erless.specs.plan import Precision

    planned = {
        "qps": plan.qps,
        "batch": plan.batch,
        "objective": plan.objective,
        "allowed": tuple(kind for kind in Precision if kind in {s.precision for s in plan.shards}),
        "disk": any(shard.disk for shard in plan.shards),
    }
    return _request(requested, configured(config) | planned)


def floors_like(plan: Plan, requested: Mapping[str, Any]) -> dict[str, Precision]:
    """The least exact precision of each table, where `plan` keeps some more exact than others.

    Nothing where the options name precisions themselves.
    """
    if "precision" in requested or not any(shard.exact for shard in plan.shards):
        return {}
    kinds: dict[str, Precision] = {}
    for shard in plan.shards:
        for part in shard.slices:
            kind = shard.precision_of(part.table)
            known = kinds.get(part.table, kind)
            kinds[part.table] = kind if known.at_least(kind) is known else known
    return kinds


def _request(requested: Mapping[str, Any], config: Mapping[str, Any]) -> PlanRequest:
    from pydantic import ValidationError

    from erless.errors import PlanError
    from erless.plan.request import PlanRequest
    from erless.specs.strict.findings import first_finding

    fields = {name: value for name, value in requested.items() if value or name not in SEVERAL}
    if "traffic" in fields and "qps" not in fields:
        config = {name: value for name, value in config.items() if name != "qps"}
    for option, (every, single) in BY_TIER.items():
        fields |= _by_tier(option, fields.pop(option, ()), every, single)
    floors = fields.pop("min_replicas", ())
    if len(floors) > 1:
        raise PlanError(f"--min-replicas names {' and '.join(floors)} for every function")
    fields |= {"min_replicas": floors[0]} if floors else {}
    if fields.get("equal_containers"):
        config = {name: value for name, value in config.items() if name != "objective"}
    configured = {name: value for name, value in config.items() if value is not None}
    try:
        return PlanRequest.model_validate(configured | fields)
    except ValidationError as error:
        keys, words = first_finding(error)
        option = OPTIONS.get(keys[0], keys[0]).replace("_", "-")
        raise PlanError(f"--{option}: {words}") from error


def _by_tier(option: str, words: Sequence[str], every: str, single: str) -> dict[str, Any]:
    """`VALUE` for all and `TIER=VALUE` for single tiers, apart."""
    from erless.errors import PlanError
    from erless.specs.plan import Tier

    flag = f"--{option.replace('_', '-')}"
    plain = tuple(word for word in words if "=" not in word)
    pairs = [word.split("=", 1) for word in words if "=" in word]
    tiers = [name for name, _ in pairs]
    valid = [*Tier, "gateway"] if option == "min_replicas" else [*Tier]
    wrong = [name for name in tiers if name not in valid]
    if wrong:
        raise PlanError(f"{flag} {wrong[0]}=…: no such tier; there are {', '.join(valid)}")
    twice = [name for name in tiers if tiers.count(name) > 1]
    if twice:
        raise PlanError(f"{flag} names tier {twice[0]} {tiers.count(twice[0])} times")
    return {**({every: plain} if plain else {}), **({single: dict(pairs)} if pairs else {})}
