"""One function of a release on a cluster, whichever objects stand for it there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.deploy.kubernetes.pod_sizing import PodSizing
from erless.deploy.kubernetes.render.pods import (
    Needs,
    identity_environment,
    mount_identity,
    pod,
)
from erless.specs.functions import FunctionKind
from erless.specs.plan import Scaling

__all__ = ["HTTPS_PORT", "ClusterFunction", "Object", "service_url"]

Object = dict[str, Any]
HTTPS_PORT = 443


@dataclass(frozen=True, slots=True)
class ClusterFunction:
    """One function of a release, whichever objects stand for it on the cluster.

    service: its name in the cluster; name: as people and the plan call it. timeout_s: the longest
    answer, a cold start included where it may be at zero. progress_s: how long it may take to get
    ready before it counts as failed. disk_bytes: files that a replica reads from its node's disk as
    it serves. full_copy_bytes: of one replica of the whole model; the gateway's only. port: where
    the gateway calls it. requests_s: what one replica of its planned size can serve. starts_asleep:
    deploying it starts none. decoy: nobody calls it, and no object says so.
    """

    service: str
    name: str
    kind: FunctionKind
    tier: str
    digest: str
    scaling: Scaling
    needs: Needs
    environment: Mapping[str, str]
    timeout_s: int
    progress_s: int
    public: bool = False
    disk_bytes: int = 0
    full_copy_bytes: int = 0
    port: int = 80
    requests_s: float = 0.0
    starts_asleep: bool = False
    decoy: bool = False

    def url(self, settings: ClusterSettings) -> str:
        """Where the gateway calls it."""
        return service_url(self.service, settings, self.port)

    @property
    def identity(self) -> str:
        """The end of the URI in its certificate (erless/serve/identity.py)."""
        kind = self.kind
        return kind if kind == "gateway" else f"{kind}-{names.short(self.digest)}"

    @property
    def identity_secret(self) -> str:
        """The Secret with its certificate."""
        return f"{self.service}-tls"

    def sizing(self, settings: ClusterSettings) -> PodSizing | None:
        """What `erless autoscale` has to know of it; None where its pods keep their size."""
        scaling, vcpu = self.scaling, self.needs.vcpu
        wanted = settings.options.resize and scaling.autoscaler == "status"
        if not wanted or not self.requests_s:
            return None
        return PodSizing(
            function=self.name,
            vcpu=vcpu,
            # a process for each planned vCPU, of which none uses more than one
            most_vcpu=max(vcpu, min(scaling.max_vcpu or vcpu, math.ceil(vcpu))),
            requests_per_vcpu_s=self.requests_s / vcpu,
            utilisation=scaling.target_utilisation,
            overcommit=settings.options.cpu_overcommit,
        )

    def pod_notes(self, settings: ClusterSettings) -> dict[str, str]:
        """Annotations of its pods: which content they have, and how their size may change."""
        sizing = self.sizing(settings)
        sized = {names.SIZING: sizing.model_dump_json()} if sizing else {}
        return {names.DIGEST: self.digest} | sized

    def labels(self, settings: ClusterSettings) -> dict[str, str]:
        """Of the function and of its pods."""
        own = names.function_labels(self.kind, self.tier, self.digest)
        return own | settings.scope.labels

    def metadata(
        self, release: str, settings: ClusterSettings, *, name: str = "", **labels: str
    ) -> Object:
        """Of the object that stands for the function, applied for `release`.

        Args:
            release: the digest.
            settings: the cluster.
            name: where that is not the name of its Service.
            labels: beside those of the function.
        """
        notes = {names.DIGEST: self.digest, names.FUNCTION: self.name}
        if self.disk_bytes:
            notes[names.DISK] = str(self.disk_bytes)
        if self.full_copy_bytes:
            notes[names.FULL_COPY] = str(self.full_copy_bytes)
        return names.metadata(
            name or self.service,
            release,
            namespace=settings.options.namespace,
            labels=self.labels(settings) | labels,
            annotations=notes,
        )

    def pod(self, settings: ClusterSettings, store: str) -> Object:
        """Its pods' spec. Raises ConfigError: no image, or one without a digest."""
        environment = dict(self.environment)
        if settings.mutual_tls:
            environment |= identity_environment(self.kind, settings)
        spec = pod(self.kind, self.tier, self.needs, environment, settings, store)
        if settings.mutual_tls:
            mount_identity(spec, self.kind, self.identity_secret)
        if settings.options.spread_over:
            spec["topologySpreadConstraints"] = [
                {
                    "maxSkew": 1,
                    "topologyKey": settings.options.spread_over,
                    "whenUnsatisfiable": "ScheduleAnyway",  # a zone that is gone stops nobody
                    "labelSelector": {"matchLabels": self.labels(settings)},
                }
            ]
        return spec


def service_url(service: str, settings: ClusterSettings, port: int = 80) -> str:
    """Where a Service answers within the cluster."""
    host = f"{service}.{settings.options.namespace}.{names.CLUSTER_LOCAL}"
    if port == HTTPS_PORT:
        return f"https://{host}"
    return f"http://{host}" if port == 80 else f"http://{host}:{port}"
