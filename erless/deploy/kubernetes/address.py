"""How this machine reaches the gateway's URL: by its name, or by an address of a Service.

A new cluster's domain is often known to nobody's DNS. Knative's ingress tells functions apart by
the Host header, so connecting to any address of the ingress does too; without Knative any address
of the gateway's own Service does.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from urllib.parse import urlsplit

import urllib3

from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.kinds import NODE, SERVICE
from erless.deploy.kubernetes.names import CLUSTER_LOCAL
from erless.deploy.kubernetes.render.rendered import Object
from erless.errors import DeployError

__all__ = ["find_address", "ingress_services"]

CONNECT_S, ANSWER_S = 0.5, 3.0
LIVE = "/v2/health/live"
HTTP_PORT, HTTP_OK = 80, 200


def find_address(api: Api, url: str, services: Callable[[], Iterable[Object]]) -> str:
    """HOST:PORT to connect to instead of the URL's own host; empty where that one will do.

    Empty too where nothing answers: the URL is right, only not from here.

    Args:
        api: the cluster.
        url: of the gateway.
        services: gives the Services whose addresses lead to it, the likeliest first.
    """
    host = urlsplit(url).hostname or ""
    if not host or _resolves(host):
        return ""
    nodes = _nodes(api)
    for service in services():
        for address in _addresses(service, nodes):
            if _answers(address, urlsplit(url).netloc):
                return address
    return ""


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, HTTP_PORT, proto=socket.IPPROTO_TCP)
    except OSError:
        return False
    return True


def _nodes(api: Api) -> list[Object]:
    """The nodes; none where this user may not see them."""
    try:
        return api.list(NODE, None)[0]
    except DeployError:
        return []


def ingress_services(api: Api, url: str, namespaces: Sequence[str]) -> Iterator[Object]:
    """The Services of Knative's ingress; those for `url`, public or within the cluster, first."""
    internal = (urlsplit(url).hostname or "").endswith(CLUSTER_LOCAL)
    for namespace in namespaces:
        try:
            services, _ = api.list(SERVICE, namespace)
        except DeployError:
            continue
        yield from sorted(services, key=lambda service: _is_internal(service) is not internal)


def _is_internal(service: Object) -> bool:
    name = service["metadata"]["name"]
    return "internal" in name or "local" in name


def _addresses(service: Object, nodes: list[Object]) -> Iterator[str]:
    spec = service.get("spec", {})
    port = next((port for port in spec.get("ports", []) if port.get("port") == HTTP_PORT), None)
    if port is None:
        return
    balancers = service.get("status", {}).get("loadBalancer", {}).get("ingress") or []
    for balancer in balancers:
        yield join_address(balancer.get("ip") or balancer.get("hostname") or "", HTTP_PORT)
    for node in nodes if port.get("nodePort") else []:
        for address in node.get("status", {}).get("addresses", []):
            if address["type"] in ("ExternalIP", "InternalIP"):
                yield join_address(address["address"], port["nodePort"])
    if spec.get("clusterIP") not in (None, "", "None"):
        yield join_address(spec["clusterIP"], HTTP_PORT)


def join_address(host: str, port: int) -> str:
    """HOST:PORT; an IPv6 address gets brackets.

    >>> join_address("192.0.2.1", 80), join_address("2001:db8::1", 80)
    ('192.0.2.1:80', '[2001:db8::1]:80')
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _answers(address: str, host: str) -> bool:
    """Whether our gateway answers at `address` to a request for `host`."""
    parts = urlsplit(f"//{address}")
    timeout = urllib3.Timeout(connect=CONNECT_S, read=ANSWER_S)
    with urllib3.HTTPConnectionPool(parts.hostname or "", parts.port, timeout=timeout) as pool:
        try:
            answer = pool.request(
                "GET", LIVE, headers={"Host": host}, retries=False, redirect=False
            )
        except (urllib3.exceptions.HTTPError, OSError):
            return False
        return answer.status == HTTP_OK
