"""Check Knative's Services without a cluster; Kubernetes' own kinds are checked as everywhere.

Knative's Service is checked against its v1 API (docs/serving/api/serving-api.md of
knative/serving): the fields of a pod that Knative lets through, and the rules of its webhook on
annotations, probes, environment and traffic. A field counts only where Knative's
CustomResourceDefinition declares it: its Go code may know more (a probe's
`terminationGracePeriodSeconds` since 1.21), but the API server refuses to apply the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from erless.deploy.kubernetes import schema
from erless.deploy.kubernetes.schema import (
    container_findings,
    metadata_findings,
    model_findings,
)

__all__ = ["check_objects", "findings"]

Object = Mapping[str, Any]
TAG = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
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
    "priorityClassName",
    "topologySpreadConstraints",
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
    schema.check_objects(objects, _RULES)


def findings(document: Object) -> Iterator[str]:
    """The faults of an object, as `path: fault`; none where it is valid."""
    return schema.findings(document, _RULES)


def _only(document: Mapping[str, Any], allowed: set[str], path: str) -> Iterator[str]:
    for key in sorted(set(document) - allowed):
        yield f"{path}.{key}: Knative has no such field".lstrip(".")


def _service(spec: Mapping[str, Any], path: str) -> Iterator[str]:
    yield from _only(spec, {"template", "traffic"}, path)
    template = spec.get("template", {})
    yield from _only(template, {"metadata", "spec"}, f"{path}.template")
    yield from metadata_findings(template.get("metadata", {}), f"{path}.template.metadata")
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
    yield from model_findings(pod, "V1PodSpec", path)
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
    yield from container_findings(container, volumes, path)
    variables = [variable["name"] for variable in container.get("env", [])]
    for name in sorted(
        {variable for variable in variables if variables.count(variable) > 1} | RESERVED_ENV
    ):
        if variables.count(name) > (0 if name in RESERVED_ENV else 1):
            yield f"{path}.env: {name} is reserved or set twice"
    if len(container.get("ports", [])) != 1:
        yield f"{path}.ports: exactly one"
    probe = container.get("readinessProbe", {})
    if not probe.get("periodSeconds") and (
        probe.get("timeoutSeconds") or probe.get("failureThreshold")
    ):
        yield f"{path}.readinessProbe: no timeout and threshold without a period"


_RULES: schema.Rules = {("serving.knative.dev/v1", "Service"): _service}
