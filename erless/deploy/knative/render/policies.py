"""All that is not a function: namespace, account, network policies, disruption budgets, monitor."""

from __future__ import annotations

from typing import Any

from erless.deploy.knative.cluster_settings import ClusterSettings
from erless.deploy.knative.render.pods import PORT
from erless.deploy.knative.render.scaling import MIN_SCALE
from erless.deploy.kubernetes import names

__all__ = ["account", "budgets", "monitor", "namespace", "network_policies"]

Object = dict[str, Any]
SERVING = "knative-serving"
QUEUE_PORTS = (8012, 8013, 8022, 9090, 9091, 8112)  # queue-proxy: requests, admin, metrics, TLS


def namespace(release: str, settings: ClusterSettings) -> Object:
    """The namespace, with the Pod Security Standard that our pods keep as a warning."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": names.metadata(
            settings.options.namespace,
            release,
            namespace=None,
            labels={"pod-security.kubernetes.io/warn": "restricted"},
        ),
    }


def account(release: str, settings: ClusterSettings) -> Object:
    """The service account of all functions; IRSA maps it to a role by an annotation."""
    role = settings.options.role_arn
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": names.metadata(
            settings.options.service_account,
            release,
            namespace=settings.options.namespace,
            annotations={"eks.amazonaws.com/role-arn": role} if role else {},
        ),
        "automountServiceAccountToken": False,
    }


def network_policies(release: str, settings: ClusterSettings) -> list[Object]:
    """Allow connections to our pods from Knative's components, and to the others from the gateway.

    A call through Knative's ingress comes from the ingress, whoever made it: who may use the
    ingress is the ingress's matter.
    """
    ours = {"matchLabels": {names.MANAGED: names.MANAGER}}
    knative = [_namespace(space) for space in (SERVING, *settings.options.ingress_namespaces)]
    ports = [{"protocol": "TCP", "port": port} for port in (PORT, *QUEUE_PORTS)]
    gateway = {"podSelector": {"matchLabels": {names.KIND: "gateway"}}}
    metrics = (
        [_namespace(settings.options.monitoring_namespace)] if settings.options.pod_monitor else []
    )
    scrape = [{"from": metrics, "ports": [{"protocol": "TCP", "port": PORT}]}] if metrics else []
    anyone = {"ports": ports[1:2]} if settings.gateway.visibility == "public" else None

    def policy(name: str, selector: Object, rules: list[Object]) -> Object:
        return {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": names.metadata(name, release, namespace=settings.options.namespace),
            "spec": {"podSelector": selector, "policyTypes": ["Ingress"], "ingress": rules},
        }

    shards = {**ours, "matchExpressions": [_kinds("In", "sparse", "dense")]}
    front = {"matchLabels": {names.MANAGED: names.MANAGER, names.KIND: "gateway"}}
    entry = [{"from": knative, "ports": ports}, *scrape]
    return [
        policy("erless-shards", shards, [{"from": [*knative, gateway], "ports": ports}, *scrape]),
        policy("erless-gateway", front, [*entry, anyone] if anyone else entry),
    ]


def _kinds(operator: str, *values: str) -> Object:
    return {"key": names.KIND, "operator": operator, "values": list(values)}


def _namespace(name: str) -> Object:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def budgets(services: list[Object], release: str, settings: ClusterSettings) -> list[Object]:
    """One disruption budget per function that always has two replicas or more."""
    rendered = []
    for service in services:
        annotations = service["spec"]["template"]["metadata"]["annotations"]
        if int(annotations[MIN_SCALE]) < 2:
            continue  # it may be at zero or at one anyway: a budget would only block node upgrades
        name = service["metadata"]["name"]
        rendered.append(
            {
                "apiVersion": "policy/v1",
                "kind": "PodDisruptionBudget",
                "metadata": names.metadata(name, release, namespace=settings.options.namespace),
                "spec": {
                    "maxUnavailable": 1,
                    "selector": {"matchLabels": {"serving.knative.dev/service": name}},
                },
            }
        )
    return rendered


def monitor(release: str, settings: ClusterSettings) -> Object:
    """A PodMonitor: the Prometheus operator scrapes every function's own metrics.

    A gateway with a token answers them only with that token.
    """
    endpoint: Object = {"port": "user-port", "path": "/metrics"}
    if settings.options.token_secret:
        token = {"name": settings.options.token_secret, "key": "token"}
        endpoint["authorization"] = {"type": "Bearer", "credentials": token}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": names.metadata("erless", release, namespace=settings.options.namespace),
        "spec": {
            "selector": {"matchLabels": {names.MANAGED: names.MANAGER}},
            "podMetricsEndpoints": [endpoint],
            "podTargetLabels": [names.KIND, names.TIER, names.DIGEST],
        },
    }
