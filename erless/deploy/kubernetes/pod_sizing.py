"""What the status-aware autoscaler has to know of a function: an annotation of its pods."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from erless.autoscale.status import Sizing
from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.specs.artifact import FromElsewhere
from erless.specs.plan import Plan

__all__ = ["PodSizing", "size_note"]

Object = dict[str, Any]
ADDS_PODS = {"knative": "Knative's KPA", "kubernetes": "the HorizontalPodAutoscaler"}


class PodSizing(FromElsewhere):
    """What the autoscaler knows of a function, as its pods' annotation says it."""

    function: str
    vcpu: float = Field(gt=0, description="of the pods' template")
    most_vcpu: float = Field(gt=0)
    requests_per_vcpu_s: float = Field(gt=0)
    utilisation: float = Field(gt=0, le=1)
    overcommit: float = Field(1.0, ge=1, description="limit ÷ request")

    @classmethod
    def of(cls, pod: Object) -> PodSizing | None:
        """Of a function's pod; None where it keeps its size."""
        text = pod["metadata"].get("annotations", {}).get(names.SIZING)
        try:
            return cls.model_validate_json(text) if text else None
        except ValidationError:
            return None

    @property
    def growth(self) -> float:
        """The largest size ÷ the template's."""
        return self.most_vcpu / self.vcpu

    @property
    def sizing(self) -> Sizing:
        """In the autoscaler's words."""
        return Sizing(self.requests_per_vcpu_s, self.most_vcpu, self.utilisation)


def size_note(plan: Plan, settings: ClusterSettings) -> str:
    """Who changes the size of replicas, where the plan's autoscaler would; else empty."""
    functions = (plan.gateway, *plan.shards, *((plan.dense,) if plan.dense else ()))
    if all(function.scaling.autoscaler == "kpa" for function in functions):
        return ""
    other = ADDS_PODS[settings.section]
    if settings.options.resize:
        return f"`erless autoscale` changes the vCPU of pods as long as it runs; {other} adds pods"
    return (
        f"the plan's autoscaler is status, but targets.{settings.section}.resize is off: {other} "
        "scales replicas of the planned size"
    )
