"""When a Knative Service is ready, and when it will never be.

Knative's own words: a condition `Ready` that is True for the generation that was applied. False is
not always the end: a route whose revision is still being made is False for a moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from erless.deploy.kubernetes.kinds import REVISION
from erless.deploy.kubernetes.pod_names import KNATIVE
from erless.deploy.kubernetes.watching import FailureWatch, condition

__all__ = ["ServiceWatch", "is_ready"]

Object = dict[str, Any]
_OVER = {"ProgressDeadlineExceeded"}


def _observed(document: Object) -> bool:
    """Whether Knative has seen what was applied last."""
    observed = document.get("status", {}).get("observedGeneration")
    return bool(observed == document["metadata"].get("generation"))


def is_ready(document: Object) -> bool:
    """Whether what was applied last is ready."""
    return _observed(document) and condition(document, "Ready").get("status") == "True"


class ServiceWatch(FailureWatch):
    """Watches Knative Services."""

    def owners(self, waiting: Mapping[str, Object], pods: Iterable[Object]) -> dict[str, str]:
        """See `FailureWatch.owners`: the pods of each Service's newest revision."""
        newest = {
            service["status"]["latestCreatedRevisionName"]
            for service in waiting.values()
            if service.get("status", {}).get("latestCreatedRevisionName")
        }
        return {
            pod["metadata"]["name"]: pod["metadata"]["labels"][KNATIVE.service]
            for pod in pods
            if pod["metadata"]["labels"].get(KNATIVE.revision) in newest
        }

    def failing(self, document: Object) -> str:
        """See `FailureWatch.failing`."""
        ready = condition(document, "Ready")
        if ready.get("status") != "False" or not _observed(document):
            return ""
        return _words(ready)

    def is_over(self, document: Object) -> bool:
        """See `FailureWatch.is_over`."""
        return condition(document, "Ready").get("reason") in _OVER

    def controllers_reason(self, document: Object) -> str:
        """What Knative says of the revision, which is closer to the cause, or of the Service."""
        name = document.get("status", {}).get("latestCreatedRevisionName")
        revision = self.api.get(REVISION, self.scope.namespace, name) if name else None
        for kind in ("ContainerHealthy", "ResourcesAvailable", "Ready"):
            state = condition(revision or {}, kind)
            if state.get("status") == "False":
                return _words(state)
        return self.failing(document) or "Knative gives no reason"


def _words(state: Object) -> str:
    return f"{state.get('reason', 'failed')}: {state.get('message', '')}".strip(": ")
