"""Check objects without a cluster, against the definitions of Kubernetes' official client.

Kubernetes' own kinds are checked field by field against the models that the `kubernetes` package
generates from the API server's OpenAPI document. Knative's Service is checked against its v1 API
(docs/serving/api/serving-api.md of knative/serving): the fields of a pod that Knative lets through,
and the rules of its webhook on annotations, probes, environment and traffic. A field counts only
where Knative's CustomResourceDefinition declares it: its Go code may know more (a probe's
`terminationGracePeriodSeconds` since 1.21), but the API server refuses to apply the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from erless.errors import DeployError

__all__ = ["check_object", "check_objects", "findings"]

Object = Mapping[str, Any]
NAME = re.compile(r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
LABEL_KEY = re.compile(r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?$")
LABEL = re.compile(r"^([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?$")
TAG = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
QUANTITY = re.compile(r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")
IMAGE = re.compile(r"^[^\s@]+@sha256:[0-9a-f]{64}$")
KINDS = {
    ("v1", "Namespace"): "V1Namespace",
    ("v1", "ServiceAccount"): "V1ServiceAccount",
    ("networking.k8s.io/v1", "NetworkPolicy"): "V1NetworkPolicy",
    ("policy/v1", "PodDisruptionBudget"): "V1PodDisruptionBudget",
    ("coordination.k8s.io/v1", "Lease"): "V1Lease",
}
SERVICE = ("serving.knative.dev/v1", "Service")
MONITOR = ("monitoring.coreos.com/v1", "PodMonitor")
# knative/serving pkg/apis/serving/fieldmask.go: what Knative lets through of a pod
POD_FIELDS = {
    "serviceAccountName",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "containers",
    "volumes",
    "imagePullSecrets",
    "nodeSelector",
    "tolerations",
}
REVISION_FIELDS = {"containerConcurrency", "timeoutSeconds", "responseStartTimeoutSeconds"}
CONTAINER_FIELDS = {
    "name",
    "image",
    "ports",
    "env",
    "envFrom",
    "resources",
    "readinessProbe",
    "livenessProbe",
    "securityContext",
    "terminationMessagePolicy",
    "volumeMounts",
}
# knative/serving config/core/300-resources/service.yaml: what the definition declares of the parts
# of a container; of those, the API server applies nothing else
PROBE_FIELDS = {
    "httpGet",
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
}
PART_FIELDS: dict[str, set[str]] = {
    "readinessProbe": PROBE_FIELDS,
    "livenessProbe": PROBE_FIELDS,
    "securityContext": {
        "allowPrivilegeEscalation",
        "capabilities",
        "readOnlyRootFilesystem",
        "runAsGroup",
        "runAsNonRoot",
        "runAsUser",
        "seccompProfile",
    },
    "resources": {"limits", "requests"},
    "ports": {"containerPort", "name", "protocol"},
    "env": {"name", "value", "valueFrom"},
    "envFrom": {"prefix", "secretRef"},
    "volumeMounts": {"mountPath", "name", "readOnly", "subPath"},
}
VOLUME_FIELDS = {"name", "emptyDir", "hostPath", "persistentVolumeClaim", "secret"}
RESERVED_ENV = {"PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"}
SCALING = "autoscaling.knative.dev/"


def check_objects(objects: Sequence[Object]) -> None:
    """Check all objects.

    Raises:
        DeployError: the first finding, with the object and the path of the field.
    """
    for document in objects:
        check_object(document)


def check_object(document: Object) -> None:
    """Check one object.

    Raises:
        DeployError: the first finding.
    """
    for finding in findings(document):
        name = document.get("metadata", {}).get("name", "?")
        raise DeployError(f"{document.get('kind', 'object')} {name}: {finding}")


def findings(document: Object) -> Iterator[str]:
    """The faults of an object, as `path: fault`; none where it is valid."""
    key = (document.get("apiVersion"), document.get("kind"))
    yield from _metadata(document.get("metadata"), "metadata")
    if key == SERVICE:
        yield from _only(document, {"apiVersion", "kind", "metadata", "spec"}, "")
        yield from _service(document.get("spec", {}), "spec")
    elif key in KINDS:
        yield from _model(document, KINDS[key], "")
    elif key != MONITOR:  # the Prometheus operator's own type: only its metadata is known here
        yield f"kind: {key[0]} {key[1]} is none of ours"


def _metadata(document: Any, path: str) -> Iterator[str]:
    if not isinstance(document, Mapping):
        yield f"{path}: missing"
        return
    yield from _model(document, "V1ObjectMeta", path)
    if not NAME.match(str(document.get("name", "x"))):
        yield f"{path}.name: {document['name']!r} is not a DNS name"
    for key, value in document.get("labels", {}).items():
        if not LABEL_KEY.match(key) or not LABEL.match(value):
            yield f"{path}.labels: {key}={value} is not a label"


def _model(value: Any, model_name: str, path: str) -> Iterator[str]:
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
        yield from _model(value, hint, path)


def _only(document: Mapping[str, Any], allowed: set[str], path: str) -> Iterator[str]:
    for key in sorted(set(document) - allowed):
        yield f"{path}.{key}: Knative has no such field".lstrip(".")


def _service(spec: Mapping[str, Any], path: str) -> Iterator[str]:
    yield from _only(spec, {"template", "traffic"}, path)
    template = spec.get("template", {})
    yield from _only(template, {"metadata", "spec"}, f"{path}.template")
    yield from _metadata(template.get("metadata", {}), f"{path}.template.metadata")
    annotations = template.get("metadata", {}).get("annotations", {})
    yield from _scaling(annotations, f"{path}.template.metadata.annotations")
    yield from _revision(template.get("spec", {}), f"{path}.template.spec")
    yield from _traffic(spec.get("traffic", []), f"{path}.traffic")


def _traffic(lines: Sequence[Mapping[str, Any]], path: str) -> Iterator[str]:
    tags = [line["tag"] for line in lines if line.get("tag")]
    for index, line in enumerate(lines):
        yield from _only(
            line, {"revisionName", "latestRevision", "percent", "tag"}, f"{path}[{index}]"
        )
        if bool(line.get("revisionName")) == bool(line.get("latestRevision")):
            yield f"{path}[{index}]: either revisionName or latestRevision"
    if sum(line.get("percent", 0) for line in lines) != 100:
        yield f"{path}: percentages do not sum to 100"
    if len(set(tags)) != len(tags) or not all(TAG.match(tag) for tag in tags):
        yield f"{path}: tags {tags} are not distinct DNS labels"


def _seconds(text: str) -> int:
    match = re.fullmatch(r"(\d+)s", text)
    return int(match[1]) if match else -1


def _scaling(annotations: Mapping[str, str], path: str) -> Iterator[str]:
    """The webhook's rules: pkg/apis/autoscaling/annotation_validation.go."""
    values = {
        key.removeprefix(SCALING): value
        for key, value in annotations.items()
        if key.startswith(SCALING)
    }

    def bounded(key: str, low: float, high: float) -> Iterator[str]:
        if key in values and not low <= float(values[key]) <= high:
            yield f"{path}: {SCALING}{key}={values[key]} is not within {low:g} … {high:g}"

    yield from bounded("target", 0.01, float("inf"))
    yield from bounded("target-utilization-percentage", 1, 100)
    yield from bounded("panic-window-percentage", 1, 100)
    yield from bounded("panic-threshold-percentage", 110, 1000)
    low, high = int(values.get("min-scale", 0)), int(values.get("max-scale", 0))
    yield from bounded("initial-scale", 0, 2**31 - 1)
    if high and high < low:
        yield f"{path}: max-scale={high} is less than min-scale={low}"
    yield from bounded("activation-scale", max(low, 2), high or float("inf"))
    if not 6 <= _seconds(values.get("window", "60s")) <= 3600:
        yield f"{path}: {SCALING}window={values['window']} is not within 6s … 3600s"
    for key in ("scale-down-delay", "scale-to-zero-pod-retention-period"):
        if not 0 <= _seconds(values.get(key, "0s")) <= 3600:
            yield f"{path}: {SCALING}{key}={values[key]} is not within 0s … 3600s"
    if values.get("metric") not in (None, "rps", "concurrency"):
        yield f"{path}: {SCALING}metric={values['metric']}: rps or concurrency"


