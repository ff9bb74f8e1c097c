"""Kubernetes and Knative themselves: versions, health, and Knative's settings."""

from __future__ import annotations

import re
from collections.abc import Iterator

from erless.deploy.cluster.checks.examination import Examination, Finding, patch_command
from erless.deploy.cluster.settings import (
    HOST_PATH_FEATURE,
    MESH,
    SERVING,
    may_be_mesh,
)
from erless.deploy.knative.limits import (
    allowed_timeout_s,
    needed_timeout_s,
    public_domains,
    refused_hosts,
)
from erless.deploy.kubernetes.kinds import CRD, DEPLOYMENT
from erless.deploy.kubernetes.names import CLUSTER_LOCAL

__all__ = [
    "KNATIVE_CRD",
    "check_domain",
    "check_features",
    "check_ingress",
    "check_knative",
    "check_kubernetes",
    "check_scaling",
    "check_timeouts",
    "version_number",
]

OLDEST_KUBERNETES = (1, 25)
OLDEST_KNATIVE = (1, 13)  # the first that keeps an early answer whole: http-full-duplex
HOST_PATH_KNATIVE = (1, 17)  # knative/serving#15648: the first whose Service may have the field
KNATIVE_CRD = "services.serving.knative.dev"
ON_BY_DEFAULT = {"kubernetes.podspec-volumes-emptydir"}


def check_kubernetes(examination: Examination) -> Iterator[Finding]:
    """The API server's version."""
    yield _version("Kubernetes", examination.version.get("gitVersion", "?"), OLDEST_KUBERNETES)


def check_knative(examination: Examination) -> Iterator[Finding]:
    """Knative's version, and whether every deployment of it is available."""
    api, label = examination.api, _knative_label(examination)
    if version_number(label):
        yield _version("Knative", f"Serving {label}", OLDEST_KNATIVE)
    else:
        yield Finding("pass", "Knative", f"Serving, version {label}")
    deployments, _ = api.list(DEPLOYMENT, SERVING)
    down = [
        deployment["metadata"]["name"]
        for deployment in deployments
        if deployment.get("spec", {}).get("replicas", 1)
        > deployment.get("status", {}).get("availableReplicas", 0)
    ]
    if down or not deployments:
        fact = f"not available: {', '.join(down)}" if down else f"no deployments in {SERVING}"
        mend = f"kubectl -n {SERVING} describe deployments"
        yield Finding("fail", "Knative's health", fact, mend)
    else:
        yield Finding("pass", "Knative's health", f"{len(deployments)} deployments available")


def _knative_label(examination: Examination) -> str:
    """Knative's version as its definitions say it: `1.23.0`, or `devel`, or `?`."""
    definition = examination.api.get(CRD, None, KNATIVE_CRD) or {}
    labels = definition.get("metadata", {}).get("labels", {})
    return str(labels.get("app.kubernetes.io/version", "?"))


