"""The functions as Knative Services: shards, dense tower, gateway.

A shard's and the tower's template says nothing about the release it was deployed for, so the next
release that holds the same content finds the same Service, warm. Only the gateway's revision names
a release, and only its traffic moves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from erless.deploy.knative.cluster_settings import ClusterSettings
from erless.deploy.knative.render.pods import Needs, check_timeout, load_s, pod, timeout_s
from erless.deploy.knative.render.scaling import scaling_annotations
from erless.deploy.kubernetes import names
from erless.deploy.target import Desired
from erless.errors import PlanError
from erless.specs.functions import FunctionKind
from erless.specs.plan import Scaling, ShardPlan
from erless.specs.release import ReleaseShard

__all__ = ["Object", "TrafficTarget", "dense_service", "gateway_service", "shard_service_object"]

Object = dict[str, Any]
API = "serving.knative.dev/v1"
# A function may answer before Knative's proxies have seen the end of the request; without this they
# then cut the answer short (golang/go#40747, seen here on loaded nodes as "unexpected EOF").
FULL_DUPLEX = {"features.knative.dev/http-full-duplex": "Enabled"}
QUEUE_PROXY = "queue.sidecar.serving.knative.dev"
QUEUE_PROXY_MILLICORES = 1000  # its limit where pods have one: throttling it lengthens every answer
LOCAL = {"networking.knative.dev/visibility": "cluster-local"}
LEAST_BYTES = 80_000_000  # m0: numpy, the server, buffers; measured 60 MB resident
WORKER_BYTES = 70_000_000  # of each worker after the first: measured 30-72 MB private
# Of a query that waits in the gateway: what shards get, pooled vectors, dense features.
QUERY_BYTES = 500_000
TORCH_BYTES = 300_000_000  # with torch, where a plan says nothing
MONOLITH_BYTES = 217_000_000  # torch, measured resident: a model-wise replica without rows
PROGRESS_S = (600, 300)  # at least; for pulling an image and adding a node
DEADLINE_S = 30.0  # docs/functions.md: of a query whose client names none


@dataclass(frozen=True, slots=True)
class TrafficTarget:
    """One line of the gateway's traffic; a tag makes the revision reachable at 0 % already."""

    revision: str
    percent: int
    tag: str = ""

    def document(self) -> Object:
        """In Knative's words."""
        tag = {"tag": self.tag} if self.tag else {}
        return {
            "revisionName": self.revision,
            "percent": self.percent,
            "latestRevision": False,
            **tag,
        }


def shard_service_object(
    desired: Desired, shard: ReleaseShard, settings: ClusterSettings
) -> Object:
    """The Service of one shard.

    Raises:
        PlanError: the plan does not know the shard.
    """
    plan = _shard_plan(desired, shard)
    needs, workers = _shard_needs(shard, plan), _shard_workers(shard, plan)
    environment = {"ERLESS_SHARD": shard.digest, "ERLESS_WORKERS": str(workers)} | _sizes(desired)
    to_zero = plan.scaling.min_scale == 0
    part = _Function(
        service=names.shard_service(shard.digest),
        name=shard.name,
        kind="sparse",
        tier=shard.tier.value,
        digest=shard.digest,
        scaling=plan.scaling,
        size_bytes=shard.size_bytes,
        timeout_s=timeout_s(shard.size_bytes, settings, reaches_zero=to_zero),
    )
    spec = pod("sparse", part.tier, needs, environment, settings, desired.store)
    service = _service(part, spec, desired, settings)
    if needs.keeps_files:
        service["metadata"]["annotations"][names.DISK] = str(shard.size_bytes)
    return service


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


def dense_service(desired: Desired, settings: ClusterSettings) -> Object | None:
    """The Service of the dense tower, or None where it runs inside the gateway."""
    plan, tower = desired.plan.dense, desired.release.tower
    if desired.plan.gateway.dense_placement == "gateway" or plan is None:
        return None
    memory = max(plan.memory_bytes, tower.size_bytes + TORCH_BYTES)
    needs = Needs(plan.vcpu, memory, tower.size_bytes, plan.gpus)
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
    part = _Function(
        service=names.dense_name(tower.sha256),
        name="dense",
        kind="dense",
        tier="dense",
        digest=tower.sha256,
        scaling=plan.scaling,
        size_bytes=tower.size_bytes,
        timeout_s=timeout_s(tower.size_bytes, settings, reaches_zero=to_zero),
    )
    spec = pod("dense", part.tier, needs, environment, settings, desired.store)
    return _service(part, spec, desired, settings)


