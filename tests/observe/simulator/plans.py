"""Small plans with round numbers."""

from __future__ import annotations

from typing import Any

from erless.specs.plan import GatewayPlan, Plan, RankRange, Scaling, ShardPlan, Tier

GB = 10**9


def shard(name: str = "hot", rate: float = 100.0, **more: Any) -> ShardPlan:
    scaling = {"target": rate, "max_scale": 1000, **more.pop("scaling", {})}
    defaults: dict[str, Any] = {
        "name": name,
        "tier": Tier.HOT,
        "slices": (RankRange(table="t", start=0, stop=9),),
        "qps_per_replica": rate,
        "memory_bytes": GB,
        "row_data_bytes": GB,
        "replicas": 1,
        "scaling": Scaling(**scaling),
    }
    return ShardPlan(**{**defaults, **more})


def plan(*shards: ShardPlan, gateway_rate: float = 1e6, **more: Any) -> Plan:
    gateway = GatewayPlan(
        qps_per_replica=gateway_rate,
        memory_bytes=GB // 10,
        scaling=Scaling(target=gateway_rate, max_scale=100),
    )
    return Plan.create(
        model_digest="m",
        profile_digest="p",
        policy="joint",
        shards=shards,
        **{"gateway": gateway, **more},
    )
