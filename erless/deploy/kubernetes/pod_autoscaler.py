"""The status-aware autoscaler on a cluster: pods grow and shrink in place, by their own counters.

How many pods there are is another autoscaler's matter (Knative's), whose target is then that of a
pod of the largest size. Pods carry what is to be known of their function as an annotation, so that
nothing is asked but pods: to list them, to read their metrics through the API server's proxy, and
to resize them. A pod that is made again has its template's size, and grows with the next tick.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from erless.autoscale.kpa import Observation
from erless.autoscale.status import StatusScaler
from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api, Missing
from erless.deploy.kubernetes.kinds import POD
from erless.deploy.kubernetes.pod_metrics import Samples, read_samples
from erless.deploy.kubernetes.pod_size import DEFERRED, INFEASIBLE, PodSize, read_size, resize
from erless.deploy.kubernetes.pod_sizing import PodSizing
from erless.deploy.kubernetes.status import pod_serves
from erless.errors import DeployError
from erless.specs.plan import Scaling

__all__ = ["PodAutoscaler", "Resized"]

Object = dict[str, Any]
REFUSED_S = 60.0  # what does not fit is not asked for again so long
LEAST_CHANGE = 0.05  # of a pod's size: less is not worth a request


class Resized(NamedTuple):
    """One pod for which another size was asked, or that does not get what was asked for it."""

    function: str
    pod: str
    vcpu: float
    why: str

    def __str__(self) -> str:
        return f"{self.function} {self.pod}: {self.vcpu:.3g} vCPU: {self.why}"


class _SizedPod(NamedTuple):
    """A pod that serves, and what it has."""

    pod: Object
    sizing: PodSizing
    size: PodSize

    @property
    def name(self) -> str:
        """The pod's."""
        return str(self.pod["metadata"]["name"])

    @property
    def created(self) -> str:
        """When, as Kubernetes writes it."""
        return str(self.pod["metadata"].get("creationTimestamp", ""))


class _Refusal(NamedTuple):
    """A pod has no more than `vcpu` until then."""

    vcpu: float
    until_s: float


class _Function:
    """The autoscaler of one function, and its pods' counters when they were last read."""

    def __init__(self, sizing: PodSizing, now_s: float, ready: int) -> None:
        self.scaler = StatusScaler(_fixed(ready), sizing.sizing, now_s, ready, sizing.vcpu)
        self._read: dict[str, Samples] = {}
        self._read_s = now_s

    def decide(
        self, sizing: PodSizing, samples: dict[str, Samples], ready: int, now_s: float
    ) -> tuple[float, str]:
        """vCPU for each of `ready` pods, and why; `samples`: of those that answered.

        Never less than planned: what a pod does beside requests (probes, metrics) counts nowhere.
        """
        self.scaler.sizing, self.scaler.scaling = sizing.sizing, _fixed(ready)
        known = [pod for pod in samples if pod in self._read]
        took_s = now_s - self._read_s
        rate = self._grown("requests", samples) / took_s * ready / len(known) if known else None
        periods, throttled = self._grown("periods", samples), self._grown("throttled", samples)
        self._read, self._read_s = samples, now_s
        seen = Observation(
            now_s,
            rate,
            ready,
            requests_s=rate,
            throttled=throttled / periods if periods else 0.0,
        )
        decision = self.scaler.observe(seen)
        vcpu = max(decision.vcpu or 0.0, sizing.vcpu)
        self.scaler.state = self.scaler.state._replace(vcpu=vcpu)
        return vcpu, decision.reason

    def _grown(self, name: str, samples: dict[str, Samples]) -> float:
        """By how much a counter has grown, over all pods that were read before."""
        return sum(
            max(0.0, found.get(name, 0.0) - self._read[pod].get(name, 0.0))
            for pod, found in samples.items()
            if pod in self._read
        )


