"""A plan's autoscaling numbers as a HorizontalPodAutoscaler, or as KEDA's for what may reach zero.

Knative's target is per replica, of which it wants a share used; so is ours, in requests/s by the
custom metrics API, or else as that share of the vCPU. An average over pods that are ready is what
both compute from. HPA has no panic window: it may grow as fast as the plan's rate allows at once.
"""

from __future__ import annotations

import math

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.deploy.kubernetes.kinds import AUTOSCALER, HTTP_SCALER
from erless.deploy.kubernetes.render.cluster_function import ClusterFunction, Object
from erless.deploy.kubernetes.render.pods import PORT, millicores
from erless.deploy.plain_kubernetes.scaling_apis import CUSTOM_METRIC, ScalingApis

__all__ = ["autoscaler", "reaches_zero"]

SYNC_S = 15  # HPA's controller looks so often
LONGEST_S = 3600  # of a stabilization window
MOST_PERCENT = 900  # of one step up: more than any plan's replicas at once


def reaches_zero(function: ClusterFunction, apis: ScalingApis) -> bool:
    """Whether the function goes to zero: KEDA sees its requests, and its plan allows it."""
    return apis.zero and function.scaling.min_scale == 0 and function.kind != "gateway"


def autoscaler(
    name: str, function: ClusterFunction, release: str, settings: ClusterSettings, apis: ScalingApis
) -> Object:
    """The object that scales the Deployment `name`, which runs `function`."""
    if reaches_zero(function, apis):
        return _http_scaler(name, function, release, settings)
    scaling = function.scaling
    low = max(scaling.min_scale, 1)
    window_s = settings.options.min_window_s or math.ceil(scaling.window_s)
    down_s = min(max(window_s, math.ceil(scaling.scale_down_delay_s)), LONGEST_S)
    up = min(math.ceil(100 * (scaling.max_scale_up_rate - 1)), MOST_PERCENT)
    return {
        "apiVersion": AUTOSCALER.api,
        "kind": AUTOSCALER.kind,
        "metadata": _metadata(name, function, release, settings),
        "spec": {
            "scaleTargetRef": _target(name),
            "minReplicas": low,
            "maxReplicas": max(scaling.max_scale, low),
            "metrics": [_metric(function, settings, apis)],
            "behavior": {
                "scaleUp": {
                    "stabilizationWindowSeconds": 0,
                    "selectPolicy": "Max",
                    "policies": [
                        {"type": "Percent", "value": up, "periodSeconds": SYNC_S},
                        {"type": "Pods", "value": 4, "periodSeconds": SYNC_S},
                    ],
                },
                "scaleDown": {"stabilizationWindowSeconds": down_s},
            },
        },
    }


def _growth(function: ClusterFunction, settings: ClusterSettings) -> float:
    """Pods grow first: some are added where all are of the largest size, and do so much more."""
    sizing = function.sizing(settings)
    return sizing.growth if sizing else 1.0


def _metric(function: ClusterFunction, settings: ClusterSettings, apis: ScalingApis) -> Object:
    """Requests/s for what a plan scales on rps, where that is measured; else vCPU."""
    scaling, growth = function.scaling, _growth(function, settings)
    if apis.custom and scaling.metric == "rps":
        value = millicores(growth * scaling.target * scaling.target_utilisation)
        return {
            "type": "Pods",
            "pods": {
                "metric": {"name": CUSTOM_METRIC},
                "target": {"type": "AverageValue", "averageValue": value},
            },
        }
    value = millicores(growth * function.needs.vcpu * scaling.target_utilisation)
    return {
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": value}},
    }


def _http_scaler(
    name: str, function: ClusterFunction, release: str, settings: ClusterSettings
) -> Object:
    """KEDA's object: its interceptor holds the first request while a replica starts."""
    scaling = function.scaling
    window_s = settings.options.min_window_s or math.ceil(scaling.window_s)
    growth = _growth(function, settings)
    target = max(math.ceil(growth * scaling.target * scaling.target_utilisation), 1)
    by_rate = {"requestRate": {"targetValue": target, "window": f"{window_s}s"}}
    host = f"{function.service}.{settings.options.namespace}.svc.cluster.local"
    return {
        "apiVersion": HTTP_SCALER.api,
        "kind": HTTP_SCALER.kind,
        "metadata": _metadata(name, function, release, settings),
        "spec": {
            "hosts": [host],
            "scaleTargetRef": {**_target(name), "service": f"{name}-pods", "port": PORT},
            "replicas": {"min": 0, "max": max(scaling.max_scale, 1)},
            "scaledownPeriod": window_s + math.ceil(scaling.grace_s),
            # the interceptor's own are 20 s for a replica to start, and half a second to answer
            "timeouts": dict.fromkeys(
                ("conditionWait", "responseHeader"), f"{function.timeout_s}s"
            ),
            "scalingMetric": by_rate
            if scaling.metric == "rps"
            else {"concurrency": {"targetValue": target}},
        },
    }


def _target(name: str) -> Object:
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}


def _metadata(
    name: str, function: ClusterFunction, release: str, settings: ClusterSettings
) -> Object:
    scope = settings.scope
    return names.metadata(
        name, release, namespace=scope.namespace, labels=function.labels(settings)
    )
