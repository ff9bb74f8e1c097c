"""`status` of the target without Knative: Deployments and pods."""

from __future__ import annotations

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.kinds import DEPLOYMENT, SERVICE
from erless.deploy.kubernetes.releases import called_services
from erless.deploy.kubernetes.status import function_name, function_status, observe, status_of
from erless.deploy.plain_kubernetes.gateway_record import read_record
from erless.deploy.plain_kubernetes.readiness import failure, pods_of
from erless.deploy.target import Status
from erless.errors import NotDeployedError

__all__ = ["read_status"]


def read_status(api: Api, scope: names.Scope, url: str) -> Status:
    """Everything that runs in `scope`, whose gateway answers at `url`.

    Raises:
        NotDeployedError: no gateway of ours is there.
    """
    record = read_record(api.get(SERVICE, scope.namespace, scope.gateway))
    if record.service is None:
        raise NotDeployedError(f"nothing is deployed in namespace {scope.namespace}")
    deployments, _ = api.list(DEPLOYMENT, scope.namespace, scope.selector)
    seen = observe(api, scope)
    by_name = {deployment["metadata"]["name"]: deployment for deployment in deployments}
    gateway = by_name.get(record.revision)
    called = called_services(gateway["spec"]["template"]["spec"]) if gateway else set()
    functions = []
    for name, deployment in by_name.items():
        pods = pods_of(deployment, seen.pods)
        now = name in called or name == record.revision
        if now or pods:  # what only a kept release calls, and rests, runs nowhere
            shown = function_name(deployment)
            functions.append(
                function_status(
                    deployment,
                    shown if now else f"{shown} ({name})",
                    pods,
                    seen,
                    wanted=deployment["spec"].get("replicas", 1),
                    failure=failure(deployment),
                )
            )
    return status_of("kubernetes", record, url, functions)
