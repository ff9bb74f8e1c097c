"""`targets.kubernetes` of `erless.yaml`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from erless.specs.cluster import ClusterConfig, Name

__all__ = ["KubernetesConfig"]


class KubernetesConfig(ClusterConfig):
    """A Kubernetes cluster without Knative."""

    metrics: Literal["auto", "custom", "cpu"] = Field(
        "auto",
        description="What autoscalers go by: the functions' own metrics, where the custom metrics "
        "API has them, or CPU. auto: what the cluster has.",
    )
    keda: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Scale to zero by KEDA's HTTP add-on. auto: where the cluster has it; without "
        "it every function keeps one replica.",
    )
    keda_namespace: Name = Field("keda", description="Where KEDA's HTTP add-on runs.")
