"""Facts of a cluster, which no plan knows: common to `targets.knative` and `targets.kubernetes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from erless.specs.functions import FunctionKind
from erless.specs.strict.section import Section

__all__ = ["ClusterConfig", "Name", "PodPlacement", "PodToleration", "StoreVolume"]

Role = Literal["gateway", "dense", "hot", "warm", "cold", "frozen"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9\-.]{0,251}[a-z0-9])?$")]
HostPath = Annotated[str, Field(pattern=r"^/[^:]*$")]


class PodToleration(Section):
    """A toleration in Kubernetes' own words."""

    key: str
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class PodPlacement(Section):
    """Where pods of one role may run, and before whom; empty means any node."""

    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[PodToleration, ...] = ()
    priority_class: str | None = Field(None, description="PriorityClass of the pods.")


class StoreVolume(Section):
    """How pods see a store that is a folder; both empty: its own path on the node."""

    claim: Name | None = Field(None, description="PersistentVolumeClaim that holds the store.")
    host_path: HostPath | None = Field(None, description="Folder on every node.")


class ClusterConfig(Section):
    """A Kubernetes cluster."""

    kubeconfig: Path | None = Field(None, description="Default: KUBECONFIG, or in-cluster.")
    context: str | None = Field(None, description="kubeconfig context; default: the current one.")
    namespace: str = Field(
        "erless", pattern=r"^[a-z0-9]([a-z0-9\-]{0,61}[a-z0-9])?$", description="Namespace."
    )
    infra: Path | None = Field(None, description="Terraform folder whose outputs to read.")
    images: dict[FunctionKind, str] = Field(
        default_factory=dict,
        description="gateway, dense, sparse: REGISTRY/NAME@sha256:…; a tag is resolved once.",
    )
    images_file: Path = Field(
        Path("images.json"), description="What `erless image push` wrote; used where images is not."
    )
    registry: str | None = Field(
        None, description="Where `erless image push` pushes: HOST[:PORT]/NAME."
    )
    image_pull_secrets: tuple[Name, ...] = Field((), description="Secrets for a private registry.")
    service_account: Name = Field("erless-functions", description="Of all functions.")
    create_service_account: bool = Field(True, description="False: it is there already.")
    role_arn: str | None = Field(None, description="IAM role (IRSA); none with pod identity.")
    credentials_secret: Name | None = Field(
        None, description="Secret with AWS_ACCESS_KEY_ID …, where pods have no IAM role."
    )
    region: str | None = Field(None, description="AWS region of the store.")
    endpoint_url: str | None = Field(None, description="S3 API as pods reach it; default: AWS's.")
    store_volume: StoreVolume = StoreVolume()
    cache_claim: Name | None = Field(
        None, description="Writable claim that caches shards for all pods; default: none is shared."
    )
    token_secret: Name | None = Field(
        None, description="Secret whose key `token` holds the gateway's bearer token."
    )
    placement: dict[Role, PodPlacement] = Field(
        default_factory=dict,
        description="gateway, dense, hot, warm, cold, frozen: node_selector, tolerations and "
        "priority_class.",
    )
    spread_over: str | None = Field(
        None,
        description="Node label over whose values replicas of a function are spread, such as "
        "topology.kubernetes.io/zone.",
    )
    gpu_resource: str = Field("nvidia.com/gpu", description="Resource of a GPU.")
    cpu_overcommit: float = Field(
        1.0, ge=1, le=100, description="Pods request the plan's vCPU ÷ this (small clusters)."
    )
    cpu_limits: bool = Field(
        False, description="Cap pods at the plan's vCPU; throttling lengthens p95 and cold starts."
    )
    resize: bool = Field(
        False,
        description="`erless autoscale` changes the vCPU of pods in place, where the plan's "
        "autoscaler is status; needs cpu_limits and Kubernetes 1.35.",
    )
    load_mb_per_s: float = Field(
        50.0, gt=0, description="Slowest load of weights to allow for in every timeout."
    )
    min_window_s: int | None = Field(
        None, ge=6, le=3600, description="Scaling window instead of the plan's, in s."
    )
    network_policies: bool = Field(
        True, description="Shards answer only the gateway, and what carries its calls."
    )
    egress: Literal["store", "any"] = Field(
        "store",
        description="Where policies let functions connect to: the store, and the gateway to what "
        "it calls; or, for a mesh's sidecars, any.",
    )
    pod_monitor: bool = Field(False, description="Add a PodMonitor for the Prometheus operator.")
    monitoring_namespace: Name = Field("monitoring", description="Where Prometheus runs.")
    keep_releases: int = Field(3, ge=2, description="Deployed releases to keep for rollback.")
    gateway_address: str | None = Field(
        None, description="HOST:PORT of the ingress from here; default: the gateway's own URL."
    )

    @model_validator(mode="after")
    def _has_limits_to_change(self) -> Self:
        if self.resize and not self.cpu_limits:
            raise ValueError("resize changes the pods' CPU limits: set cpu_limits: true too")
        return self
