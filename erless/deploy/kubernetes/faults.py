"""Break a deployment on a cluster on purpose: pods are deleted without grace, or evicted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api, Missing
from erless.deploy.kubernetes.kinds import POD
from erless.deploy.kubernetes.pod_names import PodNames
from erless.deploy.kubernetes.status import pod_serves
from erless.errors import DeployError
from erless.specs.churn import FaultKind, LiveReplica
from erless.specs.functions import FunctionKind

__all__ = ["PodFaults", "PodReplica"]

Object = dict[str, Any]
LIST_S = 0.25  # pods are listed at most so often


@dataclass(frozen=True, slots=True)
class PodReplica:
    """A pod. See `erless.specs.churn.LiveReplica`."""

    function: str
    kind: FunctionKind
    name: str
    ready: bool
    age_s: float


class PodFaults:
    """Faults of the deployment in `scope`.

    A pod cannot be made to hang from outside its node: the kernel ignores SIGSTOP from within for a
    container's first process. The autoscaler keeps the number of pods to itself.

    Args:
        api: the cluster.
        scope: a model in a namespace.
        pods: names on its pods.
        functions: of the current release: their names in the cluster → as people call them.
        revision: of the current release's gateway.
    """

    kinds = frozenset({FaultKind.KILL, FaultKind.DRAIN, FaultKind.GATEWAY})
    shared = True

    def __init__(
        self,
        api: Api,
        scope: names.Scope,
        pods: PodNames,
        functions: Mapping[str, str],
        revision: str,
    ) -> None:
        self._api, self._scope, self._namespace = api, scope, scope.namespace
        self._pods, self._functions, self._revision = pods, functions, revision
        self._listed: tuple[float, list[PodReplica]] = (-LIST_S, [])

    def replicas(self) -> Sequence[PodReplica]:
        """See `FaultSite.replicas`."""
        listed_s, known = self._listed
        if time.monotonic() - listed_s < LIST_S:
            return known
        pods, _ = self._api.list(POD, self._namespace, self._scope.selector)
        found = [replica for pod in pods if (replica := self._replica(pod)) is not None]
        self._listed = time.monotonic(), found
        return found

    def _replica(self, pod: Object) -> PodReplica | None:
        """The pod as a replica; None where the current release does not need it."""
        meta = pod["metadata"]
        service = meta["labels"].get(self._pods.service, "")
        if service not in self._functions:
            return None
        revision = meta["labels"].get(self._pods.revision)
        if service == self._scope.gateway and revision != self._revision:
            return None
        created = datetime.fromisoformat(meta["creationTimestamp"])
        return PodReplica(
            self._functions[service],
            cast("FunctionKind", meta["labels"].get(names.KIND, "sparse")),
            meta["name"],
            pod_serves(pod),
            (datetime.now(UTC) - created).total_seconds(),
        )

    def inject(self, kind: FaultKind, victim: LiveReplica) -> None:
        """See `FaultSite.inject`."""
        meta = {"name": victim.name, "namespace": self._namespace}
        try:
            if kind is FaultKind.DRAIN:
                body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta}
                path = POD.path(self._namespace, victim.name, "eviction")
                self._api.call("POST", path, body, retry_s=0)
            else:
                options = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
                self._api.call("DELETE", POD.path(self._namespace, victim.name), options, retry_s=0)
        except Missing:
            raise DeployError(f"pod {victim.name} is gone") from None
        self._listed = (-LIST_S, [])

    def answered(self, replica: LiveReplica) -> int:
        """See `FaultSite.answered`: pods are not asked."""
        return 0

    def undo(self) -> None:
        """See `FaultSite.undo`: nothing hangs."""
