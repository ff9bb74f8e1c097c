"""`status` of the Knative target: Services, autoscalers, pods, and the functions' own metrics.

Metrics are read through the API server's proxy, so that nothing but the kubeconfig is needed;
where the proxy does not reach the pods, rates are 0 and memory is what the pods reserve.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

from erless.deploy.knative.gateway_record import GatewayRecord, called_services, read_record
from erless.deploy.knative.readiness import REVISION_LABEL, SERVICE_LABEL, condition, read_events
from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api, Missing
from erless.deploy.kubernetes.kinds import KSERVICE, POD, POD_AUTOSCALER, POD_METRICS, REVISION
from erless.deploy.kubernetes.reasons import pod_problems
from erless.deploy.kubernetes.render.pods import PORT
from erless.deploy.target import FunctionState, FunctionStatus, Status
from erless.errors import DeployError, NotDeployedError
from erless.specs.functions import FunctionKind

__all__ = ["function_name", "pod_serves", "quantity", "read_status"]

Object = dict[str, Any]
Samples = dict[str, float]
RATE_S = 1.0  # between the two readings that rates come from
THREADS = 16
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
_SAMPLE = re.compile(r"^(erless_\w+)(?:\{([^}]*)\})? (\S+)")
_LE = re.compile(r'le="([^"]+)"')


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


def read_status(api: Api, scope: names.Scope) -> Status:
    """Everything that runs in `scope`.

    Raises:
        NotDeployedError: no gateway of ours is there.
    """
    namespace = scope.namespace
    services, _ = api.list(KSERVICE, namespace, scope.selector)
    by_name = {service["metadata"]["name"]: service for service in services}
    record = read_record(by_name.get(scope.gateway))
    if record.service is None:
        raise NotDeployedError(f"nothing is deployed in namespace {namespace}")
    pods, _ = api.list(POD, namespace, scope.selector)
    scalers, _ = api.list(POD_AUTOSCALER, namespace, scope.selector)
    scale = {scaler["metadata"]["name"]: scaler.get("status", {}) for scaler in scalers}
    used = _used_memory(api, scope)
    rates = _rates(api, namespace, [pod for pod in pods if pod_serves(pod)])
    called = _called(api, namespace, record)
    events = read_events(api, namespace) if any(not pod_serves(pod) for pod in pods) else []
    functions = []
    for service in services:
        is_gateway = _is_gateway(service)
        for revision in _revisions(service, record):
            function_pods = _pods_of(pods, service, revision)
            now = service["metadata"]["name"] in called or (
                is_gateway and revision == record.revision
            )
            if now or function_pods:  # what only a kept release calls, and rests, runs nowhere
                functions.append(
                    _function(
                        service,
                        _display_name(service, revision, now),
                        function_pods,
                        events,
                        scale.get(revision, {}),
                        used,
                        rates,
                    )
                )
    functions.sort(key=lambda function: (function.kind, function.tier, function.name))
    current = record.current
    release = current.release if current else ""
    copies = max((function.ready for function in functions), default=0)
    return Status(
        target="knative",
        release=release,
        url=record.service.get("status", {}).get("url", ""),
        functions=tuple(functions),
        memory_bytes=sum(function.memory_bytes for function in functions),
        model_wise_bytes=max(copies, 1) * _full_copy(record.service),
    )


def _is_gateway(service: Object) -> bool:
    return bool(service["metadata"]["name"] == names.scope_of(service).gateway)


def _full_copy(gateway: Object) -> int:
    """Bytes of one replica of the whole model, as the gateway's Service notes them."""
    return int(gateway["metadata"].get("annotations", {}).get(names.FULL_COPY, "0"))


def _called(api: Api, namespace: str, record: GatewayRecord) -> set[str]:
    """The Services that the current release calls."""
    live = api.get(REVISION, namespace, record.revision) if record.revision else None
    return called_services(live) if live else set()


def _display_name(service: Object, revision: str, now: bool) -> str:
    """A function's name; where only another release calls it, with its revision."""
    return function_name(service) if now else f"{function_name(service)} ({revision})"


def _revisions(service: Object, record: GatewayRecord) -> Iterable[str]:
    """The revisions of a Service that anyone can reach."""
    if _is_gateway(service):
        return [line.revision for line in record.traffic]
    status = service.get("status", {})
    return [status.get("latestReadyRevisionName") or status.get("latestCreatedRevisionName", "")]


def _pods_of(pods: list[Object], service: Object, revision: str) -> list[Object]:
    """A function's pods: of all its revisions, or where each is one of its own, of that one.

    A shard's or tower's newest revision may fail while an older one answers; its pods know why.
    """
    name = service["metadata"]["name"]
    if _is_gateway(service):
        return [pod for pod in pods if pod["metadata"]["labels"].get(REVISION_LABEL) == revision]
    return [pod for pod in pods if pod["metadata"]["labels"].get(SERVICE_LABEL) == name]


