"""What a plan is asked for: every knob, filled from erless.yaml and the command line."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from erless.specs.artifact import Frozen
from erless.specs.plan import Precision, Tier

__all__ = ["Objective", "PlanRequest", "Policy"]

Policy = Literal["model-wise", "table-wise", "elasticrec", "joint"]
Objective = Literal["memory", "dollars"]


class PlanRequest(Frozen):
    """One request. `qps` wins over `traffic`, which counts model-wise one-vCPU replicas."""

    policy: Policy = "joint"
    objective: Objective | None = Field(None, description="None: memory if equal containers")
    qps: float | None = Field(None, description="queries per second, λ")
    traffic: float = Field(8.0, description="times what one model-wise replica of 1 vCPU serves")
    batch: int = Field(32, ge=1, description="samples per query")
    equal_containers: bool = Field(False, description="the paper's terms")
    precision: Precision = Field(Precision.FP32, description="below the resident tier")
    allowed: tuple[Precision, ...] = Field((), description="to choose from, instead of one")
    tier_precision: dict[Tier, Precision] = Field(
        default_factory=dict, description="of single tiers, over `precision`"
    )
    shards: int | None = Field(
        None,
        ge=1,
        le=254,
        description="remote functions (joint), or cuts of each table (elasticrec)",
    )
    resident_share: float | None = Field(None, ge=0, le=1, description="of gathers, in the gateway")
    max_resident_bytes: float | None = Field(None, ge=0, description="of rows in one gateway")
    frozen_share: float | None = Field(
        None, gt=0, lt=1, description="gathers whose rows freeze although they are not idle"
    )
    frozen: bool = Field(False, description="let idle rows scale to zero")
    frozen_window_s: float = Field(60.0, gt=0, description="idle time before scale to zero")
    frozen_error_budget: float = Field(1e-3, ge=0, description="queries that may meet a cold start")
    sla_p95_ms: float | None = Field(None, gt=0)
    max_fan_out: int = Field(254, ge=0, le=254, description="routing is one byte per row")
    max_shard_bytes: float | None = Field(None, gt=0)
    min_replicas: int = Field(1, ge=1)
    tier_replicas: dict[Tier, int] = Field(
        default_factory=dict, description="fewest replicas by tier, over min_replicas"
    )
    max_vcpu: float | None = Field(None, gt=0, description="of one container; None: the node's")
    utilisation: float | None = Field(None, gt=0, le=1)
    dense: Literal["auto", "gateway", "function", "gpu"] = Field(
        "auto", description="where the dense tower runs"
    )
    tower_ms: float | None = Field(None, ge=0, description="CPU of the dense tower per query")
    target_utilisation: float = Field(0.7, gt=0, le=1, description="Knative's")
    scale_window_s: float = Field(60.0, gt=0)
    peak: float = Field(2.0, ge=1, description="max scale ÷ planned replicas")
    stale_profile: bool = Field(False, description="accept another bundle's profile")

    @property
    def shaped(self) -> bool:
        """Whether the shape of the joint policy's layout is demanded, not chosen."""
        knobs = (self.shards, self.resident_share, self.max_resident_bytes, self.frozen_share)
        return any(each is not None for each in knobs)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Precisions to try below the resident tier."""
        return self.allowed or (self.precision,)

    @property
    def resident_precision(self) -> Precision:
        """Precision of the rows inside the gateway."""
        return self.tier_precision.get(Tier.RESIDENT, Precision.FP32)

    @property
    def smallest(self) -> Precision:
        """The precision of fewest bytes that any shard may have; lower bounds rest on it."""
        below = [kind for tier, kind in self.tier_precision.items() if tier != Tier.RESIDENT]
        return min((*self.precisions, *below), key=lambda kind: kind.row_bytes(1024))

    @property
    def freezes(self) -> bool:
        """Whether a frozen tier is wanted."""
        return self.frozen or self.frozen_share is not None

    @property
    def aim(self) -> Objective:
        """The objective."""
        return self.objective or ("memory" if self.equal_containers else "dollars")
