"""Pods: what a function's container gets, may do, and how Kubernetes sees that it lives.

Loading is not dying: liveness asks `/v2/health/live`, which answers as soon as the process
listens; readiness asks `/v2/health/ready`, which answers once every byte is loaded and verified.

Readiness has a period of its own because Knative's default, none, makes the kubelet ask every 10 s
and take the third failure: a hung gateway kept its share of the queries for 27 s (measured, Knative
1.23). What wakes does not wait for it: the activator asks by itself.

A process that hangs is found within LIVENESS_S. It ignores SIGTERM, so its pod then lives on for
the whole termination grace, which Knative sets to the revision's `timeoutSeconds`
(knative/serving pkg/reconciler/revision/resources/deploy.go). A function that never reaches zero
therefore gets a timeout just above its drain, not one that a cold start would fit into.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.errors import ConfigError
from erless.specs.functions import FunctionKind

__all__ = [
    "CONTAINER",
    "DRAIN_S",
    "MIB",
    "PORT",
    "SECRET_KEY",
    "STORE_MOUNT",
    "Needs",
    "identity_environment",
    "load_s",
    "millicores",
    "mount_identity",
    "placed_pod",
    "pod",
    "restricted",
    "timeout_s",
]

MIB = 1 << 20
PORT = 8080
CONTAINER = "user-container"  # as Knative calls it
USER = 65532  # distroless' and our images' `nonroot`
CACHE_MOUNT, STORE_MOUNT, TMP_MOUNT = "/var/cache/erless", "/var/lib/erless/store", "/tmp"  # noqa: S108
MARGIN_SHARE, MARGIN_BYTES = 0.1, 64 * MIB  # buffers, the allocator, sockets under load
START_S = 10.0  # process start and connecting to the store, with a wide margin
# The shortest termination grace. A hung process is found within 10 s and killed after its grace;
# with 5 s to start again that is within the 30 s that a query waits by default, so none fails of
# it. Nor does one when a pod ends: Knative's preStop hook holds SIGTERM back until its queue-proxy
# has had no request for 30 s, or the grace is over, and the function serves on meanwhile. Its own
# drain comes after that, with the kubelet's least grace, 2 s. (Measured on Knative 1.23's
# queue-proxy: with 30 s of grace queries on a hung shard failed after 30 s, with 15 s they were
# answered.)
TIMEOUT_S = 15
COLD_TIMEOUT_S = 30  # the shortest where a pod may have to be scheduled first: the default deadline
DRAIN_S = 10  # the longest drain after SIGTERM
# A hung process is killed within period × threshold + timeout = 10 s.
LIVENESS_PERIOD_S, LIVENESS_FAILURES, LIVENESS_TIMEOUT_S = 2, 4, 2
# A hung replica gets no new queries after period + threshold × timeout = 5 s.
READINESS_PERIOD_S, READINESS_FAILURES, READINESS_TIMEOUT_S = 1, 2, 2
LISTENING_S = 30  # the slowest start of a process up to listening, torch on a throttled node
SECRET_KEY = "secret"  # noqa: S105 - the name of a field
SECRET_MOUNT = "/var/run/erless"  # noqa: S105
IDENTITY_MOUNT = "/var/run/erless-identity"


@dataclass(frozen=True, slots=True)
class Needs:
    """What one replica needs: memory for rows, index and code, disk for what it fetches."""

    vcpu: float
    memory_bytes: int
    disk_bytes: int
    gpus: int = 0
    keeps_files: bool = False  # it reads its files as it serves: the node's disk is shared out

    @property
    def memory_mib(self) -> int:
        """Memory to reserve: the plan's and a margin, in MiB."""
        margin = max(MARGIN_SHARE * self.memory_bytes, MARGIN_BYTES)
        return math.ceil((self.memory_bytes + margin) / MIB)

    @property
    def cache_mib(self) -> int:
        """Room for the files of one function, in MiB."""
        return math.ceil((self.disk_bytes * (1 + MARGIN_SHARE) + MARGIN_BYTES) / MIB)


def load_s(size_bytes: int, settings: ClusterSettings) -> float:
    """Longest start of a function that loads `size_bytes`, in s."""
    return START_S + size_bytes / (settings.options.load_mb_per_s * 1e6)


