"""The functions as Deployments with Services. The gateway has a Deployment for each release.

Kubernetes tells a pod to end and takes its address from everybody at the same time, so for a moment
new connections still come: the pod waits that long before it drains.
"""

from __future__ import annotations

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.deploy.kubernetes.kinds import DEPLOYMENT, SERVICE
from erless.deploy.kubernetes.pod_names import PLAIN
from erless.deploy.kubernetes.render.cluster_function import HTTPS_PORT, ClusterFunction, Object
from erless.deploy.kubernetes.render.pods import DRAIN_S, PORT
from erless.deploy.target import Desired

__all__ = [
    "INTERCEPTOR_PORT",
    "LOWEST",
    "deployment",
    "function_services",
    "gateway_deployment",
    "gateway_service",
]

LOWEST = "erless.dev/min-replicas"  # annotation: replicas of a function that does not rest
FORGOTTEN_S = 5  # until every node has heard that a pod's address is gone
GRACE_S = FORGOTTEN_S + DRAIN_S + 5
HUNG_GRACE_S = 2  # of a process that no longer answers: there is nothing to drain
INTERCEPTOR, INTERCEPTOR_PORT = "keda-add-ons-http-interceptor-proxy", 8080


def deployment(function: ClusterFunction, desired: Desired, settings: ClusterSettings) -> Object:
    """The Deployment of a shard or of the tower: a new pod is ready before an old one ends."""
    labels = {PLAIN.service: function.service}
    document = _deployment(function, function.service, labels, desired, settings)
    document["spec"]["selector"] = {"matchLabels": labels}
    return document


def gateway_deployment(
    gateway: ClusterFunction, desired: Desired, settings: ClusterSettings
) -> Object:
    """The Deployment of a release's gateway, named for the release and its own template."""
    labels = {PLAIN.service: gateway.service}
    document = _deployment(gateway, gateway.service, labels, desired, settings)
    revision = settings.scope.revision(desired.release.digest, document["spec"]["template"])
    document["metadata"]["name"] = revision
    document["spec"]["template"]["metadata"]["labels"][PLAIN.revision] = revision
    document["spec"]["selector"] = {"matchLabels": {PLAIN.revision: revision}}
    return document


def _deployment(
    function: ClusterFunction,
    name: str,
    labels: dict[str, str],
    desired: Desired,
    settings: ClusterSettings,
) -> Object:
    metadata = function.metadata(desired.release.digest, settings, name=name)
    metadata["annotations"][LOWEST] = str(max(function.scaling.min_scale, 1))
    pod = function.pod(settings, desired.store)
    container = pod["containers"][0]
    container["lifecycle"] = {"preStop": {"sleep": {"seconds": FORGOTTEN_S}}}
    container["livenessProbe"]["terminationGracePeriodSeconds"] = HUNG_GRACE_S
    return {
        "apiVersion": DEPLOYMENT.api,
        "kind": DEPLOYMENT.kind,
        # how many replicas there are is the autoscaler's matter: nothing is said of it here
        "metadata": metadata,
        "spec": {
            "progressDeadlineSeconds": function.progress_s,
            "revisionHistoryLimit": 1,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "template": {
                "metadata": {
                    "labels": function.labels(settings) | labels,
                    "annotations": function.pod_notes(settings),
                },
                "spec": pod | {"terminationGracePeriodSeconds": GRACE_S},
            },
        },
    }


def function_services(
    function: ClusterFunction, release: str, settings: ClusterSettings, interceptor: str
) -> list[Object]:
    """The Service of a shard or of the tower.

    Args:
        function: it.
        release: that it is applied for.
        settings: the cluster.
        interceptor: namespace of KEDA's, where the function may be at zero: calls go there, and
            from there to a Service of the pods. Else empty.
    """
    selector = {PLAIN.service: function.service}
    if not interceptor:
        ports = _ports(PORT, function.port)
        spec = {"type": "ClusterIP", "selector": selector, "ports": ports}
        return [_service(function.service, function, release, settings, spec)]
    host = f"{INTERCEPTOR}.{interceptor}.{names.CLUSTER_LOCAL}"
    alias = {"type": "ExternalName", "externalName": host}
    pods = {"type": "ClusterIP", "selector": selector, "ports": _ports(PORT, PORT)}
    return [
        _service(function.service, function, release, settings, alias),
        _service(f"{function.service}-pods", function, release, settings, pods),
    ]


def gateway_service(
    gateway: ClusterFunction, revision: str, release: str, settings: ClusterSettings
) -> Object:
    """The gateway's Service, whose selector says which release's gateway answers."""
    spec = {
        "type": "LoadBalancer" if gateway.public else "ClusterIP",
        "selector": {PLAIN.revision: revision},
        "ports": _ports(PORT),
    }
    service = _service(gateway.service, gateway, release, settings, spec)
    service["metadata"]["annotations"][names.FULL_COPY] = str(gateway.full_copy_bytes)
    return service


def _service(
    name: str, function: ClusterFunction, release: str, settings: ClusterSettings, spec: Object
) -> Object:
    scope = settings.scope
    return {
        "apiVersion": SERVICE.api,
        "kind": SERVICE.kind,
        "metadata": names.metadata(
            name, release, namespace=scope.namespace, labels=function.labels(settings)
        ),
        "spec": spec,
    }


def _ports(target: int, port: int = 80) -> list[Object]:
    name = "https" if port == HTTPS_PORT else "http"
    return [{"name": name, "port": port, "targetPort": target, "protocol": "TCP"}]
