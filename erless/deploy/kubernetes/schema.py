"""Check objects without a cluster, against the definitions of Kubernetes' official client.

Kubernetes' own kinds are checked field by field against the models that the `kubernetes` package
generates from the API server's OpenAPI document. Of other types a target brings the rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from erless.errors import DeployError

__all__ = [
    "Rules",
    "check_objects",
    "container_findings",
    "findings",
    "metadata_findings",
    "model_findings",
]

Object = Mapping[str, Any]
# API version and kind of a type → the faults of its spec at a path
Rules = Mapping[tuple[str, str], Callable[[Object, str], Iterator[str]]]
NAME = re.compile(r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
LABEL_KEY = re.compile(r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?$")
LABEL = re.compile(r"^([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?$")
QUANTITY = re.compile(r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")
IMAGE = re.compile(r"^[^\s@]+@sha256:[0-9a-f]{64}$")
KINDS = {
    ("v1", "Namespace"): "V1Namespace",
    ("v1", "ServiceAccount"): "V1ServiceAccount",
    ("networking.k8s.io/v1", "NetworkPolicy"): "V1NetworkPolicy",
    ("policy/v1", "PodDisruptionBudget"): "V1PodDisruptionBudget",
    ("coordination.k8s.io/v1", "Lease"): "V1Lease",
    ("apps/v1", "Deployment"): "V1Deployment",
    ("batch/v1", "Job"): "V1Job",
    ("v1", "Service"): "V1Service",
    ("autoscaling/v2", "HorizontalPodAutoscaler"): "V2HorizontalPodAutoscaler",
}
# types of others, of which only the metadata is known here
UNKNOWN = {
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("http.keda.sh/v1alpha1", "HTTPScaledObject"),
    ("cert-manager.io/v1", "Certificate"),
    ("cert-manager.io/v1", "Issuer"),
}


def check_objects(objects: Sequence[Object], rules: Rules | None = None) -> None:
    """Check all objects.

    Raises:
        DeployError: the first finding, with the object and the path of the field.
    """
    for document in objects:
        for finding in findings(document, rules):
            name = document.get("metadata", {}).get("name", "?")
            raise DeployError(f"{document.get('kind', 'object')} {name}: {finding}")


def findings(document: Object, rules: Rules | None = None) -> Iterator[str]:
    """The faults of an object, as `path: fault`; none where it is valid."""
    key = (str(document.get("apiVersion")), str(document.get("kind")))
    yield from metadata_findings(document.get("metadata"), "metadata")
    if rules and key in rules:
        for field in sorted(set(document) - {"apiVersion", "kind", "metadata", "spec"}):
            yield f"{field}: {key[1]} has no such field"
        yield from rules[key](document.get("spec", {}), "spec")
    elif key in KINDS:
        yield from model_findings(document, KINDS[key], "")
        if KINDS[key] == "V1Deployment":
            yield from _pod_findings(document["spec"]["template"]["spec"], "spec.template.spec")
    elif key not in UNKNOWN:
        yield f"kind: {key[0]} {key[1]} is none of ours"


def _pod_findings(pod: Object, path: str) -> Iterator[str]:
    volumes = {volume.get("name") for volume in pod.get("volumes", [])}
    for index, container in enumerate(pod.get("containers", [])):
        yield from container_findings(container, volumes, f"{path}.containers[{index}]")


def container_findings(container: Object, volumes: set[Any], path: str) -> Iterator[str]:
    """Faults that no model tells of: images, mounts, amounts."""
    if not IMAGE.match(container.get("image", "")):
        yield f"{path}.image: {container.get('image')!r} is not named by digest"
    for mount in container.get("volumeMounts", []):
        if mount.get("name") not in volumes:
            yield f"{path}.volumeMounts: no volume {mount.get('name')!r}"
    for side, amounts in container.get("resources", {}).items():
        for resource, amount in amounts.items():
            if not QUANTITY.match(str(amount)):
                yield f"{path}.resources.{side}.{resource}: {amount!r} is not a quantity"


def metadata_findings(document: Any, path: str) -> Iterator[str]:
    """Faults of an object's metadata."""
    if not isinstance(document, Mapping):
        yield f"{path}: missing"
        return
    yield from model_findings(document, "V1ObjectMeta", path)
    if not NAME.match(str(document.get("name", "x"))):
        yield f"{path}.name: {document['name']!r} is not a DNS name"
    for key, value in document.get("labels", {}).items():
        if not LABEL_KEY.match(key) or not LABEL.match(value):
            yield f"{path}.labels: {key}={value} is not a label"


def model_findings(value: Any, model_name: str, path: str) -> Iterator[str]:
    """Compare a document with a generated model, field by field."""
    from kubernetes import client

    model = getattr(client, model_name)
    if not isinstance(value, Mapping):
        yield f"{path}: {type(value).__name__}, expected an object"
        return
    fields = {model.attribute_map[name]: hint for name, hint in model.openapi_types.items()}
    for key, item in value.items():
        field_path = f"{path}.{key}".lstrip(".")
        if key not in fields:
            yield f"{field_path}: {model_name.removeprefix('V1')} has no such field"
        else:
            yield from _typed(item, fields[key], field_path)
    for name, field in getattr(model, "model_fields", {}).items():
        if field.is_required() and model.attribute_map[name] not in value:
            yield f"{path}.{model.attribute_map[name]}: missing".lstrip(".")


_SCALARS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}


def _typed(value: Any, hint: str, path: str) -> Iterator[str]:
    """Compare a value with a type as the generated models write it."""
    many = re.fullmatch(r"[Ll]ist\[(.*)\]", hint)
    mapped = re.fullmatch(r"[Dd]ict[\[(]str, ?(.*)[\])]", hint)
    if many:
        if not isinstance(value, Sequence) or isinstance(value, str):
            yield f"{path}: expected a list"
            return
        for index, item in enumerate(value):
            yield from _typed(item, many[1], f"{path}[{index}]")
    elif mapped:
        if not isinstance(value, Mapping):
            yield f"{path}: expected an object"
            return
        for key, item in value.items():
            yield from _typed(item, mapped[1], f"{path}.{key}")
    elif hint in _SCALARS:
        if not _SCALARS[hint](value):
            yield f"{path}: {value!r} is not of type {hint}"
    elif re.fullmatch(r"(Core|Rbac|Storage)?V\d\w*", hint):
        yield from model_findings(value, hint, path)