def timeout_s(size_bytes: int, settings: ClusterSettings, *, reaches_zero: bool) -> int:
    """Longest answer of a function, in s.

    Ten times the objective is for the query itself. A function at zero answers its first query
    after a cold start; one that always runs needs no more than its termination grace.
    """
    query_s = 10 * settings.sla_ms / 1e3
    if not reaches_zero:
        return max(math.ceil(query_s), TIMEOUT_S)
    return max(math.ceil(load_s(size_bytes, settings) + query_s), COLD_TIMEOUT_S)


def pod(
    kind: FunctionKind,
    role: str,
    needs: Needs,
    environment: dict[str, str],
    settings: ClusterSettings,
    store: str,
) -> dict[str, Any]:
    """The pod's part of a revision's spec: one container, its volumes, where it may run.

    Raises:
        ConfigError: no image, or one without a digest.
    """
    volumes, mounts = _volumes(needs, settings, store)
    # Knative allows one port, and its proxies speak HTTP/2 to one that is named so, whatever their
    # clients speak. The gateway serves HTTP and gRPC on both versions of HTTP.
    protocol = "h2c" if kind == "gateway" and settings.gateway.grpc else "http1"
    return {
        **placed_pod(role, settings),
        "containers": [
            {
                "name": CONTAINER,
                "image": settings.image(kind),
                "ports": [{"name": protocol, "containerPort": PORT, "protocol": "TCP"}],
                "env": _environment(environment | _where(settings, store), kind, settings),
                **_credentials(settings),
                "resources": _resources(needs, settings, _kept_mib(needs, settings, store)),
                **_probes(),
                **restricted(),
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }


def placed_pod(role: str, settings: ClusterSettings) -> dict[str, Any]:
    """What the pods of all our work have in common: whose rights they have, and where they run."""
    options, place = settings.options, settings.place(role)
    spec: dict[str, Any] = {
        "serviceAccountName": options.service_account,
        "automountServiceAccountToken": False,  # nothing in a function talks to Kubernetes
        "enableServiceLinks": False,
    }
    if options.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in options.image_pull_secrets]
    if place.node_selector:
        spec["nodeSelector"] = dict(sorted(place.node_selector.items()))
    tolerations = [toleration.model_dump(exclude_none=True) for toleration in place.tolerations]
    if tolerations:
        spec["tolerations"] = tolerations
    if place.priority_class:
        spec["priorityClassName"] = place.priority_class
    return spec


def identity_environment(kind: FunctionKind, settings: ClusterSettings) -> dict[str, str]:
    """The variables by which a function finds its certificate and knows those of others."""
    return {
        "ERLESS_IDENTITY": IDENTITY_MOUNT,
        "ERLESS_IDENTITY_PREFIX": settings.identity_prefix,
        # the kubelet, which probes, and Prometheus have no certificate
        **({} if kind == "gateway" else {"ERLESS_OPEN_READS": "1"}),
    }


def mount_identity(spec: dict[str, Any], kind: FunctionKind, secret: str) -> None:
    """Let the pod of `spec` have the certificate in `secret`: functions then speak TLS."""
    (container,) = spec["containers"]
    spec["volumes"].append({"name": "identity", "secret": {"secretName": secret}})
    mount = {"name": "identity", "mountPath": IDENTITY_MOUNT, "readOnly": True}
    container["volumeMounts"].append(mount)
    if kind != "gateway":
        for probe in ("readinessProbe", "livenessProbe"):
            container[probe]["httpGet"]["scheme"] = "HTTPS"


def _probes() -> dict[str, Any]:
    """When the container is ready, and when it is to be ended."""
    return {
        "readinessProbe": {
            "httpGet": {"path": "/v2/health/ready", "port": PORT, "scheme": "HTTP"},
            "periodSeconds": READINESS_PERIOD_S,
            "timeoutSeconds": READINESS_TIMEOUT_S,
            "failureThreshold": READINESS_FAILURES,
            "successThreshold": 1,
        },
        "livenessProbe": {
            "httpGet": {"path": "/v2/health/live", "port": PORT, "scheme": "HTTP"},
            "initialDelaySeconds": LISTENING_S,
            "periodSeconds": LIVENESS_PERIOD_S,
            "timeoutSeconds": LIVENESS_TIMEOUT_S,
            "failureThreshold": LIVENESS_FAILURES,
            "successThreshold": 1,
        },
    }


def restricted() -> dict[str, Any]:
    """What a container may do: what the Pod Security Standard `restricted` allows."""
    return {
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    }


def _where(settings: ClusterSettings, store: str) -> dict[str, str]:
    """Where the weights are, and where they are kept."""
    values = {
        "ERLESS_HOST": "::",  # IPv6 and IPv4, whichever addresses the cluster gives its pods
        "ERLESS_DRAIN_S": str(DRAIN_S),
        "ERLESS_SECRET_FILE": f"{SECRET_MOUNT}/{SECRET_KEY}",
        "ERLESS_STORE": store if store.startswith("s3://") else STORE_MOUNT,
        "ERLESS_LOG": "info",
        **settings.traces.environment,
    }
    if store.startswith("s3://"):
        values["ERLESS_CACHE"] = CACHE_MOUNT
        if settings.options.endpoint_url:
            values["ERLESS_ENDPOINT_URL"] = settings.options.endpoint_url
        if settings.options.region:
            values["AWS_REGION"] = settings.options.region
    return values


def _environment(
    values: dict[str, str], kind: FunctionKind, settings: ClusterSettings
) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = [
        {"name": name, "value": value} for name, value in sorted(values.items())
    ]
    if kind == "gateway" and settings.options.token_secret:
        source = {"name": settings.options.token_secret, "key": "token"}
        listed.append({"name": "ERLESS_TOKEN", "valueFrom": {"secretKeyRef": source}})
    return listed


def _credentials(settings: ClusterSettings) -> dict[str, Any]:
    """Keys from a Secret where pods have no role of their own."""
    secret = settings.options.credentials_secret
    return {"envFrom": [{"secretRef": {"name": secret}}]} if secret else {}


def _kept_mib(needs: Needs, settings: ClusterSettings, store: str) -> int:
    """MiB of its node's disk that a pod keeps while it serves; 0 where that is another's disk."""
    own = store.startswith("s3://") and not settings.options.cache_claim
    return needs.cache_mib if needs.keeps_files and own else 0


def _resources(needs: Needs, settings: ClusterSettings, kept_mib: int) -> dict[str, dict[str, str]]:
    options = settings.options
    memory = f"{needs.memory_mib}Mi"
    requests = {"cpu": millicores(needs.vcpu / options.cpu_overcommit), "memory": memory}
    limits = {"memory": memory}
    if options.cpu_limits:
        limits["cpu"] = millicores(needs.vcpu)
    if kept_mib:
        limits["ephemeral-storage"] = requests["ephemeral-storage"] = f"{kept_mib}Mi"
    if needs.gpus:
        limits[options.gpu_resource] = str(needs.gpus)
        requests[options.gpu_resource] = str(needs.gpus)
    return {"requests": requests, "limits": limits}


def millicores(vcpu: float) -> str:
    """vCPU in Kubernetes' words; 10m is the smallest difference that the scheduler makes.

    >>> millicores(2.0), millicores(0.25)
    ('2', '250m')
    """
    milli = max(math.ceil(round(vcpu * 1000, 3)), 10)
    return str(milli // 1000) if milli % 1000 == 0 else f"{milli}m"


def _volumes(
    needs: Needs, settings: ClusterSettings, store: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and their mounts: scratch, and the cache of a bucket or the store's folder."""
    options = settings.options
    volumes: list[dict[str, Any]] = [
        {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
        {"name": "secret", "secret": {"secretName": settings.scope.secret}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "tmp", "mountPath": TMP_MOUNT},
        {"name": "secret", "mountPath": SECRET_MOUNT, "readOnly": True},
    ]
    if not store.startswith("s3://"):
        volumes.append({"name": "store", **_store_source(settings, store)})
        mounts.append({"name": "store", "mountPath": STORE_MOUNT, "readOnly": True})
    elif options.cache_claim:
        claim = {"claimName": options.cache_claim}
        volumes.append({"name": "cache", "persistentVolumeClaim": claim})
        mounts.append({"name": "cache", "mountPath": CACHE_MOUNT})
    else:
        volumes.append({"name": "cache", "emptyDir": {"sizeLimit": f"{needs.cache_mib}Mi"}})
        mounts.append({"name": "cache", "mountPath": CACHE_MOUNT})
    return volumes, mounts


def _store_source(settings: ClusterSettings, store: str) -> dict[str, Any]:
    volume = settings.options.store_volume
    if volume.claim:
        return {"persistentVolumeClaim": {"claimName": volume.claim, "readOnly": True}}
    path = volume.host_path or store
    if not path.startswith("/"):
        raise ConfigError(f"store {store} is a relative folder: pods need its absolute path")
    return {"hostPath": {"path": path, "type": "Directory"}}
