"""How queries reach pods by Knative: through its ingress, its activator and its queue-proxies.

A call through the ingress comes from the ingress, whoever made it: who may use the ingress is the
ingress's matter.
"""

from __future__ import annotations

from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.deploy.kubernetes.render.pods import PORT
from erless.deploy.kubernetes.render.policies import Routes, namespace_peer, tcp

__all__ = ["routes"]

SERVING = "knative-serving"
QUEUE_PORTS = (8012, 8013, 8022, 9090, 9091, 8112)  # queue-proxy: requests, admin, metrics, TLS


def routes(settings: ClusterSettings) -> Routes:
    """Knative's components reach all pods; the gateway calls functions through the ingress."""
    spaces = settings.knative.ingress_namespaces
    return Routes(
        carriers=[namespace_peer(space) for space in (SERVING, *spaces)],
        ports=(PORT, *QUEUE_PORTS),
        public=[{"ports": tcp(QUEUE_PORTS[0])}],
        cluster=(),  # they come through the ingress too
        calls={"to": [namespace_peer(space) for space in spaces]},
    )
