"""The request for a plan: every knob, filled from erless.yaml and the command line.

`erless plan` makes an option of each field: the field's type, range, description and default are
the option's. Text in brackets at the end of a description replaces the default there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, ConfigDict, Field

from erless.specs.artifact import Frozen
from erless.specs.plan import Precision, Tier
from erless.specs.planning import (
    Architectures,
    Autoscaler,
    BatchSize,
    Disk,
    FanOutLimit,
    Growth,
    LatencyLimit,
    Objective,
    Policy,
    Precisions,
    QueryRate,
    ReplicaFloors,
    ShardSizeLimit,
    Spot,
)

if TYPE_CHECKING:
    from erless.specs.config import Config

__all__ = ["Objective", "PlanRequest", "Policy", "StoredAs", "configured"]


class StoredAs(NamedTuple):
    """Precision of the rows in shards, and of those in the gateway."""

    shards: Precision
    resident: Precision


SPOT_REPLICAS = 2


def _times(value: object) -> object:
    """8.0 for "8x"."""
    if not isinstance(value, str):
        return value
    try:
        return float(value.lower().removesuffix("x"))
    except ValueError:
        raise ValueError(f"{value!r} is not a number of replicas like 8x") from None


ReplicasWorth = Annotated[float, BeforeValidator(_times)]


class PlanRequest(Frozen):
    """One request. `qps` wins over `traffic`, which counts model-wise one-vCPU replicas."""

    model_config = ConfigDict(allow_inf_nan=False)

    policy: Policy = "joint"
    objective: Objective | None = Field(
        None, description="What to minimise [dollars; memory with --equal-containers]."
    )
    qps: QueryRate | None = Field(None, description="Queries/s, instead of --traffic.")
    traffic: ReplicasWorth = Field(
        8.0, gt=0, description="8x: what eight model-wise replicas of 1 vCPU serve [8x]."
    )
    batch: BatchSize = 32
    equal_containers: bool = Field(False, description="The paper's terms: 1 vCPU each.")
    precision: Precision = Field(
        Precision.FP32,
        description="Of rows: int8, TIER=int8, or auto: by --queries; may repeat. Resident rows "
        "stay fp32 where that is no dearer [fp32].",
    )
    allowed: Precisions = Field((), description="Precisions to choose from, instead of one.")
    tier_precision: dict[Tier, Precision] = Field(
        default_factory=dict, description="Precision of single tiers, over `precision`."
    )
    shards: int | None = Field(
        None, ge=1, le=254, description="Remote functions; cuts of each table for elasticrec."
    )
    resident_share: float | None = Field(
        None, ge=0, le=1, description="Share of the gathers inside the gateway."
    )
    max_resident_bytes: float | None = Field(
        None, ge=0, description="Most bytes of rows inside one gateway."
    )
    frozen: bool = Field(False, description="Let idle rows scale to zero.")
    frozen_share: float | None = Field(
        None, gt=0, lt=1, description="Freeze so many gathers though they are not idle."
    )
    frozen_window_s: float = Field(60.0, gt=0, description="Idle time before scale to zero.")
    frozen_error_budget: float = Field(
        1e-3, ge=0, description="Share of queries that may meet a cold start."
    )
    sla_p95_ms: LatencyLimit | None = None
    max_fan_out: FanOutLimit = 254
    max_shard_bytes: ShardSizeLimit | None = None
    min_replicas: int = Field(
        1,
        ge=1,
        description="Fewest replicas: 2, TIER=2, gateway=2; may repeat [1; cold, frozen 0].",
    )
    tier_replicas: ReplicaFloors = Field(default_factory=dict)
    max_vcpu: float | None = Field(
        None, gt=0, description="Most vCPU of one container [the largest node's]."
    )
    utilisation: float | None = Field(
        None, gt=0, le=1, description="Share of a container's vCPU to plan for [0.7]."
    )
    arch: Architectures = ("amd64",)
    spot: Spot = False
    disk: Disk = False
    dense: Literal["auto", "gateway", "function", "gpu"] = Field(
        "auto", description="Where the dense tower runs."
    )
    tower_ms: float | None = Field(None, ge=0, description="CPU ms of the dense tower per query.")
    target_utilisation: float = Field(
        0.7, gt=0, le=1, description="Share of its target at which Knative adds a replica."
    )
    scale_window_s: float = Field(60.0, gt=0, description="Window of autoscaling.")
    autoscaler: Autoscaler = "kpa"
    growth: Growth = 2.0
    peak: float = Field(2.0, ge=1, description="Most replicas, in times of the planned ones.")
    stale_profile: bool = Field(False, description="Accept another bundle's profile.")

    @property
    def floor(self) -> int:
        """Fewest replicas of what serves; a spot node may be lost while its replacement starts."""
        return max(self.min_replicas, SPOT_REPLICAS) if self.spot else self.min_replicas

    @property
    def shaped(self) -> bool:
        """Whether the shape of the joint policy's layout is demanded, not chosen."""
        knobs = (self.shards, self.resident_share, self.max_resident_bytes, self.frozen_share)
        return any(knob is not None for knob in knobs)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Precisions to try below the resident tier."""
        return self.allowed or (self.precision,)

    @property
    def resident_precisions(self) -> tuple[Precision, ...]:
        """Precisions that the rows inside the gateway may have, the most exact first."""
        fixed = self.tier_precision.get(Tier.RESIDENT)
        if fixed is not None:
            return (fixed,)
        return tuple(kind for kind in Precision if kind in (Precision.FP32, *self.precisions))

    @property
    def stored(self) -> tuple[StoredAs, ...]:
        """Pairs to try: resident rows as exact as may be, or as the rows in shards."""
        first = self.resident_precisions[0]
        pairs = [
            StoredAs(kind, resident)
            for kind in self.precisions
            for resident in (first, kind)
            if resident in self.resident_precisions
        ]
        return tuple(dict.fromkeys(pairs))

    @property
    def smallest(self) -> StoredAs:
        """The precisions of fewest bytes that rows may have; lower bounds rest on them."""
        below = [kind for tier, kind in self.tier_precision.items() if tier != Tier.RESIDENT]
        return StoredAs(
            min((*self.precisions, *below), key=_row_bytes),
            min(self.resident_precisions, key=_row_bytes),
        )

    @property
    def freezes(self) -> bool:
        """Whether a frozen tier is wanted."""
        return self.frozen or self.frozen_share is not None

    @property
    def aim(self) -> Objective:
        """The objective."""
        return self.objective or ("memory" if self.equal_containers else "dollars")


def _row_bytes(kind: Precision) -> int:
    return kind.row_bytes(1024)


def configured(config: Config) -> dict[str, Any]:
    """What erless.yaml says of the request: its keys are named as the request's fields."""
    written: dict[str, Any] = {}
    for section in (config.traffic, config.planner, config.precision):
        for name in type(section).model_fields:
            if name in PlanRequest.model_fields and name != "min_replicas":
                written[name] = getattr(section, name)
    return written | {"tier_replicas": config.planner.min_replicas}
