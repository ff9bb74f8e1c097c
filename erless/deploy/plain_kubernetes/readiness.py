"""When a Deployment is ready, and when it will never be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from erless.deploy.kubernetes.render.rendered import Object
from erless.deploy.kubernetes.watching import FailureWatch, condition

__all__ = ["DeploymentWatch", "failure", "is_ready", "pods_of"]


def is_ready(deployment: Object) -> bool:
    """Whether all replicas that are wanted are of what was applied last, and serve."""
    status, meta = deployment.get("status", {}), deployment["metadata"]
    wanted = deployment["spec"].get("replicas", 1)
    counts = [status.get(f"{what}Replicas", 0) for what in ("updated", "available")]
    seen = status.get("observedGeneration") == meta.get("generation")
    alone = status.get("replicas", 0) == wanted  # none of what was applied before is left
    return bool(seen and wanted and alone and min(counts) >= wanted)


def failure(deployment: Object) -> str:
    """Why Kubernetes calls a Deployment failed; empty where it does not."""
    for kind, bad in (("ReplicaFailure", "True"), ("Progressing", "False")):
        state = condition(deployment, kind)
        if state.get("status") == bad:
            return f"{state.get('reason', 'failed')}: {state.get('message', '')}".strip(": ")
    return ""


def pods_of(deployment: Object, pods: Iterable[Object]) -> list[Object]:
    """The pods that a Deployment's selector names."""
    selector = deployment["spec"]["selector"]["matchLabels"]
    return [pod for pod in pods if selector.items() <= pod["metadata"].get("labels", {}).items()]


class DeploymentWatch(FailureWatch):
    """Watches Deployments."""

    def owners(self, waiting: Mapping[str, Object], pods: Iterable[Object]) -> dict[str, str]:
        """See `FailureWatch.owners`."""
        by_name = {pod["metadata"]["name"]: pod for pod in pods}
        return {
            pod["metadata"]["name"]: name
            for name, deployment in waiting.items()
            for pod in pods_of(deployment, by_name.values())
        }

    def failing(self, document: Object) -> str:
        """See `FailureWatch.failing`."""
        return failure(document)

    def is_over(self, document: Object) -> bool:
        """See `FailureWatch.is_over`."""
        return condition(document, "Progressing").get("status") == "False"
