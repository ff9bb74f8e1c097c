"""When a Knative Service is ready, and when it will never be.

Knative's own words: a condition `Ready` that is True for the generation that was applied. False is
not always the end (a route whose revision is still being made is False for a moment), so a failure
counts when a pod says something final, when Knative's deadline is over, or when False stays.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.kinds import EVENT, POD, REVISION
from erless.deploy.kubernetes.names import Scope
from erless.deploy.kubernetes.reasons import PodProblem, pod_problems
from erless.errors import DeployError, ForbiddenError

__all__ = [
    "REVISION_LABEL",
    "SERVICE_LABEL",
    "FailureWatch",
    "condition",
    "is_ready",
    "read_events",
]

Object = dict[str, Any]
STAYS_FALSE_S = 30.0
LOOK_EVERY_S = 3.0
_OVER = {"ProgressDeadlineExceeded"}
SERVICE_LABEL, REVISION_LABEL = "serving.knative.dev/service", "serving.knative.dev/revision"


def condition(document: Object, name: str) -> Object:
    """The condition of type `name`; empty where `document` has none."""
    conditions = document.get("status", {}).get("conditions", [])
    return next((entry for entry in conditions if entry.get("type") == name), {})


def is_ready(document: Object) -> bool:
    """Whether what was applied last is ready."""
    observed = document.get("status", {}).get("observedGeneration")
    return (
        observed == document["metadata"].get("generation")
        and condition(document, "Ready").get("status") == "True"
    )


def read_events(api: Api, namespace: str) -> list[Object]:
    """The events of a namespace; none where this user may not read them."""
    try:
        return api.list(EVENT, namespace)[0]
    except ForbiddenError:
        return []


class FailureWatch:
    """Asks the Services that are not ready yet why, and gives up early when waiting is in vain.

    Args:
        api: the cluster.
        scope: of the Services.
        older: uids of pods that were there before this deploy. Their trouble may be what the deploy
            mends (a pull that was refused is tried again only after minutes), so it is told, but it
            ends no wait.
    """

    def __init__(self, api: Api, scope: Scope, older: frozenset[str] = frozenset()) -> None:
        self._api, self._scope, self._older = api, scope, older
        self._namespace = scope.namespace
        self._looked = 0.0
        self._false_since: dict[str, float] = {}
        self.reason = ""

    def look(self, services: Iterable[Object]) -> None:
        """Look at the pods of `services`, none of which is ready.

        Raises:
            DeployError: one will never be, with its pod's own reason.
        """
        waiting = {service["metadata"]["name"]: service for service in services}
        overdue = self._overdue(waiting)
        if not overdue and time.monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked = time.monotonic()
        problems = self._problems(waiting)
        for name, problem in problems.items():
            self.reason = f"{name}: {problem.what}"
            if problem.final:
                raise DeployError(f"{name} does not start: pod {problem.pod}: {problem.what}")
        if overdue:
            name = overdue[0]
            why = problems[name].what if name in problems else self._knative_reason(waiting[name])
            raise DeployError(f"{name} does not start: {why}")

    def _overdue(self, waiting: dict[str, Object]) -> list[str]:
        """Services that Knative has called failed for too long."""
        now = time.monotonic()
        for name in [name for name in self._false_since if name not in waiting]:
            del self._false_since[name]
        overdue = []
        for name, service in waiting.items():
            ready = condition(service, "Ready")
            observed = service.get("status", {}).get("observedGeneration")
            if ready.get("status") != "False" or observed != service["metadata"].get("generation"):
                self._false_since.pop(name, None)
                continue
            since = self._false_since.setdefault(name, now)
            if now - since > STAYS_FALSE_S or ready.get("reason") in _OVER:
                overdue.append(name)
        return overdue

    def _problems(self, waiting: dict[str, Object]) -> dict[str, PodProblem]:
        """The worst problem per Service, from the pods of its newest revision."""
        pods, _ = self._api.list(POD, self._namespace, self._scope.selector)
        newest = {
            service["status"]["latestCreatedRevisionName"]
            for service in waiting.values()
            if service.get("status", {}).get("latestCreatedRevisionName")
        }
        newest_pods = {
            pod["metadata"]["name"]: pod
            for pod in pods
            if pod["metadata"]["labels"].get(REVISION_LABEL) in newest
        }
        if not newest_pods:
            return {}
        events = read_events(self._api, self._namespace)
        worst: dict[str, PodProblem] = {}
        for reported in pod_problems(newest_pods.values(), events):
            meta = newest_pods[reported.pod]["metadata"]
            final = reported.final and meta.get("uid") not in self._older
            problem = replace(reported, final=final)
            service = meta["labels"][SERVICE_LABEL]
            former = worst.get(service)
            if former is None or (problem.final and not former.final):
                worst[service] = problem
        return worst

    def _knative_reason(self, service: Object) -> str:
        """What Knative says of the revision, which is closer to the cause, or of the Service."""
        name = service.get("status", {}).get("latestCreatedRevisionName")
        revision = self._api.get(REVISION, self._namespace, name) if name else None
        for document, kind in (
            (revision or {}, "ContainerHealthy"),
            (revision or {}, "ResourcesAvailable"),
            (revision or {}, "Ready"),
            (service, "Ready"),
        ):
            state = condition(document, kind)
            if state.get("status") == "False":
                return f"{state.get('reason', 'failed')}: {state.get('message', '')}".strip(": ")
        return "Knative gives no reason"