def pod_serves(pod: Object) -> bool:
    """Whether a pod serves, and is not leaving."""
    return condition(pod, "Ready").get("status") == "True" and not _leaving(pod)


def _leaving(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _function(
    service: Object,
    name: str,
    pods: list[Object],
    events: list[Object],
    scale: Object,
    used: Mapping[str, int],
    rates: Mapping[str, _Rates],
) -> FunctionStatus:
    meta = service["metadata"]
    labels = meta["labels"]
    staying = [pod for pod in pods if not _leaving(pod)]
    ready = sum(pod_serves(pod) for pod in pods)
    wanted = max(int(scale.get("desiredScale") or 0), 0)
    state, reason = _state(service, pods, events, ready, wanted)
    measured = [rates[pod["metadata"]["name"]] for pod in pods if pod["metadata"]["name"] in rates]
    rps = sum(rate.rps for rate in measured)
    if state is FunctionState.SERVING and not rps:
        state = FunctionState.IDLE
    tails = [rate.p95_ms for rate in measured if rate.p95_ms is not None]
    disk_bytes = int(meta["annotations"].get(names.DISK, "0"))
    return FunctionStatus(
        name=name,
        kind=cast(FunctionKind, labels.get(names.KIND, "sparse")),
        tier=labels.get(names.TIER, ""),
        digest=meta["annotations"].get(names.DIGEST, ""),
        ready=ready,
        wanted=wanted,
        rps=round(rps, 3),
        p95_ms=max(tails, default=None),
        memory_bytes=sum(used.get(pod["metadata"]["name"]) or _reserved(pod) for pod in staying),
        state=state,
        reason=reason,
        disk_bytes=disk_bytes * ready,
        disk_reads_s=sum(rate.disk_reads_s for rate in measured) if disk_bytes else None,
    )


def _state(
    service: Object, pods: list[Object], events: list[Object], ready: int, wanted: int
) -> tuple[FunctionState, str]:
    """Where a function stands and why it fails, in its pods' words before Knative's."""
    staying = [pod for pod in pods if not _leaving(pod)]
    problems = sorted(pod_problems(staying, events), key=lambda problem: not problem.final)
    reason = problems[0].what if problems else ""
    condition_now = condition(service, "Ready")
    if condition_now.get("status") == "False":
        knative = f"{condition_now.get('reason', '')}: {condition_now.get('message', '')}"
        return FunctionState.FAILING, reason or knative
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

    def read(pod: str) -> Samples:
        path = POD.path(namespace, f"{pod}:{PORT}", "proxy/metrics")
        try:
            return _samples(api.text(path, timeout_s=2))
        except (DeployError, Missing):
            return {}

    if not ready:
        return {}
    with ThreadPoolExecutor(min(THREADS, len(ready))) as pool:
        began = time.monotonic()
        first = dict(zip(ready, pool.map(read, ready), strict=True))
        if not any(first.values()):
            return {}
        time.sleep(RATE_S)
        second = dict(zip(ready, pool.map(read, ready), strict=True))
        took = time.monotonic() - began
    return {pod: _rate(first[pod], second[pod], took) for pod in ready if second[pod]}


def _samples(text: str) -> Samples:
    """Requests, the cumulative buckets of their time, and reads, from Prometheus' text."""
    samples: Samples = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match is None:
            continue
        name, labels, value = match[1], match[2] or "", float(match[3])
        if name == "erless_requests_total":
            samples["requests"] = samples.get("requests", 0.0) + value
        elif name == "erless_disk_reads_total":
            samples["disk"] = samples.get("disk", 0.0) + value
        elif name == "erless_request_seconds_bucket":
            bound = _LE.search(labels)
            if bound:
                samples[bound[1]] = samples.get(bound[1], 0.0) + value
    return samples


def _rate(first: Samples, second: Samples, took_s: float) -> _Rates:
    grown = {key: second[key] - first.get(key, 0.0) for key in second}
    requests, reads = grown.pop("requests", 0.0), grown.pop("disk", 0.0)
    steps = grown
    if not steps.get("+Inf"):
        steps = {key: second[key] for key in steps}  # nothing just now: since it started
    total = steps.get("+Inf", 0.0)
    if not total:
        return _Rates(requests / took_s, None, reads / took_s)
    bounds = sorted((float(key), count) for key, count in steps.items() if key != "+Inf")
    p95 = next((bound for bound, count in bounds if count >= 0.95 * total), bounds[-1][0])
    return _Rates(requests / took_s, 1e3 * p95, reads / took_s)