def _revision(spec: Mapping[str, Any], path: str) -> Iterator[str]:
    yield from _only(spec, POD_FIELDS | REVISION_FIELDS, path)
    pod = {key: value for key, value in spec.items() if key not in REVISION_FIELDS}
    yield from _model(pod, "V1PodSpec", path)
    for key in ("timeoutSeconds", "responseStartTimeoutSeconds"):
        if spec.get(key, 1) <= 0:  # the most is the cluster's own, and checked with its settings
            yield f"{path}.{key}: {spec[key]} is not positive"
    containers = spec.get("containers", [])
    if len(containers) != 1:
        yield f"{path}.containers: {len(containers)}, expected one"
    volumes = {volume.get("name") for volume in spec.get("volumes", [])}
    for index, volume in enumerate(spec.get("volumes", [])):
        yield from _only(volume, VOLUME_FIELDS, f"{path}.volumes[{index}]")
    for index, container in enumerate(containers):
        yield from _container(container, volumes, f"{path}.containers[{index}]")


def _container(container: Mapping[str, Any], volumes: set[Any], path: str) -> Iterator[str]:
    yield from _only(container, CONTAINER_FIELDS, path)
    for part, allowed in PART_FIELDS.items():
        value = container.get(part, {})
        for item in value if isinstance(value, list) else [value]:
            yield from _only(item, allowed, f"{path}.{part}")
    if not IMAGE.match(container.get("image", "")):
        yield f"{path}.image: {container.get('image')!r} is not named by digest"
    variables = [variable["name"] for variable in container.get("env", [])]
    for name in sorted(
        {variable for variable in variables if variables.count(variable) > 1} | RESERVED_ENV
    ):
        if variables.count(name) > (0 if name in RESERVED_ENV else 1):
            yield f"{path}.env: {name} is reserved or set twice"
    if len(container.get("ports", [])) != 1:
        yield f"{path}.ports: exactly one"
    for mount in container.get("volumeMounts", []):
        if mount.get("name") not in volumes:
            yield f"{path}.volumeMounts: no volume {mount.get('name')!r}"
    for side, amounts in container.get("resources", {}).items():
        for resource, amount in amounts.items():
            if not QUANTITY.match(str(amount)):
                yield f"{path}.resources.{side}.{resource}: {amount!r} is not a quantity"
    probe = container.get("readinessProbe", {})
    if not probe.get("periodSeconds") and (
        probe.get("timeoutSeconds") or probe.get("failureThreshold")
    ):
        yield f"{path}.readinessProbe: no timeout and threshold without a period"
