"""Knative's settings that erless needs beyond the defaults, and the rights to deploy.

Each is a ConfigMap of which erless owns the keys below and no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "DEPLOYERS",
    "HOST_PATH_FEATURE",
    "KOURIER",
    "MESH",
    "SERVING",
    "access",
    "autoscaler_access",
    "may_be_mesh",
    "settings",
]

Object = dict[str, Any]
SERVING = "knative-serving"
KOURIER = "kourier.ingress.networking.knative.dev"
MESH = "mesh-compatibility-mode"
HOST_PATH_FEATURE = "kubernetes.podspec-volumes-hostpath"
RBAC = "rbac.authorization.k8s.io"
LABELS = {"app.kubernetes.io/managed-by": "erless"}
DEPLOYERS = "erless:deployers"  # the group of infra/terraform's deployer role
AUTOSCALER = "erless-autoscaler"  # the account of `erless autoscale`

FEATURES = (
    "kubernetes.podspec-nodeselector",  # tiers are placed on node pools
    "kubernetes.podspec-tolerations",  # GPU pools are tainted
    "kubernetes.podspec-affinity",
    "kubernetes.podspec-topologyspreadconstraints",
    "kubernetes.podspec-securitycontext",  # non-root, seccomp
    "kubernetes.podspec-volumes-emptydir",  # scratch and shard cache
)


def settings(
    ingress_class: str = KOURIER, *, domain: str | None = None, host_path: bool = False
) -> list[Object]:
    """Knative's ConfigMaps with the keys that erless needs.

    Args:
        ingress_class: of the networking layer.
        domain: under which public gateways get their names; None: Knative's own setting stays.
        host_path: whether pods may mount folders of their node, as a store that is a folder needs.
    """
    network = {"ingress-class": ingress_class}
    if not may_be_mesh(ingress_class):
        # By default one slow probe makes the activator give up pod addresses for good; a shard that
        # wakes while its former replica still drains is then not found until that one has ended.
        network[MESH] = "disabled"
    features = (*FEATURES, HOST_PATH_FEATURE) if host_path else FEATURES
    values: dict[str, dict[str, str]] = {
        "config-features": dict.fromkeys(features, "enabled"),
        # Frozen shards start at zero replicas, and every shard goes there when it is idle.
        "config-autoscaler": {"enable-scale-to-zero": "true", "allow-zero-initial-scale": "true"},
        "config-network": network,
        # Knative's own cap, written down so that `erless doctor` and people find it.
        "config-defaults": {"max-revision-timeout-seconds": "600"},
        # A pod that waits for a new node is not a failed revision (Knative 1.21 and on).
        "config-deployment": {"pod-is-always-schedulable": "true"},
    }
    if domain:
        values["config-domain"] = {domain: ""}
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": SERVING},
            "data": data,
        }
        for name, data in values.items()
    ]


def may_be_mesh(ingress_class: str) -> bool:
    """Whether pods may be unreachable by their own addresses: with Istio's networking layer."""
    return "istio" in ingress_class


def access(
    namespace: str,
    group: str = DEPLOYERS,
    ingress_namespaces: Sequence[str] = (),
    *,
    resize: bool = False,
) -> list[Object]:
    """The functions' namespace, and what `group` may do: administer it, and look around.

    Args:
        namespace: of the functions.
        group: who may deploy.
        ingress_namespaces: where Knative's ingress runs; its Services tell how a gateway whose name
            is in nobody's DNS is reached.
        resize: add the account of `erless autoscale`, which may do that and nothing else.
    """
    warn = {"pod-security.kubernetes.io/warn": "restricted"}  # as the functions' pods keep it
    own = [
        _rule("autoscaling.internal.knative.dev", "podautoscalers", "patch"),
        _rule("monitoring.coreos.com", "podmonitors", "get list patch create delete"),
        _rule("", "events", "create"),  # of alerts
        # not in the ClusterRole, which is one for the deployers of all namespaces
        _rule("", "namespaces", "get patch", (namespace,)),
    ]
    looking = [
        _rule("", "nodes", "get list"),
        _rule("apiextensions.k8s.io", "customresourcedefinitions", "get list"),
    ]
    ingress = [_rule("", "services", "list")]
    serving = [_rule("", "configmaps", "get list"), _rule("apps", "deployments", "get list")]
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": namespace, "labels": warn},
        },
        # Kubernetes' own role, into which Knative adds its kinds, but autoscalers to read only
        _binding("erless-deployers", namespace, "ClusterRole", "admin", group),
        _role("erless-scaler", namespace, own),
        _binding("erless-scalers", namespace, "Role", "erless-scaler", group),
        _role("erless-deployer", None, looking),
        _binding("erless-deployers", None, "ClusterRole", "erless-deployer", group),
        _role("erless-deployer", SERVING, serving),
        _binding("erless-deployers", SERVING, "Role", "erless-deployer", group),
        *(_role("erless-deployer", space, ingress) for space in ingress_namespaces),
        *(
            _binding("erless-deployers", space, "Role", "erless-deployer", group)
            for space in ingress_namespaces
        ),
        *(autoscaler_access(namespace) if resize else ()),
    ]


def autoscaler_access(namespace: str) -> list[Object]:
    """The account of `erless autoscale`: to see pods, read their metrics, and resize them.

    Args:
        namespace: of the functions.
    """
    rules = [
        _rule("", "pods", "list"),
        _rule("", "pods/proxy", "get"),
        _rule("", "pods/resize", "patch"),
        # by which one of several is at work; models name theirs, so that no name is asked for
        _rule("coordination.k8s.io", "leases", "get create update delete"),
    ]
    binding = _binding(AUTOSCALER, namespace, "Role", AUTOSCALER, AUTOSCALER)
    account = {"kind": "ServiceAccount", "name": AUTOSCALER, "namespace": namespace}
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            # without our labels, by which `erless destroy` finds the accounts that it removes
            "metadata": {"name": AUTOSCALER, "namespace": namespace},
        },
        _role(AUTOSCALER, namespace, rules),
        binding | {"subjects": [account]},
    ]


def _role(name: str, namespace: str | None, rules: list[Object]) -> Object:
    """A Role in `namespace`, or for None a ClusterRole."""
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "Role" if namespace else "ClusterRole",
        "metadata": _rbac_metadata(name, namespace),
        "rules": rules,
    }


def _binding(name: str, namespace: str | None, kind: str, role: str, group: str) -> Object:
    """`group` gets the role of this kind and name, in `namespace` or for None everywhere."""
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding" if namespace else "ClusterRoleBinding",
        "metadata": _rbac_metadata(name, namespace),
        "roleRef": {"apiGroup": RBAC, "kind": kind, "name": role},
        "subjects": [{"apiGroup": RBAC, "kind": "Group", "name": group}],
    }


def _rbac_metadata(name: str, namespace: str | None) -> Object:
    place = {"namespace": namespace} if namespace else {}
    return {"name": name, "labels": LABELS, **place}


def _rule(group: str, kinds: str, verbs: str, names: tuple[str, ...] = ()) -> Object:
    """What a role allows: `verbs` on `kinds` of an API group, each a list of words."""
    rule: Object = {"apiGroups": [group], "resources": kinds.split(), "verbs": verbs.split()}
    return rule | ({"resourceNames": list(names)} if names else {})
