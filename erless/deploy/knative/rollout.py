"""From one release to the next, in steps that may each be the last.

    1 base        namespace, account, policies, the secret that functions show each other
    2 functions   shards and tower, beside what runs; unchanged ones are found, not made
    3 candidate   the gateway's new revision at 0 %, under a tag
    4 prewarm     one replica of every function it will call, all at once
    5 cut-over    one write moves traffic and record
    6 settle      what the current release does not call may go to zero, what no kept release calls
                  is removed

Steps 1 to 4 change nothing that the old release uses, and step 5 is one write, so a deploy that
stops anywhere leaves either release serving, whole; the next deploy starts over and finds what is
done. Old shards keep answering: a query of the old gateway's finishes, and rollback finds them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

from erless.deploy.knative.gateway_record import (
    NEXT,
    read_record,
    traffic_after,
    with_traffic,
)
from erless.deploy.knative.readiness import ServiceWatch, is_ready
from erless.deploy.knative.render.scaling import INITIAL_SCALE, MIN_SCALE
from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.deployment_secret import ensure_secret
from erless.deploy.kubernetes.kinds import BUDGET, KSERVICE, POD, POD_AUTOSCALER, REVISION
from erless.deploy.kubernetes.mirror import Deadline, Mirror
from erless.deploy.kubernetes.pod_names import KNATIVE
from erless.deploy.kubernetes.reasons import pod_problems
from erless.deploy.kubernetes.releases import (
    GatewayRecord,
    TrafficTarget,
    called_services,
    history_after,
    release_to_restore,
)
from erless.deploy.kubernetes.render.rendered import Object, Rendered
from erless.deploy.kubernetes.watching import condition
from erless.deploy.target import Desired
from erless.errors import DeployError, NotDeployedError
from erless.progress import Progress

__all__ = ["KnativeRollout"]


class KnativeRollout:
    """One change of the release that is deployed in a scope.

    Args:
        api: the cluster.
        scope: a model in a namespace.
        progress: shown while it runs.
        deadline: for all of it.
        keep: deployed releases to keep.
        canary_percent: the new release's share of the queries; 0: all of them.
    """

    def __init__(
        self,
        api: Api,
        scope: names.Scope,
        progress: Progress,
        deadline: Deadline,
        keep: int,
        canary_percent: int,
    ) -> None:
        self._api, self._scope, self._namespace = api, scope, scope.namespace
        self._progress, self._deadline, self._keep = progress, deadline, keep
        self._canary_percent = canary_percent
        self._services = Mirror(api, KSERVICE, scope.namespace, scope.selector)
        self._older: frozenset[str] = frozenset()  # uids of pods from before this rollout

    def record(self) -> GatewayRecord:
        """What the gateway's Service says now."""
        return read_record(self._api.get(KSERVICE, self._namespace, self._scope.gateway))

    def deploy(self, desired: Desired, rendered: Rendered) -> None:
        """All steps to `rendered`, the objects of `desired`."""
        release = desired.release.digest
        before = self.record()
        functions = {service["metadata"]["name"] for service in rendered.functions}
        self._clear_failed(functions | {self._scope.gateway}, before)
        for document in rendered.base:
            self._api.apply(document)
        rotate = before.revision != rendered.revision
        ensure_secret(self._api, self._scope, release, rotate=rotate)
        for document in rendered.functions:
            self._api.apply(document)
        self._restore(functions)
        self._wait_ready("functions ready", functions)
        self._add_candidate(rendered, before)
        if before.revision != rendered.revision:
            self._prewarm(functions - rendered.decoys, rendered.revision)
        self._cut_over(rendered, release, desired.release.model.name)
        for document in rendered.extras:
            self._api.apply(document)
        self.settle()

    def rollback(self, release: str | None) -> None:
        """Move the traffic to a kept release.

        Raises:
            NotDeployedError: there is none before the current, or none that begins so.
        """
        before = self.record()
        target = release_to_restore(before, release)
        revision = self._api.get(REVISION, self._namespace, target.revision)
        if before.service is None or revision is None:
            raise NotDeployedError(f"revision {target.revision} of {target.release[:12]} is gone")
        called = called_services(revision["spec"])
        ensure_secret(self._api, self._scope, target.release, rotate=False)
        self._restore(called)
        self._wait_ready("functions ready", called)
        service = _labelled(before.service, target.release)
        lines = [*before.serving(), TrafficTarget(target.revision, 0, NEXT)]
        if target.revision != before.revision:
            self._api.apply(with_traffic(service, lines, before.history, None))
            self._wait_routed("gateway ready", target.revision, 0)
            self._prewarm(called - self._asleep(), target.revision)
        only = [TrafficTarget(target.revision, 100)]
        self._api.apply(with_traffic(service, only, before.history, None))
        self._wait_routed("cut over", target.revision, 100)
        self.settle()

    def _add_candidate(self, rendered: Rendered, before: GatewayRecord) -> None:
        """Make the gateway's new revision ready without giving it traffic."""
        revision = rendered.revision
        # a kept revision is found, not made again: Knative does not make one twice
        existing = before.service and self._api.get(REVISION, self._namespace, revision)
        template = before.service["spec"]["template"] if before.service and existing else None
        serving = before.serving()
        others = [line for line in serving if line.revision != revision]
        if not serving or (not others and before.revision == revision):
            lines = [TrafficTarget(revision, 100)]
        else:  # a canary's share goes back for a moment, until all of the traffic moves
            lines = [TrafficTarget(others[0].revision, 100), TrafficTarget(revision, 0, NEXT)]
        self._api.apply(with_traffic(rendered.gateway, lines, before.history, template))
        self._wait_routed("gateway ready", revision, 0)

    def _cut_over(self, rendered: Rendered, release: str, model: str) -> None:
        """The cut-over: traffic and record in one write."""
        before, revision = self.record(), rendered.revision
        template = before.service["spec"]["template"] if before.service else None
        lines = traffic_after(before, revision, self._canary_percent)
        history, share = list(before.history), lines[-1].percent
        if share == 100:
            history = history_after(before, release, revision, model, self._keep)
        self._api.apply(with_traffic(rendered.gateway, lines, history, template))
        self._wait_routed("cut over", revision, share)

    def _wait_ready(self, label: str, services: set[str]) -> None:
        """Wait until all of `services` are ready."""
        self._wait(label, services, is_ready)

    def _wait_routed(self, label: str, revision: str, percent: int) -> None:
        """Wait until the gateway's route reaches `revision` with `percent` of the traffic."""
        self._wait(label, {self._scope.gateway}, lambda live: _routed(live, revision, percent))

    def _wait(self, label: str, services: set[str], ready: Callable[[Object], bool]) -> None:
        watch = ServiceWatch(self._api, self._scope, self._older)
        with self._progress.step(label, len(services), "steps") as step:
            watch.wait(self._services, services, ready, step, self._deadline)

    def _clear_failed(self, services: set[str], before: GatewayRecord) -> None:
        """Remove revisions that failed, so that they are made again.

        Knative does not try a revision twice, and a pod that could not start waits ever longer.
        One that gets traffic, or is ready, or is a kept release's, stays.
        """
        spared = {line.revision for line in before.traffic if line.percent}
        spared |= {kept.revision for kept in before.history}
        revisions, _ = self._api.list(REVISION, self._namespace, self._scope.selector)
        pods, _ = self._api.list(POD, self._namespace, self._scope.selector)
        self._older = frozenset(pod["metadata"].get("uid", "") for pod in pods)
        stuck = {problem.pod for problem in pod_problems(pods, ()) if not problem.unplaced}
        hopeless = {
            pod["metadata"]["labels"].get(KNATIVE.revision)
            for pod in pods
            if pod["metadata"]["name"] in stuck
        }
        for revision in revisions:
            name, ready = revision["metadata"]["name"], condition(revision, "Ready").get("status")
            service = revision["metadata"]["labels"].get(KNATIVE.service)
            if service not in services or name in spared or ready == "True":
                continue
            if ready == "False" or name in hopeless:
                self._api.delete(REVISION, self._namespace, name)

    def _restore(self, services: Iterable[str]) -> None:
        """Give retired functions their own min-scale back."""
        for name in services:
            live = self._api.get(KSERVICE, self._namespace, name)
            if live is not None:
                self._scale(_revision(live), _min_scale(live))

    def _scale(self, revision: str, replicas: str) -> None:
        """Set the min-scale of a running revision, without making another one.

        A new revision would load every row again. The revision's annotation is what Knative's
        controller copies to its autoscaler; older controllers copy only once, so both are set.
        """
        patch = {"metadata": {"annotations": {MIN_SCALE: replicas}}}
        for kind in (REVISION, POD_AUTOSCALER):
            live = self._api.get(kind, self._namespace, revision) if revision else None
            if live and live["metadata"].get("annotations", {}).get(MIN_SCALE) != replicas:
                self._api.merge(kind, self._namespace, revision, patch)

    def _asleep(self) -> set[str]:
        """Functions that were deployed asleep, maybe decoys: only who asks them wakes them."""
        self._services.refresh()
        return {
            name
            for name, live in self._services.objects.items()
            if live["spec"]["template"]["metadata"].get("annotations", {}).get(INITIAL_SCALE) == "0"
        }

    def _prewarm(self, services: set[str], gateway: str) -> None:
        """One replica of the gateway and of all it calls, at once: cold starts overlap."""
        self._services.refresh()
        lives = {name: self._services.objects.get(name, _NONE) for name in services}
        revisions = {_revision(live): live for live in lives.values() if _revision(live)}
        revisions[gateway] = self._services.objects.get(self._scope.gateway, _NONE)
        scalers = Mirror(self._api, POD_AUTOSCALER, self._namespace, self._scope.selector)
        scalers.refresh()
        cold = {
            revision: live
            for revision, live in revisions.items()
            if not _awake(scalers.objects.get(revision, _NONE))
        }
        for revision in cold:
            self._scale(revision, "1")
        watch = ServiceWatch(self._api, self._scope, self._older)

        def done(objects: dict[str, Object]) -> bool:
            late = [revision for revision in cold if not _awake(objects.get(revision, _NONE))]
            if late:
                watch.look([cold[revision] for revision in late])
            return not late

        with self._progress.step("functions awake", len(cold), "steps") as step:
            if cold and not scalers.wait(done, self._deadline):
                raise DeployError(
                    f"functions did not wake within {self._deadline.seconds:g} s: {watch.reason}"
                )
            step.advance(len(cold))

    def settle(self) -> None:
        """Rest what only kept releases call, remove what none calls. May run at any time."""
        now = self.record()
        kept_revisions = {kept.revision for kept in now.history} | {
            line.revision for line in now.traffic
        }
        revisions, _ = self._api.list(
            REVISION, self._namespace, f"{self._scope.selector},{names.KIND}=gateway"
        )
        called: dict[str, set[str]] = {
            revision["metadata"]["name"]: called_services(revision["spec"])
            for revision in revisions
        }
        needed = set().union(*(called[name] for name in called if name in kept_revisions))
        serving = {line.revision for line in now.traffic}
        current = set().union(*(called[name] for name in called if name in serving))
        for revision in revisions:
            if revision["metadata"]["name"] not in kept_revisions:
                self._api.delete(REVISION, self._namespace, revision["metadata"]["name"])
        self._services.refresh()
        for name, live in self._services.objects.items():
            if name == self._scope.gateway:
                continue
            if name not in needed:
                self._api.delete(BUDGET, self._namespace, name)
                self._api.delete(KSERVICE, self._namespace, name)
            else:
                self._scale(_revision(live), _min_scale(live) if name in current else "0")


