"""Is this cluster ready for erless? One line per question, each with what mends it.

What a rendered release needs decides what is asked: a node selector in no pod asks for no feature
flag. Nothing is changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from erless.deploy.cluster.settings import MESH, may_be_mesh
from erless.deploy.image.reference import parse_reference
from erless.deploy.knative.cluster_settings import ClusterSettings
from erless.deploy.knative.render import Object, Rendered
from erless.deploy.kubernetes.api import Api, Missing
from erless.deploy.kubernetes.kinds import (
    ACCESS_REVIEW,
    CLAIM,
    CONFIG_MAP,
    CRD,
    DEPLOYMENT,
    EVENT,
    KSERVICE,
    LEASE,
    NAMESPACE,
    NODE,
    OWNED_KINDS,
    POD,
    POD_AUTOSCALER,
    REVISION,
    SECRET,
    Kind,
)
from erless.errors import DeployError, ErlessError, UnreachableError

__all__ = ["Finding", "examine"]

Level = Literal["pass", "warn", "fail"]
SERVING = "knative-serving"
OLDEST_KUBERNETES, OLDEST_KNATIVE = (1, 25), (1, 12)


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer: `mend` is the command that changes it, empty where nothing is to be done."""

    level: Level
    what: str
    fact: str
    mend: str = ""


def examine(
    api: Api, settings: ClusterSettings, rendered: Rendered | None, store: str | None = None
) -> Iterator[Finding]:
    """All findings; stops early where nothing more can be asked.

    Args:
        api: the cluster.
        settings: as configured.
        rendered: a release's objects; without one, only what every release needs is asked.
        store: the release store as pods see it, None: not asked.
    """
    try:
        version = api.call("GET", "/version", retry_s=3)
    except UnreachableError as error:
        yield Finding(
            "fail", "cluster", str(error), "check --kubeconfig, --context and the network"
        )
        return
    yield _version("Kubernetes", f"{version.get('gitVersion', '?')}", OLDEST_KUBERNETES)
    if api.get(CRD, None, "services.serving.knative.dev") is None:
        yield Finding("fail", "Knative", "Serving is not installed", "erless cluster init")
        return
    yield from _knative(api)
    config = {
        name: (api.get(CONFIG_MAP, SERVING, f"config-{name}") or {}).get("data", {})
        for name in ("features", "autoscaler", "deployment", "defaults", "network")
    }
    yield from _features(config["features"], rendered)
    yield from _settings(config, rendered)
    yield from _permissions(api, settings)
    yield from _references(api, settings)
    yield from _nodes(api, settings, rendered)
    yield from _metrics(api)
    yield from _images(settings)
    if store is not None:
        yield from _store(store, settings)


def _version(what: str, text: str, oldest: tuple[int, int]) -> Finding:
    found = re.search(r"(\d+)\.(\d+)", text)
    number = (int(found[1]), int(found[2])) if found else (0, 0)
    if number >= oldest:
        return Finding("pass", what, text)
    return Finding("warn", what, f"{text}; tested from {oldest[0]}.{oldest[1]} on")


def _knative(api: Api) -> Iterator[Finding]:
    """Version, and whether every deployment of it is available."""
    crd = api.get(CRD, None, "services.serving.knative.dev") or {}
    label = crd.get("metadata", {}).get("labels", {}).get("app.kubernetes.io/version", "?")
    deployments, _ = api.list(DEPLOYMENT, SERVING)
    if label in ("?", "devel"):
        yield Finding("pass", "Knative", f"Serving, version {label}")
    else:
        yield _version("Knative", f"Serving {label}", OLDEST_KNATIVE)
    down = [
        each["metadata"]["name"]
        for each in deployments
        if each.get("spec", {}).get("replicas", 1)
        > each.get("status", {}).get("availableReplicas", 0)
    ]
    if down or not deployments:
        fact = f"not available: {', '.join(down)}" if down else f"no deployments in {SERVING}"
        yield Finding(
            "fail", "Knative's health", fact, f"kubectl -n {SERVING} describe deployments"
        )
    else:
        yield Finding("pass", "Knative's health", f"{len(deployments)} deployments available")


def _patch(config: str, values: dict[str, str]) -> str:
    text = json.dumps({"data": values}, separators=(",", ":"))
    return f"kubectl -n {SERVING} patch configmap config-{config} --type merge -p '{text}'"


def _needed_features(rendered: Rendered | None) -> dict[str, str]:
    """Feature flags that the pods need → why."""
    needed = {"kubernetes.podspec-volumes-emptydir": "scratch and cache"}
    for service in (*rendered.functions, rendered.gateway) if rendered else ():
        spec = service["spec"]["template"]["spec"]
        if "nodeSelector" in spec:
            needed["kubernetes.podspec-nodeselector"] = "placement of tiers"
        if "tolerations" in spec:
            needed["kubernetes.podspec-tolerations"] = "placement of tiers"
        for volume in spec["volumes"]:
            if "hostPath" in volume:
                needed["kubernetes.podspec-volumes-hostpath"] = "a store that is a folder"
            if "persistentVolumeClaim" in volume:
                needed["kubernetes.podspec-persistent-volume-claim"] = "a volume claim"
                if not volume["persistentVolumeClaim"].get("readOnly"):
                    needed["kubernetes.podspec-persistent-volume-write"] = "a shared cache"
    return needed


