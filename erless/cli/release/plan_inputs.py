"""What `erless plan` plans for: options win, then erless.yaml where there is one, then defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.options import CONFIG_FILE, project

if TYPE_CHECKING:
    from erless.plan.request import PlanRequest
    from erless.plan.source import PlanSource
    from erless.specs.config import Config

__all__ = ["PlanInputs", "SourceOptions", "read_inputs"]

PLAN_FILE = Path("plan.json")
DEFAULT_LOCALITY = 0.9
# Options that take VALUE for all tiers and TIER=VALUE for one: the fields that they fill.
BY_TIER = {
    "precision": ("allowed", "tier_precision"),
    "min_replicas": ("min_replicas", "tier_replicas"),
}
OPTIONS = {field: option for option, filled in BY_TIER.items() for field in filled}


@dataclass(frozen=True)
class SourceOptions:
    """What is planned, and where the plan goes."""

    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model bundle [erless.yaml's].")
    ] = None
    profile: Annotated[
        Path | None, typer.Option("--profile", "-p", help="Profile of its access log [likewise].")
    ] = None
    out: Annotated[
        Path | None, typer.Option(help="Write the plan [plan.json if erless.yaml says the rest].")
    ] = None
    workload: Annotated[str | None, typer.Option(help="rm1, rm2, rm3: no weights needed.")] = None
    locality: Annotated[float | None, typer.Option(help="P of the workload [0.9].")] = None
    prices: Annotated[Path | None, typer.Option(help="Your own instance types (CSV).")] = None


@dataclass(frozen=True)
class PlanInputs:
    """The request, the model with its traffic, the user's prices, and where the plan goes."""

    request: PlanRequest
    source: PlanSource
    prices: Path | None
    out: Path | None


def read_inputs(options: SourceOptions, given: Mapping[str, Any]) -> PlanInputs:
    """Put options and config together.

    Args:
        options: what to plan. No erless.yaml changes a reference workload; where only erless.yaml
            says what to plan, the plan goes to plan.json.
        given: options named as `PlanRequest`'s fields, without those left out.

    Raises:
        ConfigError: erless.yaml has a mistake.
        PlanError: options contradict each other, or a value is outside its range.
        ArtifactError: the model or profile is missing or damaged.
    """
    from erless.errors import PlanError
    from erless.plan.source import profile_source, workload_source

    model, profile = options.model, options.profile
    if options.workload:
        if model or profile:
            raise PlanError("--workload plans without a model: leave out --model and --profile")
        request = _request(given, {})
        locality = DEFAULT_LOCALITY if options.locality is None else options.locality
        source = workload_source(options.workload, locality, request.batch)
        return PlanInputs(request, source, options.prices, options.out)
    if options.locality is not None:
        raise PlanError("--locality is a reference workload's: a profile says how hot its rows are")
    config = project()
    written = CONFIG_FILE.exists()
    request = _request(given, _from_config(config) if written else {})
    bundle, hotness = model or config.model, profile or config.profile
    _present(bundle, "model", "--model", "erless import")
    _present(hotness, "profile", "--profile", "erless profile")
    source = profile_source(bundle, hotness, request.batch, request.stale_profile)
    implied = PLAN_FILE if written and model is None and profile is None else None
    prices = options.prices or (config.planner.prices if written else None)
    return PlanInputs(request, source, prices, options.out or implied)


def _present(path: Path, what: str, option: str, verb: str) -> None:
    """Say what to give before an artifact's reader says which file is missing."""
    from erless.errors import PlanError

    if not path.exists():
        raise PlanError(
            f"no {what} at {path}: give {option}, name it in erless.yaml, or make one "
            f"with `{verb}` (--workload rm1 plans without)"
        )


def _from_config(config: Config) -> dict[str, Any]:
    """What erless.yaml says of the request: its keys are named as the request's fields."""
    from erless.plan.request import PlanRequest

    written: dict[str, Any] = {}
    for section in (config.traffic, config.planner, config.precision):
        for name in type(section).model_fields:
            if name in PlanRequest.model_fields and name not in BY_TIER:
                written[name] = getattr(section, name)
    return written | {"tier_replicas": config.planner.min_replicas}


def _request(given: Mapping[str, Any], config: Mapping[str, Any]) -> PlanRequest:
    from pydantic import ValidationError

    from erless.errors import PlanError
    from erless.plan.request import PlanRequest
    from erless.specs.strict.findings import first_finding

    fields = dict(given)
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
    known = {name: value for name, value in config.items() if value is not None}
    try:
        return PlanRequest.model_validate(known | fields)
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
    known = [*Tier, "gateway"] if option == "min_replicas" else [*Tier]
    wrong = [name for name in tiers if name not in known]
    if wrong:
        raise PlanError(f"{flag} {wrong[0]}=…: no such tier; there are {', '.join(known)}")
    twice = [name for name in tiers if tiers.count(name) > 1]
    if twice:
        raise PlanError(f"{flag} names tier {twice[0]} {tiers.count(twice[0])} times")
    return {**({every: plain} if plain else {}), **({single: dict(pairs)} if pairs else {})}
