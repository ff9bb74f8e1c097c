"""`status` of the Knative target: Services, autoscalers and pods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from erless.deploy.knative.gateway_record import read_record
from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.kinds import KSERVICE, POD_AUTOSCALER, REVISION
from erless.deploy.kubernetes.pod_names import KNATIVE
from erless.deploy.kubernetes.releases import GatewayRecord, called_services
from erless.deploy.kubernetes.status import function_name, function_status, observe, status_of
from erless.deploy.kubernetes.watching import condition
from erless.deploy.target import Status
from erless.errors import NotDeployedError

__all__ = ["read_status"]

Object = dict[str, Any]


def read_status(api: Api, scope: names.Scope) -> Status:
    """Everything that runs in `scope`.

    Raises:
        NotDeployedError: no gateway of ours is there.
    """
    services, _ = api.list(KSERVICE, scope.namespace, scope.selector)
    by_name = {service["metadata"]["name"]: service for service in services}
    record = read_record(by_name.get(scope.gateway))
    if record.service is None:
        raise NotDeployedError(f"nothing is deployed in namespace {scope.namespace}")
    scalers, _ = api.list(POD_AUTOSCALER, scope.namespace, scope.selector)
    scale = {scaler["metadata"]["name"]: scaler.get("status", {}) for scaler in scalers}
    seen = observe(api, scope)
    called = _called(api, scope, record)
    functions = []
    for name, service in by_name.items():
        is_gateway = name == scope.gateway
        for revision in _revisions(service, record, is_gateway):
            pods = _pods_of(seen.pods, name, revision if is_gateway else "")
            now = name in called or (is_gateway and revision == record.revision)
            if now or pods:  # what only a kept release calls, and rests, runs nowhere
                wanted = int(scale.get(revision, {}).get("desiredScale") or 0)
                functions.append(
                    function_status(
                        service,
                        _display_name(service, revision, now),
                        pods,
                        seen,
                        wanted=max(wanted, 0),
                        failure=_failure(service),
                    )
                )
    return status_of("knative", record, record.service.get("status", {}).get("url", ""), functions)


def _called(api: Api, scope: names.Scope, record: GatewayRecord) -> set[str]:
    """The Services that the current release calls."""
    name = record.revision
    live = api.get(REVISION, scope.namespace, name) if name else None
    return called_services(live["spec"]) if live else set()


def _display_name(service: Object, revision: str, now: bool) -> str:
    """A function's name; where only another release calls it, with its revision."""
    return function_name(service) if now else f"{function_name(service)} ({revision})"


def _revisions(service: Object, record: GatewayRecord, is_gateway: bool) -> Iterable[str]:
    """The revisions of a Service that anyone can reach."""
    if is_gateway:
        return [line.revision for line in record.traffic]
    status = service.get("status", {})
    return [status.get("latestReadyRevisionName") or status.get("latestCreatedRevisionName", "")]


def _pods_of(pods: Sequence[Object], service: str, revision: str) -> list[Object]:
    """A function's pods: of all its revisions, or where each is one of its own, of that one.

    A shard's or tower's newest revision may fail while an older one answers; its pods know why.
    """
    key, value = (KNATIVE.revision, revision) if revision else (KNATIVE.service, service)
    return [pod for pod in pods if pod["metadata"]["labels"].get(key) == value]


def _failure(service: Object) -> str:
    """Why Knative calls the Service failed; empty where it does not."""
    ready = condition(service, "Ready")
    if ready.get("status") != "False":
        return ""
    return f"{ready.get('reason', '')}: {ready.get('message', '')}"
