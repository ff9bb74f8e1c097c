"""A pod's vCPU, changed in place: through its `resize` part, without a restart (Kubernetes 1.35).

The kubelet gives what fits its node at once, or says what stands in the way: `Deferred` waits until
there is room, `Infeasible` never fits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.kinds import POD
from erless.deploy.kubernetes.render.pods import CONTAINER, millicores
from erless.deploy.kubernetes.status import quantity

__all__ = ["DEFERRED", "INFEASIBLE", "PodSize", "read_size", "resize"]

Object = dict[str, Any]
PENDING = "PodResizePending"
DEFERRED, INFEASIBLE = "Deferred", "Infeasible"
PATCH = "application/strategic-merge-patch+json"  # of the containers, only the one that is named


class PodSize(NamedTuple):
    """vCPU limits of a function's container.

    asked: of the pod's spec. given: what the kubelet has set. pending: DEFERRED, INFEASIBLE, or
    empty. why: in the kubelet's words.
    """

    asked: float
    given: float
    pending: str = ""
    why: str = ""


def read_size(pod: Object) -> PodSize | None:
    """The size of a function's pod; None where its container has no CPU limit."""
    asked = _limit(pod["spec"].get("containers", ()))
    if not asked:
        return None
    status = pod.get("status", {})
    given = _limit(status.get("containerStatuses", ())) or asked
    for condition in status.get("conditions", ()):
        if condition["type"] == PENDING and condition["status"] == "True":
            return PodSize(asked, given, condition.get("reason", ""), condition.get("message", ""))
    return PodSize(asked, given)


def _limit(containers: Any) -> float:
    for container in containers:
        if container["name"] == CONTAINER:
            return quantity(container.get("resources", {}).get("limits", {}).get("cpu", "0"))
    return 0.0


def resize(api: Api, pod: Object, vcpu: float, overcommit: float) -> None:
    """Ask for `vcpu` as the limit of a function's container, and its share as the request.

    Raises:
        Missing: the pod is gone, or the cluster cannot do it.
        DeployError: refused, as by a quota.
    """
    meta = pod["metadata"]
    resources = {
        "requests": {"cpu": millicores(vcpu / overcommit)},
        "limits": {"cpu": millicores(vcpu)},
    }
    patch = {"spec": {"containers": [{"name": CONTAINER, "resources": resources}]}}
    path = POD.path(meta["namespace"], meta["name"], "resize")
    api.call("PATCH", path, patch, content_type=PATCH)
