"""Nodes that can take the pods, and the metrics server that measures them."""

from __future__ import annotations

from collections.abc import Iterator

from erless.deploy.cluster.checks.examination import Examination, Finding
from erless.deploy.kubernetes.api import Missing
from erless.deploy.kubernetes.kinds import NODE
from erless.deploy.kubernetes.render.rendered import Object
from erless.errors import DeployError

__all__ = ["check_metrics", "check_nodes", "check_resize"]


def check_nodes(examination: Examination) -> Iterator[Finding]:
    """Nodes exist; GPU functions find GPUs; selectors find nodes, or may be waited for."""
    nodes, _ = examination.api.list(NODE, None)
    yield Finding("pass" if nodes else "fail", "nodes", f"{len(nodes)}")
    resource = examination.settings.options.gpu_resource
    for service in examination.services:
        spec, name = service["spec"]["template"]["spec"], service["metadata"]["name"]
        selector = spec.get("nodeSelector", {})
        fitting = [
            node for node in nodes if selector.items() <= node["metadata"].get("labels", {}).items()
        ]
        if selector and not fitting:
            yield Finding(
                "warn",
                f"nodes for {name}",
                f"none has {_pairs(selector)}; an autoscaler has to add one",
                f"kubectl label node NODE {_pairs(selector)}",
            )
        if spec["containers"][0]["resources"]["limits"].get(resource):
            yield _gpus(fitting, resource, name)


def _gpus(nodes: list[Object], resource: str, name: str) -> Finding:
    number = sum(
        int(node.get("status", {}).get("allocatable", {}).get(resource, "0")) for node in nodes
    )
    if number:
        return Finding("pass", f"GPUs for {name}", f"{number} of {resource}")
    fact = f"no node offers {resource}: no GPU node, or no device plugin"
    mend = "install the NVIDIA device plugin, and let the GPU pool grow"
    return Finding("warn", f"GPUs for {name}", fact, mend)


def _pairs(labels: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def check_metrics(examination: Examination) -> Iterator[Finding]:
    """Whether `status` can show memory as measured."""
    try:
        examination.api.call("GET", "/apis/metrics.k8s.io/v1beta1", retry_s=0)
    except (Missing, DeployError):
        fact = "no metrics server: `status` shows reserved memory"
        yield Finding("warn", "metrics", fact, "install metrics-server")
    else:
        yield Finding("pass", "metrics", "metrics server answers")


def check_resize(examination: Examination) -> Iterator[Finding]:
    """Whether pods can be resized in place, where that is wanted."""
    if not examination.settings.options.resize:
        return
    served = examination.api.call("GET", "/api/v1").get("resources", [])
    if any(resource["name"] == "pods/resize" for resource in served):
        yield Finding("pass", "resize", "pods are resized in place while `erless autoscale` runs")
    else:
        version = examination.version.get("gitVersion", "?")
        fact = f"Kubernetes {version} does not resize pods in place; 1.35 does"
        section = examination.settings.section
        mend = f"a newer Kubernetes, or targets.{section}.resize: false"
        yield Finding("fail", "resize", fact, mend)
