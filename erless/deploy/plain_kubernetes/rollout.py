"""From one release to the next without Knative, in steps that may each be the last.

    1 base        namespace, account, policies, the secret that functions show each other
    2 functions   shards and tower, beside what runs; unchanged ones are found, resting ones woken
    3 candidate   the Deployment of the new release's gateway, which nobody calls yet
    4 cut-over    one write moves the Service's selector and the record
    5 settle      the old gateway drains; then what only it called rests at zero, and what no kept
                  release calls is removed

As on Knative, steps 1 to 3 change nothing that the old release uses, and step 4 is one write. What
rests has no replicas, and its autoscaler leaves it at that.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.deployment_secret import ensure_secret
from erless.deploy.kubernetes.kinds import (
    AUTOSCALER,
    BUDGET,
    DEPLOYMENT,
    HTTP_SCALER,
    POD,
    SERVICE,
    Kind,
)
from erless.deploy.kubernetes.mirror import Deadline, Mirror
from erless.deploy.kubernetes.pod_names import PLAIN
from erless.deploy.kubernetes.reasons import pod_problems
from erless.deploy.kubernetes.releases import (
    GatewayRecord,
    called_services,
    history_after,
    release_to_restore,
)
from erless.deploy.kubernetes.render.rendered import Object, Rendered
from erless.deploy.plain_kubernetes.gateway_record import pointed_to, read_record, with_history
from erless.deploy.plain_kubernetes.readiness import DeploymentWatch, is_ready, pods_of
from erless.deploy.plain_kubernetes.render.workloads import LOWEST
from erless.deploy.target import Desired
from erless.errors import NotDeployedError
from erless.progress import Progress

__all__ = ["PlainRollout"]

POLL_S = 0.5


class PlainRollout:
    """One change of the release that is deployed in a scope.

    Args:
        api: the cluster.
        scope: a model in a namespace.
        progress: shown while it runs.
        deadline: for all of it.
        keep: deployed releases to keep.
        scales_by_http: the cluster has KEDA's objects.
    """

    def __init__(
        self,
        api: Api,
        scope: names.Scope,
        progress: Progress,
        deadline: Deadline,
        keep: int,
        scales_by_http: bool,
    ) -> None:
        self._api, self._scope, self._namespace = api, scope, scope.namespace
        self._progress, self._deadline, self._keep = progress, deadline, keep
        self._autoscalers = (AUTOSCALER, HTTP_SCALER) if scales_by_http else (AUTOSCALER,)
        self._deployments = Mirror(api, DEPLOYMENT, scope.namespace, scope.selector)
        self._older: frozenset[str] = frozenset()  # uids of pods from before this rollout

    def record(self) -> GatewayRecord:
        """What the gateway's Service says now."""
        return read_record(self._api.get(SERVICE, self._namespace, self._scope.gateway))

    def deploy(self, desired: Desired, rendered: Rendered) -> None:
        """All steps to `rendered`, the objects of `desired`."""
        before, release = self.record(), desired.release.digest
        functions = _deployments_in(rendered.functions)
        self._clear_stuck(functions | {rendered.revision})
        for document in rendered.base:
            self._api.apply(document)
        changes = before.revision != rendered.revision
        ensure_secret(self._api, self._scope, release, rotate=changes)
        for document in rendered.functions:
            self._api.apply(document)
        self._wake(functions, "functions ready")
        for document in rendered.candidate:
            self._api.apply(document)
        self._wake({rendered.revision}, "gateway ready")
        model = desired.release.model.name
        history = history_after(before, release, rendered.revision, model, self._keep)
        self._api.apply(with_history(rendered.gateway, history))
        for document in rendered.extras:
            self._api.apply(document)
        self.settle()

    def rollback(self, release: str | None) -> None:
        """Point the gateway's Service to a kept release.

        Raises:
            NotDeployedError: there is none before the current, or none that begins so.
        """
        before = self.record()
        kept = release_to_restore(before, release)
        gateway = self._api.get(DEPLOYMENT, self._namespace, kept.revision)
        if before.service is None or gateway is None:
            raise NotDeployedError(f"gateway {kept.revision} of {kept.release[:12]} is gone")
        ensure_secret(self._api, self._scope, kept.release, rotate=False)
        self._wake(_called(gateway), "functions ready")
        self._wake({kept.revision}, "gateway ready")
        self._api.apply(pointed_to(before.service, kept.release, kept.revision))
        self.settle()

    def settle(self) -> None:
        """Rest what only kept releases call, remove what none calls. May run at any time."""
        now = self.record()
        kept = {kept.revision for kept in now.history} | {now.revision}
        self._deployments.refresh()
        gateways = {
            name: live
            for name, live in self._deployments.objects.items()
            if live["metadata"]["labels"].get(names.KIND) == "gateway"
        }
        former = {name: live for name, live in gateways.items() if name != now.revision}
        for name in former:
            if name in kept:
                self._scale(name, 0)
            else:
                self._remove(name)
        self._wait_drained(former.values())  # they call the functions until they have ended
        called = {name: _called(live) for name, live in gateways.items()}
        needed = set().union(*(called[name] for name in kept & called.keys()))
        current = called.get(now.revision, set())
        for name in self._deployments.objects.keys() - gateways.keys():
            if name not in needed:
                self._remove(name)
            elif name not in current:
                self._scale(name, 0)

    def _wake(self, deployments: set[str], label: str) -> None:
        """Give each at least its lowest number of replicas, and wait until all are ready."""
        for name in sorted(deployments):
            live = self._api.get(DEPLOYMENT, self._namespace, name)
            if live is None:
                raise NotDeployedError(f"function {name} is gone")
            lowest = int(live["metadata"].get("annotations", {}).get(LOWEST, "1"))
            if live["spec"].get("replicas", 1) < lowest:
                self._scale(name, lowest)
        watch = DeploymentWatch(self._api, self._scope, self._older)
        with self._progress.step(label, len(deployments), "steps") as step:
            watch.wait(self._deployments, deployments, is_ready, step, self._deadline)

    def _scale(self, deployment: str, replicas: int) -> None:
        patch = {"spec": {"replicas": replicas}}
        self._api.merge(DEPLOYMENT, self._namespace, deployment, patch)

    def _remove(self, name: str) -> None:
        """Remove a function, or a release's gateway, with all that carries its name."""
        kinds: tuple[Kind, ...] = (*self._autoscalers, BUDGET, DEPLOYMENT, SERVICE)
        for kind in kinds:
            self._api.delete(kind, self._namespace, name)
        self._api.delete(SERVICE, self._namespace, f"{name}-pods")

    def _wait_drained(self, deployments: Iterable[Object]) -> None:
        """Wait until the pods of gateways that nobody is sent to any more have ended."""
        deployments = list(deployments)
        while deployments and self._deadline.left_s > 0:
            pods, _ = self._api.list(POD, self._namespace, self._scope.selector)
            if not any(pods_of(deployment, pods) for deployment in deployments):
                return
            time.sleep(POLL_S)

    def _clear_stuck(self, deployments: set[str]) -> None:
        """End pods that could not start: their successors are tried at once, not ever later."""
        pods, _ = self._api.list(POD, self._namespace, self._scope.selector)
        self._older = frozenset(pod["metadata"].get("uid", "") for pod in pods)
        stuck = {problem.pod for problem in pod_problems(pods, ()) if not problem.unplaced}
        for pod in pods:
            meta = pod["metadata"]
            owners = {meta["labels"].get(PLAIN.service), meta["labels"].get(PLAIN.revision)}
            if meta["name"] in stuck and owners & deployments:
                self._api.delete(POD, self._namespace, meta["name"])


def _deployments_in(documents: Iterable[Object]) -> set[str]:
    return {each["metadata"]["name"] for each in documents if each["kind"] == DEPLOYMENT.kind}


def _called(gateway: Object) -> set[str]:
    """The functions that a gateway's Deployment calls."""
    return called_services(gateway["spec"]["template"]["spec"])
