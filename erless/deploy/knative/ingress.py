"""How this machine reaches the gateway's URL: by its name, or by an address of the ingress.

A new cluster's domain is often known to nobody's DNS. Knative's ingress tells functions apart by
the Host header, so connecting to any address of the ingress does too.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

import urllib3

from erless.deploy.knative.render import Object
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.kinds import NODE, SERVICE
from erless.errors import DeployError

__all__ = ["find_address"]

CONNECT_S, ANSWER_S = 0.5, 3.0
LIVE = "/v2/health/live"
HTTP_PORT, HTTP_OK = 80, 200


def find_address(api: Api, url: str, namespaces: Sequence[str]) -> str:
    """HOST:PORT to connect to instead of the URL's own host; empty where that one will do.

    Empty too where nothing answers: the URL is right, only not from here.
    """
    host = urlsplit(url).hostname or ""
    if not host or _resolves(host):
        return ""
    for address in _candidates(api, namespaces, internal=host.endswith(".svc.cluster.local")):
        if _answers(address, urlsplit(url).netloc):
            return address
    return ""


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, HTTP_PORT, proto=socket.IPPROTO_TCP)
    except OSError:
        return False
    return True


def _candidates(api: Api, namespaces: Sequence[str], *, internal: bool) -> Iterator[str]:
    """Addresses of the ingress' Services: load balancer, node port, cluster address."""
    try:
        nodes, _ = api.list(NODE, None)
    except DeployError:
        nodes = []
    for namespace in namespaces:
        try:
            services, _ = api.list(SERVICE, namespace)
        except DeployError:
            continue
        services.sort(key=lambda service: _is_internal(service) is not internal)
        for service in services:
            yield from _addresses(service, nodes)


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
