"""A release and its plan by hand: every tier, and a dense tower of its own. No files behind it."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.deploy.target import Desired
from erless.specs.artifact import FileEntry
from erless.specs.config import Config
from erless.specs.functions import FunctionKind
from erless.specs.model import ModelSpec
from erless.specs.plan import (
    DensePlan,
    DiskPlan,
    GatewayPlan,
    Plan,
    Precision,
    RankRange,
    Scaling,
    ShardPlan,
    Tier,
)
from erless.specs.release import GatewayFiles, ReleaseManifest, ReleaseShard

KINDS: tuple[FunctionKind, ...] = ("gateway", "dense", "sparse")
IMAGES = {
    kind: f"registry.example/erless/{kind}@sha256:{hashlib.sha256(kind.encode()).hexdigest()}"
    for kind in KINDS
}
ROWS = {Tier.RESIDENT: 1_000, Tier.HOT: 9_000, Tier.COLD: 90_000, Tier.FROZEN: 900_000}


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def entry(name: str, size: int) -> FileEntry:
    return FileEntry(path=f"blobs/{digest_of(name)}.bin", size_bytes=size, sha256=digest_of(name))


def desired(
    version: str = "1",
    *,
    store: str = "s3://recs/releases",
    dense: bool = False,
    changed: tuple[Tier, ...] = (Tier.COLD,),
    hot_min_scale: int = 2,
    gateway_min_scale: int = 1,
    on_disk: tuple[Tier, ...] = (),
    model: str = "ranker",
) -> Desired:
    """Release `version`; between versions only the shards of the tiers in `changed` differ."""
    start, shards, released = 0, [], []
    for tier, rows in ROWS.items():
        disk = DiskPlan(cache_bytes=1_000_000) if tier in on_disk else None
        lowest = {Tier.RESIDENT: 1, Tier.HOT: hot_min_scale}.get(tier, 0)
        shards.append(
            ShardPlan(
                name=f"{tier.value}-0",
                tier=tier,
                slices=(RankRange(table="items", start=start, stop=start + rows),),
                memory_bytes=100_000_000 + (0 if disk else 128 * rows),
                disk=disk,
                vcpu=0.5,
                replicas=2,
                scaling=Scaling(target=700.0, min_scale=lowest, max_scale=8, initial_scale=2),
            )
        )
        start += rows
        content = f"{tier.value}-{version if tier in changed else '1'}"
        released.append(
            ReleaseShard(
                name=f"{tier.value}-0",
                tier=tier,
                precision=Precision.FP32,
                digest=digest_of(content),
                tables=("items",),
                rows=rows,
                row_bytes=128 * rows,
                size_bytes=128 * rows + 4096,
                largest_error=0.0,
                cache_bytes=disk.cache_bytes if disk else None,
            )
        )
    tower = DensePlan(
        device="cuda",
        precision="bf16",
        gpus=1,
        vcpu=2.0,
        memory_bytes=2_000_000_000,
        scaling=Scaling(metric="concurrency", target=6.5, max_scale=4),
    )
    plan = Plan.create(
        model_digest=digest_of("model"),
        profile_digest=digest_of("profile"),
        policy="joint",
        shards=tuple(shards),
        gateway=GatewayPlan(
            dense_placement="function" if dense else "gateway",
            vcpu=1.0,
            memory_bytes=400_000_000,
            scaling=Scaling(
                metric="concurrency", target=4.6, min_scale=gateway_min_scale, max_scale=12
            ),
        ),
        dense=tower if dense else None,
        qps=100.0,
    )
    release = ReleaseManifest.create(
        bundle_digest=digest_of(f"bundle {version}"),
        plan_digest=plan.digest,
        profile_digest=digest_of("profile"),
        model=ModelSpec.model_validate(
            {
                "name": model,
                "tables": [{"name": "items", "rows": start, "dim": 32, "pooling": "sum"}],
                "dense_features": 13,
                "tower": {"kind": "dlrm", "bottom_mlp": [32], "top_mlp": [1]},
            }
        ),
        shards=tuple(released),
        gateway=GatewayFiles(routing=entry("routing", start), defaults=entry("defaults", 640)),
        tower=entry("tower", 1_000_000),
        bundle=entry("model.json", 900),
        plan=entry("plan.json", 900),
        profile=entry("profile.json", 900),
    )
    return Desired(store, release, plan)


def plain_settings(**options: object) -> ClusterSettings:
    """A cluster with `options` under targets.kubernetes."""
    config = Config.model_validate({"targets": {"kubernetes": {"images": IMAGES, **options}}})
    return ClusterSettings(config.targets.kubernetes, config.targets.kubernetes.images)


def cluster_settings(**options: object) -> ClusterSettings:
    """A cluster with `options` under targets.knative."""
    config = Config.model_validate({"targets": {"knative": {"images": IMAGES, **options}}})
    return ClusterSettings(config.targets.knative, config.targets.knative.images)


def with_status(wanted: Desired) -> Desired:
    """The same by a plan whose shards grow, from half a vCPU and 400 requests/s."""
    shards = tuple(
        shard.model_copy(
            update={
                "qps_per_replica": 400.0,
                "scaling": shard.scaling.model_copy(
                    update={"autoscaler": "status", "max_vcpu": 1.5}
                ),
            }
        )
        for shard in wanted.plan.shards
    )
    return replace(wanted, plan=wanted.plan.model_copy(update={"shards": shards}))
