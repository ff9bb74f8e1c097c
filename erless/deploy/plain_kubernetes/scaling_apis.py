"""What a cluster has to scale by: metrics APIs, and KEDA's HTTP add-on for zero."""

from __future__ import annotations

from dataclasses import dataclass

from erless.deploy.kubernetes.api import Api, Missing
from erless.deploy.kubernetes.kinds import CRD
from erless.errors import DeployError
from erless.specs.kubernetes import KubernetesConfig

__all__ = ["CUSTOM_METRIC", "KEDA_CRD", "ScalingApis", "configured", "discover"]

# what prometheus-adapter's default rules make of the functions' erless_requests_total: a rate
CUSTOM_METRIC = "erless_requests"
KEDA_CRD = "httpscaledobjects.http.keda.sh"


@dataclass(frozen=True, slots=True)
class ScalingApis:
    """custom: autoscalers go by the functions' requests, else by CPU. zero: KEDA is there.

    measured: something answers to autoscalers at all; else replicas stay as they are.
    """

    custom: bool = False
    zero: bool = False
    measured: bool = True


def configured(options: KubernetesConfig) -> ScalingApis:
    """What the configuration says, where no cluster is asked."""
    return ScalingApis(options.metrics == "custom", options.keda == "on")


def discover(api: Api, options: KubernetesConfig) -> ScalingApis:
    """What the configuration says, and where it says `auto` the cluster."""
    custom = options.metrics == "custom" or (
        options.metrics == "auto" and _serves(api, "custom.metrics.k8s.io/v1beta1", CUSTOM_METRIC)
    )
    zero = options.keda == "on" or (
        options.keda == "auto" and api.get(CRD, None, KEDA_CRD) is not None
    )
    return ScalingApis(custom, zero, custom or _serves(api, "metrics.k8s.io/v1beta1", "pods"))


def _serves(api: Api, group: str, resource: str) -> bool:
    """Whether a metrics API is there and has a resource for pods."""
    try:
        listed = api.call("GET", f"/apis/{group}", retry_s=0)
    except (Missing, DeployError):
        return False
    served = {entry.get("name", "").removeprefix("pods/") for entry in listed.get("resources", [])}
    return resource in served