_ON_BY_DEFAULT = {"kubernetes.podspec-volumes-emptydir"}


def _features(flags: dict[str, str], rendered: Rendered | None) -> Iterator[Finding]:
    for flag, why in _needed_features(rendered).items():
        value = flags.get(flag, "enabled" if flag in _ON_BY_DEFAULT else "disabled")
        if value in ("enabled", "allowed"):
            yield Finding("pass", flag, f"{value} ({why})")
        else:
            yield Finding(
                "fail", flag, f"{value}; needed for {why}", _patch("features", {flag: "enabled"})
            )


def _settings(config: dict[str, Any], rendered: Rendered | None) -> Iterator[Finding]:
    scaler, deployment = config["autoscaler"], config["deployment"]
    if scaler.get("enable-scale-to-zero", "true") != "true":
        yield Finding(
            "fail",
            "enable-scale-to-zero",
            "off: cold shards keep running",
            _patch("autoscaler", {"enable-scale-to-zero": "true"}),
        )
    else:
        grace = scaler.get("scale-to-zero-grace-period", "30s")
        yield Finding("pass", "enable-scale-to-zero", f"on, grace period {grace}")
    zero = scaler.get("allow-zero-initial-scale", "false")
    yield Finding(
        "pass",
        "allow-zero-initial-scale",
        f"{zero}; not needed, every function starts once when it is deployed",
    )
    always = deployment.get("pod-is-always-schedulable", "false")
    if always == "true":
        yield Finding("pass", "pod-is-always-schedulable", "on")
    else:
        yield Finding(
            "warn",
            "pod-is-always-schedulable",
            "off: a pod that waits for a new node marks its revision failed (Knative 1.21 and on)",
            _patch("deployment", {"pod-is-always-schedulable": "true"}),
        )
    longest = int(config["defaults"].get("max-revision-timeout-seconds", "600"))
    wanted = max(
        [each["spec"]["template"]["spec"]["timeoutSeconds"] for each in _services(rendered)],
        default=0,
    )
    if wanted > longest:
        yield Finding(
            "fail",
            "timeouts",
            f"functions need {wanted} s, the cluster allows {longest}",
            _patch("defaults", {"max-revision-timeout-seconds": str(wanted)}),
        )
    else:
        yield Finding("pass", "timeouts", f"up to {longest} s")
    ingress = config["network"].get("ingress-class") or config["network"].get("ingress.class")
    if ingress:
        yield Finding("pass", "ingress class", ingress)
    else:
        yield Finding(
            "warn",
            "ingress class",
            "not set: Knative's default is Istio",
            _patch("network", {"ingress-class": "kourier.ingress.networking.knative.dev"}),
        )
    mode = config["network"].get(MESH, "auto")
    if ingress and not may_be_mesh(ingress) and mode == "auto":
        yield Finding(
            "warn",
            MESH,
            "auto: one slow probe, and a waking shard may be waited for until its former replica "
            "has ended (30 s); where pods are in no mesh, turn it off",
            _patch("network", {MESH: "disabled"}),
        )
    else:
        yield Finding("pass", MESH, mode)


def _services(rendered: Rendered | None) -> list[Object]:
    return [*rendered.functions, rendered.gateway] if rendered else []


def _asked(settings: ClusterSettings) -> Iterator[tuple[Kind, str, str]]:
    """Every verb that deploy, status and destroy use: kind, part, verb."""
    for kind in OWNED_KINDS:
        if kind.kind == "PodMonitor" and not settings.options.pod_monitor:
            continue
        for verb in ("get", "list", "patch", "create", "delete"):
            yield kind, "", verb
    for kind, verbs in (
        (KSERVICE, "watch"),
        (REVISION, "get list patch delete"),
        (POD, "list"),
        (EVENT, "list"),
        (POD_AUTOSCALER, "get list watch patch"),
        (LEASE, "update"),
        (NAMESPACE, "get"),
    ):
        for verb in verbs.split():
            yield kind, "", verb
    yield POD, "log", "get"
    yield POD, "proxy", "get"


