"""What `erless plan` plans for: options win, then erless.yaml where there is one, then defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erless.cli.options import CONFIG_FILE, project

if TYPE_CHECKING:
    from erless.plan.request import PlanRequest
    from erless.plan.source import PlanSource
    from erless.specs.config import Config

__all__ = ["PlanInputs", "read_inputs"]

PLAN_FILE = Path("plan.json")
DEFAULT_LOCALITY = 0.9
OPTIONS = {"allowed": "precision", "tier_precision": "precision", "tier_replicas": "min-replicas"}


@dataclass(frozen=True)
class PlanInputs:
    """The request, the model with its traffic, the user's prices, and where the plan goes."""

    request: PlanRequest
    source: PlanSource
    prices: Path | None
    out: Path | None


def read_inputs(
    given: Mapping[str, Any],
    *,
    model: Path | None,
    profile: Path | None,
    workload: str | None,
    locality: float | None,
    prices: Path | None,
    out: Path | None,
) -> PlanInputs:
    """Put options and config together.

    Args:
        given: options named as `PlanRequest`'s fields; None where left out.
        model: `--model`.
        profile: `--profile`.
        workload: `--workload`: a reference workload, which no erless.yaml changes.
        locality: `--locality`, of a workload.
        prices: `--prices`.
        out: `--out`; where only erless.yaml says what to plan, the default is plan.json.

    Raises:
        ConfigError: erless.yaml has a mistake.
        PlanError: options contradict each other, or a value is outside its range.
        ArtifactError: the model or profile is missing or damaged.
    """
    from erless.errors import PlanError
    from erless.plan.source import profile_source, workload_source

    if workload:
        if model or profile:
            raise PlanError("--workload plans without a model: leave out --model and --profile")
        request = _request(given, {})
        place = DEFAULT_LOCALITY if locality is None else locality
        return PlanInputs(request, workload_source(workload, place, request.batch), prices, out)
    if locality is not None:
        raise PlanError("--locality is a reference workload's: a profile says how hot its rows are")
    config = project()
    written = CONFIG_FILE.exists()
    request = _request(given, _from_config(config) if written else {})
    bundle, hotness = model or config.model, profile or config.profile
    _present(bundle, "model", "--model", "erless import")
    _present(hotness, "profile", "--profile", "erless profile")
    source = profile_source(bundle, hotness, request.batch, request.stale_profile)
    if out is None and written and model is None and profile is None:
        out = PLAN_FILE
    return PlanInputs(request, source, prices or (config.planner.prices if written else None), out)


def _present(path: Path, what: str, option: str, verb: str) -> None:
    """Say what to give before an artifact's reader says which file is missing."""
    from erless.errors import PlanError

    if not path.exists():
        raise PlanError(
            f"no {what} at {path}: give {option}, name it in erless.yaml, or make one "
            f"with `{verb}` (--workload rm1 plans without)"
        )


def _from_config(config: Config) -> dict[str, Any]:
    """erless.yaml's words as the request's."""
    planner = config.planner
    return {
        "qps": config.traffic.qps,
        "batch": config.traffic.batch,
        "sla_p95_ms": config.traffic.sla_p95_ms,
        "policy": planner.policy,
        "objective": planner.objective,
        "max_fan_out": planner.max_fan_out,
        "max_shard_bytes": planner.max_shard_bytes,
        "tier_replicas": planner.min_replicas,
        "allowed": config.precision.allowed,
    }


def _request(given: Mapping[str, Any], config: Mapping[str, Any]) -> PlanRequest:
    from pydantic import ValidationError

    from erless.errors import PlanError
    from erless.plan.request import PlanRequest

    fields = {name: value for name, value in given.items() if value is not None}
    if "traffic" in fields:
        fields["traffic"] = _times(str(fields["traffic"]))
        if "qps" not in fields:
            config = {name: value for name, value in config.items() if name != "qps"}
    fields |= _by_tier("precision", fields.pop("precision", ()), "allowed", "tier_precision")
    replicas = _by_tier("min-replicas", fields.pop("min_replicas", ()), "floors", "tier_replicas")
    floors = replicas.pop("floors", ())
    if len(floors) > 1:
        raise PlanError(f"--min-replicas names {' and '.join(floors)} for every function")
    fields |= replicas | ({"min_replicas": floors[0]} if floors else {})
    if fields.get("equal_containers"):
        config = {name: value for name, value in config.items() if name != "objective"}
    known = {name: value for name, value in config.items() if value is not None}
    try:
        return PlanRequest.model_validate(known | fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        where = OPTIONS.get(name, name.replace("_", "-"))
        raise PlanError(f"{where}: {first['msg']}, found {first['input']!r}") from error


def _by_tier(option: str, words: Sequence[str], every: str, single: str) -> dict[str, Any]:
    """`VALUE` for all and `TIER=VALUE` for single tiers, apart."""
    from erless.errors import PlanError
    from erless.specs.plan import Tier

    plain = tuple(word for word in words if "=" not in word)
    pairs = dict(word.split("=", 1) for word in words if "=" in word)
    wrong = [name for name in pairs if name not in set(Tier)]
    if wrong:
        raise PlanError(f"--{option} {wrong[0]}=…: no such tier; there are {', '.join(Tier)}")
    return {**({every: plain} if plain else {}), **({single: pairs} if pairs else {})}


def _times(text: str) -> float:
    from erless.errors import PlanError

    try:
        return float(text.lower().removesuffix("x"))
    except ValueError:
        raise PlanError(f"traffic {text!r} is not a number of replicas like 8x") from None