def _fixed(ready: int) -> Scaling:
    """As many replicas as there are: another autoscaler decides on their number."""
    return Scaling(min_scale=ready, max_scale=ready, initial_scale=ready)


class PodAutoscaler:
    """Sizes of the pods of one model.

    Args:
        api: the cluster.
        scope: the model's objects.
        clock: seconds that only go forward.
    """

    def __init__(
        self, api: Api, scope: names.Scope, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api, self._scope, self._clock = api, scope, clock
        self._functions: dict[str, _Function] = {}
        self._refusals: dict[str, _Refusal] = {}
        self._deferred: set[str] = set()

    def tick(self) -> list[Resized]:
        """Look at all pods, and ask for other sizes where the load wants them.

        Raises:
            DeployError: the pods cannot be listed.
        """
        listed, _ = self._api.list(POD, self._scope.namespace, self._scope.selector)
        groups: dict[str, list[_SizedPod]] = {}
        for pod in listed:
            sizing, size = PodSizing.of(pod), read_size(pod)
            if sizing is not None and size is not None and pod_serves(pod):
                groups.setdefault(_function_key(pod), []).append(_SizedPod(pod, sizing, size))
        pods = [each.name for group in groups.values() for each in group]
        samples = read_samples(self._api, self._scope.namespace, pods)
        samples = {pod: found for pod, found in samples.items() if found}
        now_s = self._clock()
        done: list[Resized] = []
        for key, group in groups.items():
            done += self._resize_function(key, group, samples, now_s)
        self._forget(set(groups), {pod["metadata"]["uid"] for pod in listed})
        return done

    def _resize_function(
        self, key: str, group: list[_SizedPod], samples: dict[str, Samples], now_s: float
    ) -> Iterator[Resized]:
        """Decide on the size of one function's pods, and ask for it."""
        sizing = max(group, key=lambda each: each.created).sizing  # as deployed last
        function = self._functions.get(key)
        if function is None:
            function = self._functions[key] = _Function(sizing, now_s, len(group))
        told = {each.name: samples[each.name] for each in group if each.name in samples}
        vcpu, why = function.decide(sizing, told, len(group), now_s)
        for each in group:
            yield from self._resize_pod(each, vcpu, why, now_s)

    def _resize_pod(
        self, sized: _SizedPod, vcpu: float, why: str, now_s: float
    ) -> Iterator[Resized]:
        """Ask for `vcpu`, or for less where its node has not more."""
        pod, sizing, size = sized
        uid, function, name = pod["metadata"]["uid"], sizing.function, sized.name
        if size.pending == INFEASIBLE:
            self._refusals[uid] = _Refusal(size.given, now_s + REFUSED_S)
            why = f"{size.asked:.3g} never fit its node: {size.why}"
        if size.pending != DEFERRED:
            self._deferred.discard(uid)
        elif uid not in self._deferred:
            self._deferred.add(uid)
            yield Resized(function, name, size.given, f"waits for room: {size.why}")
        refusal = self._refusals.get(uid)
        if refusal is not None and now_s < refusal.until_s:
            vcpu = min(vcpu, refusal.vcpu)
        if abs(vcpu - size.asked) < LEAST_CHANGE * size.asked:
            return
        try:
            resize(self._api, pod, vcpu, sizing.overcommit)
        except (Missing, DeployError) as error:
            self._refusals[uid] = _Refusal(size.asked, now_s + REFUSED_S)
            yield Resized(function, name, size.given, f"not resized: {error}")
        else:
            yield Resized(function, name, vcpu, why)

    def _forget(self, functions: set[str], uids: set[str]) -> None:
        for key in self._functions.keys() - functions:
            del self._functions[key]
        for uid in self._refusals.keys() - uids:
            del self._refusals[uid]
        self._deferred &= uids


def _function_key(pod: Object) -> str:
    labels = pod["metadata"]["labels"]
    return f"{labels.get(names.KIND)} {labels.get(names.DIGEST)}"
