"""What runs of a function, from its pods and what they say of themselves, on any target.

Metrics are read through the API server's proxy, so that nothing but the kubeconfig is needed;
where the proxy does not reach the pods, rates are 0 and memory is what the pods reserve.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.kinds import POD, POD_METRICS
from erless.deploy.kubernetes.pod_metrics import COUNTERS, Samples, read_samples, speaks_tls
from erless.deploy.kubernetes.reasons import pod_problems
from erless.deploy.kubernetes.releases import GatewayRecord
from erless.deploy.kubernetes.watching import condition, read_events
from erless.deploy.target import FunctionState, FunctionStatus, Status
from erless.errors import DeployError
from erless.specs.functions import FunctionKind

__all__ = [
    "PodsSeen",
    "function_name",
    "function_status",
    "observe",
    "pod_serves",
    "quantity",
    "status_of",
]

Object = dict[str, Any]
RATE_S = 1.0  # between the two readings that rates come from
_UNITS = {
    "": 1.0,
    "n": 1e-9,
    "u": 1e-6,
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
}


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number.

    >>> quantity("250m"), quantity("2Mi")
    (0.25, 2097152.0)
    """
    match = re.fullmatch(r"([\d.]+)([a-zA-Z]*)", str(text))
    return float(match[1]) * _UNITS.get(match[2], 1.0) if match else 0.0


def function_name(service: Object) -> str:
    """What the plan calls the function of a Service."""
    meta = service["metadata"]
    return str(meta.get("annotations", {}).get(names.FUNCTION, meta["name"]))


@dataclass(frozen=True, slots=True)
class PodsSeen:
    """All pods of a scope, its events, memory used by pod, and rates by pod."""

    pods: Sequence[Object]
    events: Sequence[Object]
    used: Mapping[str, int]
    rates: Mapping[str, _Rates]


def observe(api: Api, scope: names.Scope) -> PodsSeen:
    """Look at all pods of `scope`, for about a second."""
    pods, _ = api.list(POD, scope.namespace, scope.selector)
    rates = _rates(api, scope.namespace, [pod for pod in pods if pod_serves(pod)])
    troubled = any(not pod_serves(pod) for pod in pods)
    events = read_events(api, scope.namespace) if troubled else []
    return PodsSeen(pods, events, _used_memory(api, scope), rates)


def status_of(
    target: str, record: GatewayRecord, url: str, functions: Sequence[FunctionStatus]
) -> Status:
    """The status of a deployment whose gateway's Service says `record`."""
    functions = sorted(functions, key=lambda each: (each.kind, each.tier, each.name))
    current = record.current
    copies = max((function.ready for function in functions), default=0)
    notes = (record.service or {"metadata": {}})["metadata"].get("annotations", {})
    return Status(
        target=target,
        release=current.release if current else "",
        url=url,
        functions=tuple(functions),
        memory_bytes=sum(function.memory_bytes for function in functions),
        model_wise_bytes=max(copies, 1) * int(notes.get(names.FULL_COPY, "0")),
    )


def pod_serves(pod: Object) -> bool:
    """Whether a pod serves, and is not leaving."""
    return condition(pod, "Ready").get("status") == "True" and not _leaving(pod)


