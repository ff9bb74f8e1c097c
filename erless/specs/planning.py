"""The demands on a plan, as `erless.yaml` and the options of `erless plan` both take them.

Each type carries its range and its meaning, so the file, the command line and the planner cannot
come to differ.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from erless.specs.plan import AutoscalerName, ObjectiveName, PolicyName, Precision, Tier

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Architectures",
    "Autoscaler",
    "BatchSize",
    "Disk",
    "FanOutLimit",
    "Growth",
    "LatencyLimit",
    "Objective",
    "Policy",
    "Precisions",
    "QueryRate",
    "ReplicaFloors",
    "ShardSizeLimit",
    "Spot",
]

Architecture = Literal["amd64", "arm64"]
ARCHITECTURES: tuple[Architecture, ...] = ("amd64", "arm64")

Policy = Annotated[
    PolicyName,
    Field(description="joint, or a baseline to compare with."),
]
Objective = Annotated[
    ObjectiveName,
    Field(description="What the plan minimises: whole nodes' price, or bytes."),
]
Autoscaler = Annotated[
    AutoscalerName,
    Field(description="kpa: replicas, as Knative; status: their vCPU first, by the load's trend."),
]
Growth = Annotated[
    float,
    Field(ge=1, description="By `status` a replica grows to so many times its planned vCPU."),
]
QueryRate = Annotated[float, Field(gt=0, description="Queries per second to plan for.")]
BatchSize = Annotated[int, Field(ge=1, description="Samples per query.")]
LatencyLimit = Annotated[float, Field(gt=0, description="95th percentile of latency, in ms.")]
FanOutLimit = Annotated[
    int,
    Field(
        ge=0, le=254, description="Most remote calls per query; a row's routing has at most a byte."
    ),
]
Architectures = Annotated[
    tuple[Architecture, ...],
    Field(
        min_length=1,
        description="Nodes may be amd64, arm64 or both; the functions' images must run there.",
    ),
]
Spot = Annotated[
    bool,
    Field(
        description="Nodes at spot prices; what serves has two replicas, so that one may be lost."
    ),
]
Disk = Annotated[
    bool,
    Field(description="Rows may lie on nodes' local disks, where that costs less than memory."),
]
ShardSizeLimit = Annotated[float, Field(gt=0, description="Largest shard, in bytes.")]


def _gateway_as_tier(floors: dict[Any, int]) -> dict[Any, int]:
    """Floors with the gateway under the tier that lies inside it.

    Raises:
        ValueError: the gateway and its tier are both named.
    """
    if "gateway" not in floors:
        return floors
    if Tier.RESIDENT in floors:
        raise ValueError("gateway and resident are the same function: name one of them")
    others = {name: floor for name, floor in floors.items() if name != "gateway"}
    return {Tier.RESIDENT: floors["gateway"], **others}


ReplicaFloors = Annotated[
    dict[Tier | Literal["gateway"], Annotated[int, Field(ge=0)]],
    Field(description="Fewest replicas of the gateway and by tier; frozen may be 0."),
    AfterValidator(_gateway_as_tier),
]
Precisions = Annotated[
    tuple[Precision, ...], Field(description="fp32, fp16, int8, int4 (row-wise).")
]