_NONE: Object = {"metadata": {}}


def _routed(service: Object, revision: str, percent: int) -> bool:
    """Whether the route reaches the revision, with at least so much of the traffic.

    Only the route counts: the Service is not ready while some other revision of it fails.
    """
    status = service.get("status", {})
    lines = [line for line in status.get("traffic", []) if line.get("revisionName") == revision]
    return (
        status.get("observedGeneration") == service["metadata"].get("generation")
        and condition(service, "RoutesReady").get("status") == "True"
        and bool(lines)
        and sum(line.get("percent") or 0 for line in lines) >= percent
    )


def _awake(scaler: Object) -> bool:
    return bool(scaler.get("status", {}).get("actualScale"))


def _revision(service: Object) -> str:
    """The revision that a function's traffic goes to; empty before the first is ready."""
    return str(service.get("status", {}).get("latestReadyRevisionName", ""))


def _min_scale(service: Object) -> str:
    annotations = service["spec"]["template"]["metadata"].get("annotations", {})
    return str(annotations.get(MIN_SCALE, "0"))


def _labelled(service: Object, release: str) -> Object:
    """The gateway's Service with the labels of another release."""
    changed = copy.deepcopy(service)
    changed["metadata"]["labels"] |= {
        names.RELEASE: names.short(release),
        names.DIGEST: names.short(release),
    }
    changed["metadata"]["annotations"] |= {names.RELEASE: release, names.DIGEST: release}
    return changed
