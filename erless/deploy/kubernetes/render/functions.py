"""The functions of a release on a cluster: shards, dense tower, gateway, and what each needs.

A shard and the tower say nothing about the release they are deployed for, so the next release that
holds the same content finds the same function, warm. Only the gateway names a release.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.deploy.kubernetes.render.cluster_function import ClusterFunction, service_url
from erless.deploy.kubernetes.render.pods import Needs, load_s, timeout_s
from erless.deploy.target import Desired
from erless.errors import PlanError
from erless.specs.decoys import decoy_name, planned_shard
from erless.specs.functions import FunctionKind
from erless.specs.plan import ShardPlan
from erless.specs.release import ReleaseShard

__all__ = [
    "gateway_function",
    "released_functions",
    "released_kinds",
]

LEAST_BYTES = 80_000_000  # m0: numpy, the server, buffers; measured 60 MB resident
WORKER_BYTES = 70_000_000  # of each worker after the first: measured 30-72 MB private
# Of a query that waits in the gateway: what shards get, pooled vectors, dense features.
QUERY_BYTES = 500_000
TORCH_BYTES = 300_000_000  # with torch, where a plan says nothing
MONOLITH_BYTES = 217_000_000  # torch, measured resident: a model-wise replica without rows
PROGRESS_S = (600, 300)  # at least; for pulling an image and adding a node
# The first gateway of a release waits for its functions longer than it may take to get ready: where
# they do not come it counts as failed, and gets no queries.
WAITS_ON_S = 60
DEADLINE_S = 30.0  # docs/functions.md: of a query whose client names none


def released_functions(desired: Desired, settings: ClusterSettings) -> list[ClusterFunction]:
    """Shards and decoys in the order of their digests, then the tower if it is not in the gateway.

    Beside decoys, shards that may be at zero start asleep and are named by their digests, as decoys
    do and are: neither the order of names nor the number of replicas tells one from the other.

    Raises:
        PlanError: the plan does not know a shard.
    """
    planned = [(shard, _shard_plan(desired, shard), False) for shard in desired.release.remote]
    for decoy in desired.decoys:
        like = planned_shard(desired.release, desired.plan, decoy)
        if like is not None:
            planned.append((decoy.shard, like, True))
    planned.sort(key=lambda entry: entry[0].digest)
    functions = [
        _among_decoys(_shard_function(desired, shard, plan, settings), decoy=decoy)
        if desired.decoys and plan.scaling.min_scale == 0
        else _shard_function(desired, shard, plan, settings)
        for shard, plan, decoy in planned
    ]
    dense = _dense_function(desired, settings)
    return functions if dense is None else [*functions, dense]


def released_kinds(desired: Desired) -> list[FunctionKind]:
    """The kinds of functions that a release takes."""
    kinds: list[FunctionKind] = ["gateway"]
    kinds += ["sparse"] if desired.release.remote else []
    kinds += ["dense"] if desired.plan.gateway.dense_placement == "function" else []
    return kinds


def _among_decoys(function: ClusterFunction, *, decoy: bool) -> ClusterFunction:
    """A function that may be at zero, where some of those are decoys."""
    name = decoy_name(function.tier, function.digest)
    return replace(function, name=name, starts_asleep=True, decoy=decoy)


def _shard_function(
    desired: Desired, shard: ReleaseShard, plan: ShardPlan, settings: ClusterSettings
) -> ClusterFunction:
    needs, workers = _shard_needs(shard, plan), _shard_workers(shard, plan)
    environment = {"ERLESS_SHARD": shard.digest, "ERLESS_WORKERS": str(workers)} | _sizes(desired)
    if shard.cache_bytes is None:
        environment |= settings.freshness.environment(shard.row_bytes)
        changed = settings.freshness.memory_bytes(shard.row_bytes)
        needs = replace(needs, memory_bytes=needs.memory_bytes + changed)
    to_zero = plan.scaling.min_scale == 0
    return ClusterFunction(
        service=settings.scope.shard(shard.digest),
        name=shard.name,
        kind="sparse",
        tier=shard.tier.value,
        digest=shard.digest,
        scaling=plan.scaling,
        needs=needs,
        environment=environment,
        timeout_s=timeout_s(shard.size_bytes, settings, reaches_zero=to_zero),
        progress_s=_progress_s(shard.size_bytes, settings),
        disk_bytes=shard.size_bytes if needs.keeps_files else 0,
        requests_s=plan.qps_per_replica,
    )


def _shard_needs(shard: ReleaseShard, plan: ShardPlan) -> Needs:
    """What one replica needs: its files in memory; of the disk tier index, checksums and cache."""
    more = _shard_workers(shard, plan) - 1
    if shard.cache_bytes is None:
        memory = max(plan.memory_bytes, shard.size_bytes + LEAST_BYTES) + more * WORKER_BYTES
        return Needs(plan.vcpu, memory, shard.size_bytes)
    beside = shard.size_bytes - shard.row_bytes  # each worker has a copy of its own
    memory = max(plan.memory_bytes, beside + shard.cache_bytes + LEAST_BYTES)
    memory += more * (WORKER_BYTES + beside)
    return Needs(plan.vcpu, memory, shard.size_bytes, keeps_files=True)


def _shard_workers(shard: ReleaseShard, plan: ShardPlan) -> int:
    """A process per vCPU; per two of the disk tier, where another thread of each reads."""
    return math.ceil(plan.vcpu / (1 if shard.cache_bytes is None else 2))


def _workers(vcpu: float) -> dict[str, str]:
    """A process per vCPU: each answers queries one after the other, all map the same rows."""
    return {"ERLESS_WORKERS": str(math.ceil(vcpu))}


def _dense_function(desired: Desired, settings: ClusterSettings) -> ClusterFunction | None:
    """The dense tower, or None where it runs inside the gateway."""
    plan, tower = desired.plan.dense, desired.release.tower
    if desired.plan.gateway.dense_placement == "gateway" or plan is None:
        return None
    memory = max(plan.memory_bytes, tower.size_bytes + TORCH_BYTES)
    environment = {
        "ERLESS_RELEASE": desired.release.digest,
        "ERLESS_DEVICE": plan.device,
        "ERLESS_PRECISION": plan.precision,
        "ERLESS_MAX_DELAY_MS": f"{plan.max_delay_ms:g}",
        "ERLESS_MAX_COALESCE": str(plan.max_batch),
        "ERLESS_SLA_MS": f"{settings.sla_ms:g}",
        "ERLESS_THREADS": str(max(math.floor(plan.vcpu), 1)),
    } | _sizes(desired)
    to_zero = plan.scaling.min_scale == 0
    return ClusterFunction(
        service=settings.scope.dense(tower.sha256),
        name="dense",
        kind="dense",
        tier="dense",
        digest=tower.sha256,
        scaling=plan.scaling,
        needs=Needs(plan.vcpu, memory, tower.size_bytes, plan.gpus),
        environment=environment,
        timeout_s=timeout_s(tower.size_bytes, settings, reaches_zero=to_zero),
        progress_s=_progress_s(tower.size_bytes, settings),
        requests_s=plan.qps_per_replica,
    )


def gateway_function(
    desired: Desired, settings: ClusterSettings, functions: list[ClusterFunction]
) -> ClusterFunction:
    """The gateway, which calls `functions`."""
    release, plan = desired.release, desired.plan.gateway
    files = (release.gateway.routing, release.gateway.defaults, *release.tower_files)
    size = sum(file.size_bytes for file in (*files, *release.vocabularies))
    size += sum(shard.size_bytes for shard in release.resident)
    memory = max(plan.memory_bytes, size + LEAST_BYTES)
    memory += (math.ceil(plan.vcpu) - 1) * WORKER_BYTES
    memory += settings.gateway.max_in_flight * QUERY_BYTES
    resident = sum(shard.row_bytes for shard in release.resident)
    memory += settings.freshness.memory_bytes(resident)
    deadline_s = _deadline_s(desired, settings)
    own_start_s = timeout_s(size, settings, reaches_zero=plan.scaling.min_scale == 0)
    if plan.scaling.min_scale == 0:  # where no gateway serves, the first waits for its functions
        own_start_s += math.ceil(deadline_s)
    longest_s = max(function.progress_s for function in functions) if functions else 0
    longest_s = max(longest_s, _progress_s(size, settings))
    return ClusterFunction(
        service=settings.scope.gateway,
        name="gateway",
        kind="gateway",
        tier="gateway",
        digest=release.digest,
        scaling=plan.scaling,
        needs=Needs(plan.vcpu, memory, size),
        environment=_gateway_environment(desired, settings, functions, deadline_s)
        | settings.freshness.environment(resident)
        | {
            "ERLESS_GATEWAY_URL": service_url(settings.scope.gateway, settings),
            "ERLESS_FUNCTIONS_WAIT_S": str(longest_s + WAITS_ON_S),
        },
        timeout_s=max(math.ceil(deadline_s) + 5, own_start_s),
        progress_s=longest_s,
        public=settings.gateway.visibility == "public",
        full_copy_bytes=release.model.embedding_bytes + MONOLITH_BYTES,
        requests_s=plan.qps_per_replica,
    )


def _gateway_environment(
    desired: Desired,
    settings: ClusterSettings,
    functions: list[ClusterFunction],
    deadline_s: float,
) -> dict[str, str]:
    """The gateway's own variables: the functions that it calls, its deadline and its limits."""
    options, vcpu = settings.gateway, desired.plan.gateway.vcpu
    urls = {
        function.digest: function.url(settings)
        for function in functions
        if function.kind == "sparse"
    }
    environment = {
        "ERLESS_RELEASE": desired.release.digest,
        "ERLESS_SHARD_URLS": json.dumps(urls, separators=(",", ":")),
        "ERLESS_SLA_MS": f"{settings.sla_ms:g}",
        "ERLESS_DEADLINE_MS": f"{1000 * deadline_s:.0f}",
        "ERLESS_COLD_MISS": options.cold_miss,
        "ERLESS_DEGRADED_SHARE": f"{options.degraded_share:g}",
        "ERLESS_HEDGE": "1" if options.hedge else "0",
        **settings.observe.environment,
        "ERLESS_MAX_IN_FLIGHT": str(math.ceil(options.max_in_flight / math.ceil(vcpu))),
        **_workers(vcpu),
        **_sizes(desired),
    }
    if settings.canary:
        environment["ERLESS_CANARY_SHA256"] = settings.canary
    if settings.ids_in_order:
        environment["ERLESS_IDS_IN_ORDER"] = "1"
    if options.grpc:
        environment["ERLESS_GRPC"] = "1"
    for function in functions:
        if function.kind == "dense":
            environment["ERLESS_DENSE_URL"] = function.url(settings)
    return environment