def _permissions(api: Api, settings: ClusterSettings) -> Iterator[Finding]:
    refused = []
    asked = list(_asked(settings))
    for kind, part, verb in asked:
        review = {
            "apiVersion": ACCESS_REVIEW.api,
            "kind": ACCESS_REVIEW.kind,
            "spec": {
                "resourceAttributes": {
                    "namespace": settings.options.namespace if kind.namespaced else "",
                    "group": kind.group,
                    "resource": kind.plural,
                    "subresource": part,
                    "verb": verb,
                    "name": "" if kind.namespaced else settings.options.namespace,
                }
            },
        }
        answer = api.call("POST", ACCESS_REVIEW.path(), review)
        if not answer.get("status", {}).get("allowed"):
            refused.append((kind, part, verb))
    if not refused:
        yield Finding("pass", "permissions", f"all {len(asked)} that deploy needs")
        return
    for kind, part, verb in refused:
        what = "/".join(filter(None, (kind.plural, part)))
        soft = part == "proxy" or kind.kind in ("Event", "PodDisruptionBudget")
        yield Finding(
            "warn" if soft else "fail",
            "permission",
            f"you may not {verb} {what}.{kind.group or 'core'} in {settings.options.namespace}",
            f"kubectl -n {settings.options.namespace} create role erless-deployer --verb={verb} "
            f"--resource={what}{'.' + kind.group if kind.group else ''}",
        )


def _references(api: Api, settings: ClusterSettings) -> Iterator[Finding]:
    """What the pods are told to use is there."""
    options, space = settings.options, settings.options.namespace
    secrets = (*options.image_pull_secrets, options.credentials_secret, options.token_secret)
    for kind, found in (
        (SECRET, secrets),
        (CLAIM, (options.cache_claim, options.store_volume.claim)),
    ):
        for name in filter(None, found):
            try:
                there = api.get(kind, space, name) is not None
            except DeployError as error:
                yield Finding("warn", f"{kind.kind} {name}", str(error))
                continue
            verb = f"kubectl -n {space} create {kind.kind.lower()} …"
            yield (
                Finding("pass", f"{kind.kind} {name}", "there")
                if there
                else Finding("fail", f"{kind.kind} {name}", f"not in namespace {space}", verb)
            )


def _nodes(api: Api, settings: ClusterSettings, rendered: Rendered | None) -> Iterator[Finding]:
    """Nodes exist; GPU functions find GPUs; selectors find nodes, or may be waited for."""
    try:
        nodes, _ = api.list(NODE, None)
    except DeployError as error:
        yield Finding("warn", "nodes", str(error))
        return
    yield Finding("pass" if nodes else "fail", "nodes", f"{len(nodes)}")
    for service in _services(rendered):
        spec, name = service["spec"]["template"]["spec"], service["metadata"]["name"]
        wanted = spec.get("nodeSelector", {})
        fitting = [
            node for node in nodes if wanted.items() <= node["metadata"].get("labels", {}).items()
        ]
        if wanted and not fitting:
            yield Finding(
                "warn",
                f"nodes for {name}",
                f"none has {_pairs(wanted)}; an autoscaler has to add one",
                f"kubectl label node NODE {_pairs(wanted)}",
            )
        gpus = spec["containers"][0]["resources"]["limits"].get(settings.options.gpu_resource)
        if gpus:
            yield _gpus(fitting, settings.options.gpu_resource, name)


def _gpus(nodes: list[Object], resource: str, name: str) -> Finding:
    there = sum(
        int(node.get("status", {}).get("allocatable", {}).get(resource, "0")) for node in nodes
    )
    if there:
        return Finding("pass", f"GPUs for {name}", f"{there} of {resource}")
    return Finding(
        "warn",
        f"GPUs for {name}",
        f"no node offers {resource}: no GPU node, or no device plugin",
        "install the NVIDIA device plugin, and let the GPU pool grow",
    )


def _pairs(labels: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _metrics(api: Api) -> Iterator[Finding]:
    try:
        api.call("GET", "/apis/metrics.k8s.io/v1beta1", retry_s=0)
    except (Missing, DeployError):
        yield Finding(
            "warn",
            "metrics",
            "no metrics server: `status` shows reserved memory",
            "install metrics-server",
        )
    else:
        yield Finding("pass", "metrics", "metrics server answers")


def _images(settings: ClusterSettings) -> Iterator[Finding]:
    from erless.deploy.image.registry import Registry

    for kind in ("gateway", "sparse"):
        try:
            image = settings.image(kind)
            reference = parse_reference(image)
            Registry(reference).manifest(reference.version)
        except ErlessError as error:
            yield Finding("fail", f"image {kind}", str(error), "erless image push")
        else:
            yield Finding("pass", f"image {kind}", image)


def _store(store: str, settings: ClusterSettings) -> Iterator[Finding]:
    """The store answers from here; pods may see it under another address."""
    from erless.storage.stores import open_store

    try:
        open_store(store, endpoint_url=settings.options.endpoint_url)
    except ErlessError as error:
        yield Finding("fail", "store", str(error), "erless pack --store …")
    else:
        yield Finding("pass", "store", store)
    if store.startswith("s3://"):
        options = settings.options
        how = options.role_arn or options.credentials_secret
        yield (
            Finding("pass", "store credentials of pods", how)
            if how
            else Finding(
                "warn",
                "store credentials of pods",
                "neither role_arn nor credentials_secret: pod identity has to give them",
            )
        )
