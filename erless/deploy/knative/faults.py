"""Break a deployment on a cluster on purpose: pods are deleted without grace, or evicted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from erless.deploy.knative.gateway_record import called_services, read_record
from erless.deploy.knative.readiness import REVISION_LABEL, SERVICE_LABEL
from erless.deploy.knative.status import function_name, pod_serves
from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api, Missing
from erless.deploy.kubernetes.kinds import KSERVICE, POD, REVISION
from erless.errors import DeployError, NotDeployedError
from erless.specs.churn import FaultKind, LiveReplica
from erless.specs.functions import FunctionKind

__all__ = ["KnativeFaults", "PodReplica"]

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


class KnativeFaults:
    """Faults of the deployment in `scope`.

    A pod cannot be made to hang from outside its node: the kernel ignores SIGSTOP from within for a
    container's first process. Knative keeps the number of pods to itself.

    Raises:
        NotDeployedError: no gateway of ours is there.
    """

    kinds = frozenset({FaultKind.KILL, FaultKind.DRAIN, FaultKind.GATEWAY})
    shared = True

    def __init__(self, api: Api, scope: names.Scope) -> None:
        namespace = scope.namespace
        self._api, self._scope, self._namespace = api, scope, namespace
        self._listed: tuple[float, list[PodReplica]] = (-LIST_S, [])
        services, _ = api.list(KSERVICE, namespace, scope.selector)
        by_name = {service["metadata"]["name"]: service for service in services}
        record = read_record(by_name.get(scope.gateway))
        if record.service is None or not record.revision:
            raise NotDeployedError(f"nothing is deployed in namespace {namespace}")
        self._gateway_revision = record.revision
        live = api.get(REVISION, namespace, record.revision)
        called = called_services(live) if live else set()
        self._functions = {
            name: function_name(service)
            for name, service in by_name.items()
            if name in called or name == scope.gateway
        }

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
        service = meta["labels"].get(SERVICE_LABEL, "")
        if service not in self._functions:
            return None
        revision = meta["labels"].get(REVISION_LABEL)
        if service == self._scope.gateway and revision != self._gateway_revision:
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
