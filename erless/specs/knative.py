"""`targets.knative` of `erless.yaml`."""

from __future__ import annotations

from pydantic import Field

from erless.specs.cluster import ClusterConfig, Name

__all__ = ["KnativeConfig"]


class KnativeConfig(ClusterConfig):
    """A Kubernetes cluster with Knative Serving."""

    queue_proxy_cpu: float = Field(0.1, gt=0, description="vCPU that each queue-proxy requests.")
    queue_proxy_memory_mb: int = Field(
        128, ge=32, description="MiB that each queue-proxy requests."
    )
    queue_proxy_memory_limit_mb: int = Field(
        512, ge=32, description="MiB that each queue-proxy may use: 25, and 0.1 a request at once."
    )
    max_timeout_s: int = Field(
        600,
        ge=30,
        description="Longest answer that the cluster allows (max-revision-timeout-seconds).",
    )
    ingress_namespaces: tuple[Name, ...] = Field(
        ("kourier-system", "istio-system", "contour-internal", "contour-external"),
        description="Where Knative's ingress runs.",
    )
    canary_percent: int = Field(
        0, ge=0, le=99, description="Share of traffic a new release gets; 0: all of it at once."
    )
