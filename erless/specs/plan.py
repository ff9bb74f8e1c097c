"""The plan: which rows live in which function, at which precision, on how many replicas.

A plan names rows by *rank* in the profile's hotness order (`RankRange`), so it stays small at any
table size; pack turns ranks into row ids with the profile whose digest the plan carries.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_serializer, model_validator

from erless.specs.artifact import Artifact, Frozen

__all__ = [
    "AutoscalerName",
    "DensePlan",
    "DiskPlan",
    "GatewayPlan",
    "KeptShard",
    "NodeGroup",
    "ObjectiveName",
    "Plan",
    "PolicyName",
    "PolicyResult",
    "Precision",
    "RankRange",
    "Scaling",
    "ShardPlan",
    "Tier",
]


PolicyName = Literal["joint", "elasticrec", "table-wise", "model-wise"]
ObjectiveName = Literal["dollars", "memory"]
AutoscalerName = Literal["kpa", "status"]


class Tier(StrEnum):
    """How a shard is allocated: inside the gateway, or for rows that are hot to never read."""

    RESIDENT = "resident"
    HOT = "hot"
    WARM = "warm"
    COLD = "cold"
    FROZEN = "frozen"


class Precision(StrEnum):
    """How rows are stored. In int8 and int4 each row has a scale and a bias of its own, in fp16."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"

    def row_bytes(self, dim: int) -> int:
        """Bytes of one stored row of `dim` elements, with its scale and bias (fp16 each).

        >>> [precision.row_bytes(32) for precision in Precision]
        [128, 64, 36, 20]
        """
        if self is Precision.FP32:
            return 4 * dim
        if self is Precision.FP16:
            return 2 * dim
        return (dim if self is Precision.INT8 else (dim + 1) // 2) + 4

    def at_least(self, floor: Precision) -> Precision:
        """This precision, or `floor` where that is more exact.

        >>> Precision.INT8.at_least(Precision.FP16), Precision.FP32.at_least(Precision.INT4)
        (<Precision.FP16: 'fp16'>, <Precision.FP32: 'fp32'>)
        """
        return min(self, floor, key=list(Precision).index)


class RankRange(Frozen):
    """Ranks `start` … `stop - 1` of one table, hottest first."""

    table: str
    start: int = Field(ge=0)
    stop: int = Field(gt=0)

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.stop <= self.start:
            raise ValueError(f"ranks {self.start:,} … {self.stop:,} of {self.table} are none")
        return self

    @property
    def rows(self) -> int:
        """Rows in the range."""
        return self.stop - self.start


class Scaling(Frozen):
    """Autoscaling numbers in Knative's words (`autoscaling.knative.dev/*`)."""

    metric: Literal["rps", "concurrency"] = "rps"
    target: float = Field(1.0, gt=0, description="requests/s, or concurrent requests, per replica")
    target_utilisation: float = Field(0.7, gt=0, le=1)
    window_s: float = Field(60.0, gt=0)
    panic_window_percentage: float = Field(10.0, ge=1, le=100)
    panic_threshold_percentage: float = Field(200.0, ge=110, le=1000)
    max_scale_up_rate: float = Field(1000.0, gt=1)
    max_scale_down_rate: float = Field(2.0, gt=1)
    scale_down_delay_s: float = Field(0.0, ge=0)
    grace_s: float = Field(30.0, ge=0, description="scale-to-zero grace period")
    retention_s: float = Field(0.0, ge=0, description="the last replica stays at least so long")
    activation_scale: int = Field(1, ge=1, description="replicas when woken from zero")
    min_scale: int = Field(1, ge=0)
    max_scale: int = Field(1, ge=1)
    initial_scale: int = Field(1, ge=0)
    autoscaler: AutoscalerName = "kpa"
    max_vcpu: float | None = Field(
        None, gt=0, description="a replica grows to at most so much, by autoscaler status"
    )

    @model_serializer(mode="wrap")
    def _as_before(self, dump: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        """Leave out what plans did not have before there was a choice of autoscalers."""
        since = {"autoscaler": "kpa", "max_vcpu": None}
        return {
            key: value
            for key, value in dump(self).items()
            if key not in since or value != since[key]
        }

    @model_validator(mode="after")
    def _within_its_limits(self) -> Self:
        if max(self.min_scale, self.initial_scale) > self.max_scale:
            raise ValueError(
                f"min_scale {self.min_scale} and initial_scale {self.initial_scale} must not "
                f"exceed max_scale {self.max_scale}"
            )
        return self


class DiskPlan(Frozen):
    """A shard's rows lie on its node's local disk; in memory are their index and a cache."""

    cache_bytes: int = Field(ge=0, description="rows that were read, of one replica")
    reads: float = Field(0.0, ge=0, description="reads per query, those of the cache left out")
    size_bytes: int = Field(0, ge=0, description="of one replica's rows on the disk")
    reads_per_s: float = Field(0.0, ge=0, description="of one replica, at the planned rate")
    reserved_iops: float = Field(
        0.0, ge=0, description="reads per second that one replica takes of its node's disk"
    )
    latency_ms: float = Field(0.0, ge=0, description="that they add to the p95 of a query")


class KeptShard(Frozen):
    """A shard of an earlier release, taken as it is: its files hold the rows, and maybe others."""

    release: str = Field(pattern=r"^[0-9a-f]{64}$")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="of its manifest")


class ShardPlan(Frozen):
    """One shard: a function of its own, or (tier resident) rows inside every gateway replica.

    A resident shard's vCPU, memory and replicas are its gateway's: see `GatewayPlan`.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9\-]{0,39}$")
    tier: Tier
    slices: tuple[RankRange, ...] = Field(min_length=1)
    precision: Precision = Precision.FP32
    gathers: float = Field(0.0, ge=0, description="gathers per query")
    share: float = Field(0.0, ge=0, le=1.000001, description="of all gathers")
    touch_probability: float = Field(1.0, ge=0, le=1, description="a query gathers here at all")
    row_data_bytes: int = Field(0, ge=0, description="stored rows of one replica")
    memory_bytes: int = Field(0, ge=0, description="one replica, with its code")
    vcpu: float = Field(1.0, gt=0, description="one replica")
    replicas: int = Field(1, ge=0)
    min_replicas: int = Field(1, ge=0)
    qps_per_replica: float = Field(0.0, ge=0, description="at 100 % of its vCPU")
    scaling: Scaling = Scaling()
    usd_per_month: float = Field(0.0, ge=0, description="its part of the nodes")
    binding: str = Field("", description="what fixes its cut")
    disk: DiskPlan | None = Field(None, description="where its rows are read from a local disk")
    kept: KeptShard | None = Field(None, description="where it is not packed anew")
    exact: dict[str, Precision] = Field(
        default_factory=dict, description="precision of single tables, more exact than the others"
    )

    @model_serializer(mode="wrap")
    def _as_before(self, dump: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        """Leave out what there is none of, as plans did before there were any."""
        later = ("disk", "kept", "exact")
        return {key: value for key, value in dump(self).items() if value or key not in later}

    @model_validator(mode="after")
    def _not_inside_the_gateway(self) -> Self:
        if self.disk is not None and self.tier is Tier.RESIDENT:
            raise ValueError(f"shard {self.name} is resident: its rows cannot lie on a disk")
        if self.kept is not None and self.tier is Tier.RESIDENT:
            raise ValueError(f"shard {self.name} is resident: it cannot be kept")
        return self

    @property
    def rows(self) -> int:
        """Rows of one copy."""
        return sum(part.rows for part in self.slices)

    def precision_of(self, table: str) -> Precision:
        """How the rows of one of its tables are stored."""
        return self.exact.get(table, self.precision)


class GatewayPlan(Frozen):
    """The gateway, with the dense tower inside unless `dense_placement` is `function`.

    Resident rows count in its memory and load.
    """

    dense_placement: Literal["gateway", "function"] = "gateway"
    vcpu: float = Field(1.0, gt=0)
    replicas: int = Field(1, ge=1)
    memory_bytes: int = Field(0, ge=0, description="one replica")
    qps_per_replica: float = Field(0.0, ge=0)
    scaling: Scaling = Scaling()
    usd_per_month: float = Field(0.0, ge=0)


class DensePlan(Frozen):
    """The dense tower as a function of its own; concurrency target by Little's law."""

    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    gpus: int = Field(0, ge=0, description="one replica")
    vcpu: float = Field(1.0, gt=0, description="one replica")
    replicas: int = Field(1, ge=0)
    memory_bytes: int = Field(0, ge=0, description="one replica")
    qps_per_replica: float = Field(0.0, ge=0)
    max_batch: int = Field(256, ge=1, description="samples that one forward pass takes")
    max_delay_ms: float = Field(1.0, ge=0, description="a query waits for others at most so long")
    scaling: Scaling = Scaling(metric="concurrency")
    usd_per_month: float = Field(0.0, ge=0)


class NodeGroup(Frozen):
    """`count` nodes of one instance type."""

    instance_type: str
    count: int = Field(ge=1)
    usd_per_hour: float = Field(ge=0, description="of one node")
    arch: Literal["amd64", "arm64"] = "amd64"
    spot: bool = Field(False, description="may be taken back at any time")


class PolicyResult(Frozen):
    """Size and cost of one policy's plan: a row of `erless plan --compare`."""

    policy: PolicyName
    memory_bytes: int
    memory_reduction: float = Field(description="model-wise memory ÷ this")
    memory_utility: float = Field(description="share of allocated rows that 1,000 queries touch")
    functions: int = Field(description="sparse functions, and the gateway")
    containers: int
    fan_out: int
    vcpu: float
    nodes: int
    usd_per_month: float
    predicted_p95_ms: float
    lower_bound: float = Field(description="of the objective: bytes, or dollars per month")
    lower_bound_gap: float = Field(description="objective ÷ lower bound - 1")
    feasible: bool = True
    precisions: tuple[Precision, ...] = Field((), description="of rows, the most exact first")
    disk_bytes: int = Field(0, description="rows on nodes' disks, all replicas")
    disk_reads_per_s: float = Field(0.0, description="of all replicas, at the planned rate")
    disk_latency_ms: float = Field(0.0, description="that reads add to the p95 of a query")


class Plan(Artifact):
    """All shards of a release. Every row of every table is in exactly one of them."""

    KIND: ClassVar[str] = "erless plan"

    model_digest: str
    profile_digest: str
    policy: PolicyName
    shards: tuple[ShardPlan, ...]
    gateway: GatewayPlan = GatewayPlan()
    dense: DensePlan | None = Field(None, description="where dense_placement is `function`")
    objective: ObjectiveName = "dollars"
    qps: float = Field(0.0, ge=0)
    batch: int = Field(32, ge=1)
    nodes: tuple[NodeGroup, ...] = ()
    result: PolicyResult | None = None
    policies: tuple[PolicyResult, ...] = ()
    assumptions: dict[str, str] = Field(default_factory=dict)
    curve: str = ""
    curve_shipped: bool = True
    prices_date: str = ""
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [shard.name for shard in self.shards]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"the plan has two shards called {twice}")
        if (self.dense is not None) != (self.gateway.dense_placement == "function"):
            raise ValueError(
                f"dense_placement is {self.gateway.dense_placement}, and the plan has "
                f"{'a' if self.dense else 'no'} dense function"
            )
        return self