def version_number(text: str) -> tuple[int, int] | None:
    """Major and minor of the version in `text`; None where it names none."""
    match = re.search(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def _version(subject: str, text: str, oldest: tuple[int, int]) -> Finding:
    if (version_number(text) or (0, 0)) >= oldest:
        return Finding("pass", subject, text)
    return Finding("warn", subject, f"{text}; tested from {oldest[0]}.{oldest[1]} on")


def _needed_features(examination: Examination) -> dict[str, str]:
    """Feature flags that the pods need → why."""
    needed = {"kubernetes.podspec-volumes-emptydir": "scratch and cache"}
    for service in examination.services:
        spec = service["spec"]["template"]["spec"]
        if "nodeSelector" in spec:
            needed["kubernetes.podspec-nodeselector"] = "placement of tiers"
        if "tolerations" in spec:
            needed["kubernetes.podspec-tolerations"] = "placement of tiers"
        if "priorityClassName" in spec:
            needed["kubernetes.podspec-priorityclassname"] = "priority_class"
        if "topologySpreadConstraints" in spec:
            needed["kubernetes.podspec-topologyspreadconstraints"] = "spread_over"
        for volume in spec["volumes"]:
            if "hostPath" in volume:
                needed[HOST_PATH_FEATURE] = "a store that is a folder"
            if "persistentVolumeClaim" in volume:
                needed["kubernetes.podspec-persistent-volume-claim"] = "a volume claim"
                if not volume["persistentVolumeClaim"].get("readOnly"):
                    needed["kubernetes.podspec-persistent-volume-write"] = "a shared cache"
    return needed


def check_features(examination: Examination) -> Iterator[Finding]:
    """Feature flags that let through what the pods ask for."""
    flags = examination.config("features")
    for flag, why in _needed_features(examination).items():
        label = _knative_label(examination) if flag == HOST_PATH_FEATURE else ""
        if (version_number(label) or HOST_PATH_KNATIVE) < HOST_PATH_KNATIVE:
            fact = f"Knative {label} knows no hostPath volumes, 1.17 does; needed for {why}"
            yield Finding("fail", flag, fact, "a newer Knative, or a claim: store_volume.claim")
            continue
        value = flags.get(flag, "enabled" if flag in ON_BY_DEFAULT else "disabled")
        if value.lower() in ("enabled", "allowed"):
            yield Finding("pass", flag, f"{value} ({why})")
        else:
            mend = patch_command("features", {flag: "enabled"})
            yield Finding("fail", flag, f"{value}; needed for {why}", mend)


def check_scaling(examination: Examination) -> Iterator[Finding]:
    """Scale to zero, and pods that wait for a node."""
    scaler = examination.config("autoscaler")
    if scaler.get("enable-scale-to-zero", "true") == "true":
        grace = scaler.get("scale-to-zero-grace-period", "30s")
        yield Finding("pass", "enable-scale-to-zero", f"on, grace period {grace}")
    else:
        mend = patch_command("autoscaler", {"enable-scale-to-zero": "true"})
        yield Finding("fail", "enable-scale-to-zero", "off: cold shards keep running", mend)
    zero = scaler.get("allow-zero-initial-scale", "false")
    why = "not needed, every function starts once when it is deployed"
    yield Finding("pass", "allow-zero-initial-scale", f"{zero}; {why}")
    always = "pod-is-always-schedulable"
    if examination.config("deployment").get(always, "false") == "true":
        yield Finding("pass", always, "on")
    else:
        fact = (
            "off: a pod that waits for a new node marks its revision failed (Knative 1.21 and on)"
        )
        yield Finding("warn", always, fact, patch_command("deployment", {always: "true"}))


def check_timeouts(examination: Examination) -> Iterator[Finding]:
    """Whether the cluster lets answers take as long as the slowest cold start."""
    allowed_s = allowed_timeout_s(examination.config("defaults"))
    needed_s = needed_timeout_s(examination.services)
    if needed_s > allowed_s:
        fact = f"functions need {needed_s} s, the cluster allows {allowed_s}"
        mend = patch_command("defaults", {"max-revision-timeout-seconds": str(needed_s)})
        yield Finding("fail", "timeouts", fact, mend)
    else:
        yield Finding("pass", "timeouts", f"up to {allowed_s} s")


def check_ingress(examination: Examination) -> Iterator[Finding]:
    """The networking layer, and whether Knative searches for a mesh that is not there."""
    network = examination.config("network")
    ingress = network.get("ingress-class") or network.get("ingress.class")
    if ingress:
        yield Finding("pass", "ingress class", ingress)
    else:
        mend = patch_command("network", {"ingress-class": "kourier.ingress.networking.knative.dev"})
        yield Finding("warn", "ingress class", "not set: Knative's default is Istio", mend)
    mode = network.get(MESH, "auto")
    if ingress and not may_be_mesh(ingress) and mode == "auto":
        fact = (
            "auto: one slow probe, and a waking shard may be waited for until its former replica "
            "has ended (30 s); where pods are in no mesh, turn it off"
        )
        yield Finding("warn", MESH, fact, patch_command("network", {MESH: "disabled"}))
    else:
        yield Finding("pass", MESH, mode)


def _long_names(examination: Examination, domains: list[str]) -> Iterator[Finding]:
    """Host names of a public gateway that no DNS takes."""
    if examination.settings.gateway.visibility != "public":
        return
    gateway, network = examination.settings.scope.gateway, examination.config("network")
    for fact in refused_hosts(gateway, examination.namespace, network, domains):
        yield Finding("fail", "names", fact, "a shorter namespace, or other templates")


def check_domain(examination: Examination) -> Iterator[Finding]:
    """Whether a gateway that shall be public gets a public name."""
    domains = public_domains(examination.config("domain"))
    if domains:
        yield Finding("pass", "domain", ", ".join(domains))
        yield from _long_names(examination, domains)
    elif examination.settings.gateway.visibility == "public":
        fact = (
            f"{CLUSTER_LOCAL}, Knative's default: the gateway answers only within the cluster, "
            "though gateway.visibility is public"
        )
        yield Finding("fail", "domain", fact, "erless cluster init --domain DOMAIN")
    else:
        yield Finding("pass", "domain", f"{CLUSTER_LOCAL}; the gateway is not public")
