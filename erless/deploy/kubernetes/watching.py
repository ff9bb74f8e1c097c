"""Waits that give up early: why what is waited for is not ready, and whether it ever will be.

What a target's own controller says is seldom the cause, and not always the end, so a failure counts
when a pod says something final, when the controller's deadline is over, or when failing stays.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.kinds import EVENT, POD
from erless.deploy.kubernetes.mirror import Deadline, Mirror
from erless.deploy.kubernetes.names import Scope
from erless.deploy.kubernetes.reasons import PodProblem, pod_problems
from erless.errors import DeployError, ForbiddenError
from erless.progress import Step

__all__ = ["FailureWatch", "condition", "read_events"]

Object = dict[str, Any]
STAYS_FAILING_S = 30.0
LOOK_EVERY_S = 3.0


def condition(document: Object, name: str) -> Object:
    """The condition of type `name`; empty where `document` has none."""
    conditions = document.get("status", {}).get("conditions", [])
    return next((entry for entry in conditions if entry.get("type") == name), {})


def read_events(api: Api, namespace: str) -> list[Object]:
    """The events of a namespace; none where this user may not read them."""
    try:
        return api.list(EVENT, namespace)[0]
    except ForbiddenError:
        return []


class FailureWatch(ABC):
    """Asks what is not ready yet why, and gives up early when waiting is in vain.

    Args:
        api: the cluster.
        scope: of what is waited for.
        older: uids of pods that were there before this deploy. Their trouble may be what the deploy
            mends (a pull that was refused is tried again only after minutes), so it is told, but it
            ends no wait.
    """

    def __init__(self, api: Api, scope: Scope, older: frozenset[str] = frozenset()) -> None:
        self.api, self.scope = api, scope
        self._older = older
        self._looked = 0.0
        self._failing_since: dict[str, float] = {}
        self.reason = ""

    @abstractmethod
    def owners(self, waiting: Mapping[str, Object], pods: Iterable[Object]) -> dict[str, str]:
        """Pod → which of `waiting` it belongs to, by name; only pods of what was applied last."""

    @abstractmethod
    def failing(self, document: Object) -> str:
        """The controller's word for why `document` fails; empty where it does not say that."""

    @abstractmethod
    def is_over(self, document: Object) -> bool:
        """Whether a failing `document` will not be tried again."""

    def controllers_reason(self, document: Object) -> str:
        """What the controller says of a `document` whose pods say nothing."""
        return self.failing(document)

    def wait(
        self,
        mirror: Mirror,
        subjects: set[str],
        ready: Callable[[Object], bool],
        step: Step,
        deadline: Deadline,
    ) -> None:
        """Wait until all `subjects`, names of objects of `mirror`, are `ready`.

        Raises:
            DeployError: one will never be, or is not in time, with what is known of why.
        """
        late = set(subjects)

        def done(objects: dict[str, Object]) -> bool:
            now_ready = {name for name in late if name in objects and ready(objects[name])}
            late.difference_update(now_ready)
            step.advance(len(now_ready))
            if late:
                self.look([objects[name] for name in sorted(late) if name in objects])
            return not late

        if not mirror.wait(done, deadline):
            why = f": {self.reason}" if self.reason else ""
            raise DeployError(
                f"{', '.join(sorted(late))} not ready within {deadline.seconds:g} s{why}"
            )

    def look(self, documents: Iterable[Object]) -> None:
        """Look at the pods of `documents`, none of which is ready.

        Raises:
            DeployError: one will never be, with its pod's own reason.
        """
        waiting = {document["metadata"]["name"]: document for document in documents}
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
            known = problems[name].what if name in problems else ""
            raise DeployError(
                f"{name} does not start: {known or self.controllers_reason(waiting[name])}"
            )

    def _overdue(self, waiting: Mapping[str, Object]) -> list[str]:
        """What has been called failed for too long."""
        now = time.monotonic()
        for name in [name for name in self._failing_since if name not in waiting]:
            del self._failing_since[name]
        overdue = []
        for name, document in waiting.items():
            if not self.failing(document):
                self._failing_since.pop(name, None)
                continue
            since = self._failing_since.setdefault(name, now)
            if now - since > STAYS_FAILING_S or self.is_over(document):
                overdue.append(name)
        return overdue

    def _problems(self, waiting: Mapping[str, Object]) -> dict[str, PodProblem]:
        """The worst problem of each of `waiting`, from its pods."""
        pods, _ = self.api.list(POD, self.scope.namespace, self.scope.selector)
        owners = self.owners(waiting, pods)
        by_name = {pod["metadata"]["name"]: pod for pod in pods}
        if not owners:
            return {}
        events = read_events(self.api, self.scope.namespace)
        worst: dict[str, PodProblem] = {}
        for reported in pod_problems([by_name[name] for name in owners], events):
            uid = by_name[reported.pod]["metadata"].get("uid")
            problem = replace(reported, final=reported.final and uid not in self._older)
            owner = owners[reported.pod]
            former = worst.get(owner)
            if former is None or (problem.final and not former.final):
                worst[owner] = problem
        return worst
