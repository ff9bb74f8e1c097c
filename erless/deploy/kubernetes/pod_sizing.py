"""What the status-aware autoscaler has to know of a function: an annotation of its pods."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from erless.autoscale.status import Sizing
from erless.deploy.kubernetes import names
from erless.specs.artifact import FromElsewhere

__all__ = ["PodSizing"]

Object = dict[str, Any]


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
    def sizing(self) -> Sizing:
        """In the autoscaler's words."""
        return Sizing(self.requests_per_vcpu_s, self.most_vcpu, self.utilisation)