def _deadline_s(desired: Desired, settings: ClusterSettings) -> float:
    """The deadline of a query whose client names none, in s.

    It lasts for the slowest cold start among the functions that may be at zero, and for the query.
    """
    starts = [
        load_s(shard.size_bytes, settings)
        for shard in desired.release.remote
        if _shard_plan(desired, shard).scaling.min_scale == 0
    ]
    return max(DEADLINE_S, max(starts, default=0.0) + 10 * settings.sla_ms / 1e3)


def _shard_plan(desired: Desired, shard: ReleaseShard) -> ShardPlan:
    for planned in desired.plan.shards:
        if planned.name == shard.name:
            return planned
    raise PlanError(
        f"plan {desired.plan.digest[:12]} knows no shard {shard.name} of release "
        f"{desired.release.digest[:12]}"
    )


def _sizes(desired: Desired) -> dict[str, str]:
    """Limits that every function shares."""
    return {"ERLESS_MAX_BATCH": str(max(4096, desired.plan.batch))}


def _progress_s(size_bytes: int, settings: ClusterSettings) -> int:
    """How long a function that loads `size_bytes` may take to start before it counts as failed."""
    return max(PROGRESS_S[0], math.ceil(PROGRESS_S[1] + 2 * load_s(size_bytes, settings)))