def gateway_service(
    desired: Desired,
    settings: ClusterSettings,
    dense: Object | None,
    traffic: Sequence[TrafficTarget] = (),
) -> Object:
    """The gateway's Service, with a revision named for the release.

    Args:
        desired: release and plan.
        settings: the cluster.
        dense: the tower's Service, where it has one.
        traffic: the share of each revision; all to this release where it is empty.
    """
    release, plan = desired.release, desired.plan.gateway
    files = (release.gateway.routing, release.gateway.defaults, *release.tower_files)
    size = sum(file.size_bytes for file in (*files, *release.vocabularies))
    size += sum(shard.size_bytes for shard in release.resident)
    memory = max(plan.memory_bytes, size + LEAST_BYTES)
    memory += (math.ceil(plan.vcpu) - 1) * WORKER_BYTES
    memory += settings.gateway.max_in_flight * QUERY_BYTES
    deadline_s = _deadline_s(desired, settings)
    own_start_s = timeout_s(size, settings, reaches_zero=plan.scaling.min_scale == 0)
    part = _Function(
        service=names.GATEWAY,
        name="gateway",
        kind="gateway",
        tier="gateway",
        digest=release.digest,
        scaling=plan.scaling,
        size_bytes=size,
        timeout_s=max(math.ceil(deadline_s) + 5, own_start_s),
        public=settings.gateway.visibility == "public",
    )
    environment = _gateway_environment(desired, settings, dense, deadline_s)
    needs = Needs(plan.vcpu, memory, size)
    spec = pod("gateway", part.tier, needs, environment, settings, desired.store)
    service = _service(part, spec, desired, settings)
    copy_bytes = release.model.embedding_bytes + MONOLITH_BYTES
    service["metadata"]["annotations"][names.FULL_COPY] = str(copy_bytes)
    template = service["spec"]["template"]
    # a kept release's revision must not be collected: rollback needs it
    template["metadata"]["annotations"]["serving.knative.dev/no-gc"] = "true"
    name = names.revision_name(release.digest, template)
    template["metadata"]["name"] = name
    lines = traffic or [TrafficTarget(name, 100)]
    service["spec"]["traffic"] = [line.document() for line in lines]
    return service


def _gateway_environment(
    desired: Desired, settings: ClusterSettings, dense: Object | None, deadline_s: float
) -> dict[str, str]:
    """The gateway's own variables: the functions that it calls, its deadline and its limits."""
    options, vcpu = settings.gateway, desired.plan.gateway.vcpu
    urls = {
        shard.digest: _url(names.shard_service(shard.digest), settings)
        for shard in sorted(desired.release.remote, key=lambda shard: shard.digest)
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
    if options.grpc:
        environment["ERLESS_GRPC"] = "1"
    if dense is not None:
        environment["ERLESS_DENSE_URL"] = _url(dense["metadata"]["name"], settings)
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


def _url(service: str, settings: ClusterSettings) -> str:
    return f"http://{service}.{settings.options.namespace}.svc.cluster.local"


@dataclass(frozen=True, slots=True)
class _Function:
    """The facts in which one function's Service differs from another's.

    service: name in the cluster; name: as people and the plan call it. size_bytes: what it loads.
    timeout_s: the longest answer, a cold start included where it may be at zero.
    """

    service: str
    name: str
    kind: FunctionKind
    tier: str
    digest: str
    scaling: Scaling
    size_bytes: int
    timeout_s: int
    public: bool = False


def _service(part: _Function, spec: Object, desired: Desired, settings: ClusterSettings) -> Object:
    """A Knative Service that moves to its newest revision when that is ready.

    Raises:
        ConfigError: its cold start takes longer than Knative lets an answer take.
        PlanError: its scaling is outside Knative's bounds.
    """
    check_timeout(part.name, part.timeout_s, settings)
    labels = names.function_labels(part.kind, part.tier, part.digest)
    return {
        "apiVersion": API,
        "kind": "Service",
        "metadata": names.metadata(
            part.service,
            desired.release.digest,
            namespace=settings.options.namespace,
            labels=labels | ({} if part.public else LOCAL),
            annotations={names.DIGEST: part.digest, names.FUNCTION: part.name},
        ),
        "spec": {
            "template": {
                "metadata": {
                    "labels": dict(labels),
                    "annotations": scaling_annotations(
                        part.name, part.scaling, settings.options.min_window_s
                    )
                    | FULL_DUPLEX
                    | {names.DIGEST: part.digest}
                    | _progress_deadline(part.size_bytes, settings)
                    | _queue_proxy(settings),
                },
                "spec": {
                    "containerConcurrency": 0,  # functions bound their queues, and say Retry-After
                    "timeoutSeconds": part.timeout_s,
                    "responseStartTimeoutSeconds": part.timeout_s,
                    **spec,
                },
            },
            "traffic": [{"latestRevision": True, "percent": 100}],
        },
    }


def _progress_deadline(size_bytes: int, settings: ClusterSettings) -> dict[str, str]:
    """How long Knative waits for a revision before it calls it failed for good."""
    seconds = max(PROGRESS_S[0], math.ceil(PROGRESS_S[1] + 2 * load_s(size_bytes, settings)))
    return {"serving.knative.dev/progress-deadline": f"{seconds}s"}


def _queue_proxy(settings: ClusterSettings) -> dict[str, str]:
    """Requests and limits of Knative's container in every pod.

    Where a ResourceQuota counts memory limits, a pod with a container without one is refused. The
    limit has to hold all requests that are on their way at once, or the pod loses its way in.
    Knative 1.23's took at most 34 MiB for 100 at once, 76 for 512, 121 for 1000, 226 for 2000 and
    392 for 4000 (bodies of 100 kB; with 1 MB no more); 2000 killed it under a limit of 128 MiB.
    Each replica of the ingress lets 1024 through, which is Envoy's default.
    """
    options = settings.options
    cpu = math.ceil(1000 * options.queue_proxy_cpu / options.cpu_overcommit)
    most_mb = max(options.queue_proxy_memory_limit_mb, options.queue_proxy_memory_mb)
    values = {
        "cpu-resource-request": f"{cpu}m",
        "memory-resource-request": f"{options.queue_proxy_memory_mb}Mi",
        "memory-resource-limit": f"{most_mb}Mi",
    }
    if options.cpu_limits:
        values["cpu-resource-limit"] = f"{max(QUEUE_PROXY_MILLICORES, cpu)}m"
    return {f"{QUEUE_PROXY}/{name}": value for name, value in values.items()}
