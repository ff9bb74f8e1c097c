"""How queries reach pods without Knative: from any pod to the gateway, from there to functions."""

from __future__ import annotations

from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.deploy.kubernetes.render.pods import PORT
from erless.deploy.kubernetes.render.policies import Routes, namespace_peer, tcp
from erless.deploy.plain_kubernetes.scaling_apis import ScalingApis

__all__ = ["routes"]


def routes(settings: ClusterSettings, apis: ScalingApis) -> Routes:
    """Only pods of the cluster reach the gateway, unless it is public; KEDA carries calls."""
    keda = [namespace_peer(settings.plain.keda_namespace)] if apis.zero else []
    return Routes(
        carriers=keda,
        ports=(PORT,),
        public=[{"ports": tcp(PORT)}],
        cluster=[{"from": [{"namespaceSelector": {}}], "ports": tcp(PORT)}],
        calls={"to": [*keda, {"podSelector": settings.scope.matching()}], "ports": tcp(PORT)},
    )