def _leaving(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def function_status(
    document: Object,
    name: str,
    pods: Sequence[Object],
    seen: PodsSeen,
    *,
    wanted: int,
    failure: str,
) -> FunctionStatus:
    """The status of one function.

    Args:
        document: the object that stands for it.
        name: as people call it.
        pods: its own.
        seen: what was observed of all.
        wanted: replicas, by its autoscaler.
        failure: what its controller says where it calls the function failed; else empty.
    """
    meta = document["metadata"]
    labels = meta["labels"]
    staying = [pod for pod in pods if not _leaving(pod)]
    ready = sum(pod_serves(pod) for pod in pods)
    state, reason = _state(pods, seen.events, ready, wanted, failure)
    measured = [
        seen.rates[pod["metadata"]["name"]] for pod in pods if pod["metadata"]["name"] in seen.rates
    ]
    rps = sum(rate.rps for rate in measured)
    if state is FunctionState.SERVING and not rps:
        state = FunctionState.IDLE
    tails = [rate.p95_ms for rate in measured if rate.p95_ms is not None]
    disk_bytes = int(meta["annotations"].get(names.DISK, "0"))
    memory = sum(seen.used.get(pod["metadata"]["name"]) or _reserved(pod) for pod in staying)
    return FunctionStatus(
        name=name,
        kind=cast(FunctionKind, labels.get(names.KIND, "sparse")),
        tier=labels.get(names.TIER, ""),
        digest=meta["annotations"].get(names.DIGEST, ""),
        ready=ready,
        wanted=wanted,
        rps=round(rps, 3),
        p95_ms=max(tails, default=None),
        memory_bytes=memory,
        state=state,
        reason=reason,
        disk_bytes=disk_bytes * ready,
        disk_reads_s=sum(rate.disk_reads_s for rate in measured) if disk_bytes else None,
    )


def _state(
    pods: Sequence[Object], events: Sequence[Object], ready: int, wanted: int, failure: str
) -> tuple[FunctionState, str]:
    """Where a function stands and why it fails, in its pods' words before the controller's."""
    staying = [pod for pod in pods if not _leaving(pod)]
    problems = sorted(pod_problems(staying, events), key=lambda problem: not problem.final)
    reason = problems[0].what if problems else ""
    if failure:
        return FunctionState.FAILING, reason or failure
    if ready:
        return FunctionState.SERVING, reason
    if problems and problems[0].final:
        return FunctionState.FAILING, reason
    if staying or wanted:
        return FunctionState.WAKING, reason
    return (FunctionState.DRAINING, "") if pods else (FunctionState.AT_ZERO, "")


def _reserved(pod: Object) -> int:
    """Memory that the pod's containers request."""
    containers = pod.get("spec", {}).get("containers", [])
    return int(
        sum(
            quantity(container.get("resources", {}).get("requests", {}).get("memory", "0"))
            for container in containers
        )
    )


def _used_memory(api: Api, scope: names.Scope) -> dict[str, int]:
    """Working sets by pod, where a metrics server runs."""
    try:
        measured, _ = api.list(POD_METRICS, scope.namespace, scope.selector)
    except DeployError:
        return {}
    return {
        pod["metadata"]["name"]: int(
            sum(quantity(part["usage"].get("memory", "0")) for part in pod.get("containers", []))
        )
        for pod in measured
    }


class _Rates(NamedTuple):
    """Of one pod: requests and reads of its disk per second, p95 in ms."""

    rps: float
    p95_ms: float | None
    disk_reads_s: float


def _rates(api: Api, namespace: str, pods: list[Object]) -> dict[str, _Rates]:
    """Rates by pod, from two readings of its metrics."""
    ready = [pod["metadata"]["name"] for pod in pods]
    secured = {pod["metadata"]["name"] for pod in pods if speaks_tls(pod)}
    began = time.monotonic()
    first = read_samples(api, namespace, ready, secured)
    if not any(first.values()):
        return {}
    time.sleep(RATE_S)
    second = read_samples(api, namespace, ready, secured)
    took = time.monotonic() - began
    return {pod: _rate(first[pod], second[pod], took) for pod in ready if second[pod]}


def _rate(first: Samples, second: Samples, took_s: float) -> _Rates:
    grown = {key: second[key] - first.get(key, 0.0) for key in second}
    requests, reads = grown.get("requests", 0.0), grown.get("disk", 0.0)
    steps = {key: count for key, count in grown.items() if key not in COUNTERS}
    if not steps.get("+Inf"):
        steps = {key: second[key] for key in steps}  # nothing just now: since it started
    total = steps.get("+Inf", 0.0)
    if not total:
        return _Rates(requests / took_s, None, reads / took_s)
    bounds = sorted((float(key), count) for key, count in steps.items() if key != "+Inf")
    p95 = next((bound for bound, count in bounds if count >= 0.95 * total), bounds[-1][0])
    return _Rates(requests / took_s, 1e3 * p95, reads / took_s)
