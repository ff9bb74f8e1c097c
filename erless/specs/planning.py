"""What a plan is asked for, as `erless.yaml` and the options of `erless plan` both take it.

Each type carries its range and its meaning, so the file, the command line and the planner cannot
come to differ.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from erless.specs.plan import ObjectiveName, PolicyName, Precision, Tier

__all__ = [
    "BatchSize",
    "FanOutLimit",
    "LatencyLimit",
    "Objective",
    "Policy",
    "Precisions",
    "QueryRate",
    "ReplicaFloors",
    "ShardSizeLimit",
]

Policy = Annotated[
    PolicyName,
    Field(description="joint, or a baseline to compare with."),
]
Objective = Annotated[
    ObjectiveName,
    Field(description="What the plan minimises: whole nodes' price, or bytes."),
]
QueryRate = Annotated[float, Field(gt=0, description="Queries per second to plan for.")]
BatchSize = Annotated[int, Field(ge=1, description="Samples per query.")]
LatencyLimit = Annotated[float, Field(gt=0, description="95th percentile of latency, in ms.")]
FanOutLimit = Annotated[
    int, Field(ge=0, le=254, description="Most remote calls per query; routing is a byte per row.")
]
ShardSizeLimit = Annotated[float, Field(gt=0, description="Largest shard, in bytes.")]
ReplicaFloors = Annotated[
    dict[Tier, Annotated[int, Field(ge=0)]],
    Field(description="Fewest replicas by tier; frozen may be 0."),
]
Precisions = Annotated[
    tuple[Precision, ...], Field(description="fp32, fp16, int8, int4 (row-wise).")
]
