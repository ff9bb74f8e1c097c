"""All that is not a function: namespace, account, network policies, disruption budgets, monitor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.deploy.kubernetes.pod_names import PodNames
from erless.deploy.kubernetes.render.cluster_function import ClusterFunction, Object
from erless.deploy.kubernetes.render.pods import PORT

__all__ = ["Routes", "account", "base", "extras", "namespace_peer", "network_policies", "tcp"]

DNS_PORTS = (53, 5353)  # of the DNS servers' pods, which is what policies see; OpenShift's: 5353
HTTP_PORT, HTTPS_PORT = 80, 443
POD_IDENTITY = "169.254.170.23/32"  # of the agent on an EKS node: credentials, by HTTP


@dataclass(frozen=True, slots=True)
class Routes:
    """How queries reach pods on a target, in the words of network policies.

    carriers: who carries queries to any function, beside the gateway itself. ports: of a pod, where
    they arrive. public: rules for a gateway that anybody may reach; cluster: for one that only
    pods of the cluster do. calls: where the gateway connects to when it calls the functions.
    """

    carriers: Sequence[Object]
    ports: Sequence[int]
    public: Sequence[Object]
    cluster: Sequence[Object]
    calls: Object


def base(release: str, settings: ClusterSettings, store: str, routes: Routes) -> tuple[Object, ...]:
    """What the functions live in: namespace and account where they are erless's, and policies."""
    options = settings.options
    return (
        *([_namespace(release, settings)] if settings.create_namespace else []),
        *([account(release, settings)] if options.create_service_account else []),
        *(network_policies(release, settings, store, routes) if options.network_policies else []),
    )


def extras(
    functions: Sequence[ClusterFunction], pods: PodNames, release: str, settings: ClusterSettings
) -> tuple[Object, ...]:
    """What watches over the functions: disruption budgets, and where it is wanted a monitor."""
    monitors = [_monitor(pods, release, settings)] if settings.options.pod_monitor else []
    return (*_budgets(functions, pods, release, settings), *monitors)


def _namespace(release: str, settings: ClusterSettings) -> Object:
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


def network_policies(
    release: str, settings: ClusterSettings, store: str, routes: Routes
) -> list[Object]:
    """Who may connect to our pods, and where to they may.

    Who carries queries may connect to all, the gateway to the others. All may connect to the store
    and the collector of traces; besides only the gateway has somewhere to connect to, the functions
    that it calls.

    Args:
        release: that they are applied for.
        settings: the cluster.
        store: of the releases; a folder is mounted by the node, and no connection of a pod's.
        routes: of the target.
    """
    options = settings.options
    scope = settings.scope
    front = scope.matching(_kinds("In", "gateway"))
    shards = scope.matching(_kinds("In", "sparse", "dense"))
    outward = _outward(settings, store)

    def entry(*more: Object) -> list[Object]:
        callers = [*routes.carriers, *more]
        rules: list[Object] = []
        if callers:  # a rule that names nobody would let everybody in
            rules.append({"from": callers, "ports": tcp(*routes.ports)})
        if options.pod_monitor:
            scraper = namespace_peer(options.monitoring_namespace)
            rules.append({"from": [scraper], "ports": tcp(PORT)})
        return rules

    def policy(name: str, selector: Object, entries: list[Object], exits: list[Object]) -> Object:
        closed = options.egress == "store"
        return {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": _metadata(name, release, settings),
            "spec": {
                "podSelector": selector,
                "policyTypes": ["Ingress", "Egress"] if closed else ["Ingress"],
                "ingress": entries,
                # an empty list is stored as none, so that each apply of it would be a change
                **({"egress": exits} if closed and exits else {}),
            },
        }

    public = routes.public if settings.gateway.visibility == "public" else routes.cluster
    exits = [routes.calls, *(outward or [_dns()])]
    return [
        policy(scope.name("erless-shards"), shards, entry({"podSelector": front}), outward),
        policy(scope.gateway, front, [*entry(), *public], exits),
    ]


def _metadata(name: str, release: str, settings: ClusterSettings) -> Object:
    """Of an object of this deployment."""
    scope = settings.scope
    return names.metadata(name, release, namespace=scope.namespace, labels=scope.labels)


def _outward(settings: ClusterSettings, store: str) -> list[Object]:
    """To the S3 API and the collector of traces, wherever they are: their addresses change."""
    bucket, traces = store.startswith("s3://"), settings.traces.endpoint
    urls = [traces] if traces else []
    if bucket:  # AWS's credentials come by HTTPS too, or from the agent
        urls += [settings.options.endpoint_url or "https://", "https://"]
    if not urls:
        return []
    rules = [_dns(), {"ports": tcp(*sorted({_port(url) for url in urls}))}]
    if bucket:
        rules.append({"to": [{"ipBlock": {"cidr": POD_IDENTITY}}], "ports": tcp(HTTP_PORT)})
    return rules


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (HTTP_PORT if parts.scheme == "http" else HTTPS_PORT)


def _dns() -> Object:
    return {"ports": [*tcp(*DNS_PORTS), *({"protocol": "UDP", "port": port} for port in DNS_PORTS)]}


def tcp(*ports: int) -> list[Object]:
    """Ports of a rule."""
    return [{"protocol": "TCP", "port": port} for port in ports]


def _kinds(operator: str, *values: str) -> Object:
    return {"key": names.KIND, "operator": operator, "values": list(values)}


def namespace_peer(name: str) -> Object:
    """All pods of a namespace, as a peer of a rule."""
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _budgets(
    functions: Sequence[ClusterFunction], pods: PodNames, release: str, settings: ClusterSettings
) -> list[Object]:
    """One disruption budget per function that always has two replicas or more."""
    rendered = []
    for function in functions:
        if function.scaling.min_scale < 2:
            continue  # it may be at zero or at one anyway: a budget would only block node upgrades
        name = function.service
        rendered.append(
            {
                "apiVersion": "policy/v1",
                "kind": "PodDisruptionBudget",
                "metadata": _metadata(name, release, settings),
                "spec": {
                    "maxUnavailable": 1,
                    "selector": {"matchLabels": {pods.service: name}},
                },
            }
        )
    return rendered


def _by_scheme(endpoint: Object) -> list[Object]:
    """`endpoint` of the gateway, which speaks HTTP, and of the functions, which speak TLS.

    They show metrics to whoever asks, and nobody here knows their authority.
    """
    component = "__meta_kubernetes_pod_label_app_kubernetes_io_component"
    gateway = {"sourceLabels": [component], "regex": "gateway"}
    https = {"scheme": "https", "tlsConfig": {"insecureSkipVerify": True}}
    return [
        endpoint | {"relabelings": [gateway | {"action": "keep"}]},
        endpoint | https | {"relabelings": [gateway | {"action": "drop"}]},
    ]


def _monitor(pods: PodNames, release: str, settings: ClusterSettings) -> Object:
    """A PodMonitor: the Prometheus operator scrapes every function's own metrics.

    A gateway with a token answers them only with that token.
    """
    port: Object = {"port": pods.port} if pods.port else {"portNumber": PORT}
    endpoint = port | {"path": "/metrics"}
    if settings.options.token_secret:
        token = {"name": settings.options.token_secret, "key": "token"}
        endpoint["authorization"] = {"type": "Bearer", "credentials": token}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": _metadata(settings.scope.name("erless"), release, settings),
        "spec": {
            "selector": settings.scope.matching(),
            "podMetricsEndpoints": _by_scheme(endpoint) if settings.mutual_tls else [endpoint],
            "podTargetLabels": [names.KIND, names.TIER, names.DIGEST],
        },
    }
