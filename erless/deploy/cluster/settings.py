"""What erless needs of Knative beyond its defaults, and who may deploy.

Each is a ConfigMap of which erless owns the keys below and no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from erless.deploy.kubernetes.names import CLUSTER_LOCAL

__all__ = [
    "DEPLOYERS",
    "HOST_PATH_FEATURE",
    "KOURIER",
    "MESH",
    "SERVING",
    "access",
    "may_be_mesh",
    "public_domains",
    "settings",
]

Object = dict[str, Any]
SERVING = "knative-serving"
KOURIER = "kourier.ingress.networking.knative.dev"
MESH = "mesh-compatibility-mode"
HOST_PATH_FEATURE = "kubernetes.podspec-volumes-hostpath"
DEPLOYERS = "erless:deployers"  # the group of infra/terraform's deployer role

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


def public_domains(config_domain: Mapping[str, str]) -> list[str]:
    """The domains of Knative's `config-domain` that lead in from outside.

    A domain with a selector is for the Services that it selects; none of ours carries its label.
    """
    return [
        domain
        for domain, selector in config_domain.items()
        if not domain.startswith("_")
        and not domain.endswith(CLUSTER_LOCAL)
        and "selector" not in selector
    ]


def access(namespace: str, group: str = DEPLOYERS) -> list[Object]:
    """The functions' namespace, and what `group` may do: administer it, and look around."""
    labels = {"app.kubernetes.io/managed-by": "erless"}
    subjects = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}]
    rbac = "rbac.authorization.k8s.io/v1"

    def role(kind: str, name: str, where: str | None, rules: list[Object]) -> Object:
        place = {"namespace": where} if where else {}
        meta = {"name": name, "labels": labels, **place}
        return {"apiVersion": rbac, "kind": kind, "metadata": meta, "rules": rules}

    def bind(kind: str, name: str, where: str | None, refers: str, to: str) -> Object:
        place = {"namespace": where} if where else {}
        meta = {"name": name, "labels": labels, **place}
        target = {"apiGroup": "rbac.authorization.k8s.io", "kind": refers, "name": to}
        return {
            "apiVersion": rbac,
            "kind": kind,
            "metadata": meta,
            "roleRef": target,
            "subjects": subjects,
        }

    def may(group: str, kinds: str, verbs: str, names: tuple[str, ...] = ()) -> Object:
        rule: Object = {"apiGroups": [group], "resources": kinds.split(), "verbs": verbs.split()}
        return rule | ({"resourceNames": list(names)} if names else {})

    warn = {"pod-security.kubernetes.io/warn": "restricted"}  # as the functions' pods keep it
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": warn}},
        # Kubernetes' own role, into which Knative adds its kinds, but autoscalers to read only
        bind("RoleBinding", "erless-deployers", namespace, "ClusterRole", "admin"),
        role(
            "Role",
            "erless-scaler",
            namespace,
            [may("autoscaling.internal.knative.dev", "podautoscalers", "patch")],
        ),
        bind("RoleBinding", "erless-scalers", namespace, "Role", "erless-scaler"),
        role(
            "ClusterRole",
            "erless-deployer",
            None,
            [
                may("", "nodes", "get list"),
                may("", "namespaces", "get patch", (namespace,)),
                may("apiextensions.k8s.io", "customresourcedefinitions", "get list"),
            ],
        ),
        bind("ClusterRoleBinding", "erless-deployers", None, "ClusterRole", "erless-deployer"),
        role(
            "Role",
            "erless-deployer",
            SERVING,
            [may("", "configmaps", "get list"), may("apps", "deployments", "get list")],
        ),
        bind("RoleBinding", "erless-deployers", SERVING, "Role", "erless-deployer"),
    ]
