"""The functions as Knative Services. Of the gateway's, only the traffic moves between releases."""

from __future__ import annotations

import math
from collections.abc import Sequence

from erless.deploy.knative.render.scaling import scaling_annotations
from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.deploy.kubernetes.releases import TrafficTarget
from erless.deploy.kubernetes.render.cluster_function import ClusterFunction, Object
from erless.deploy.target import Desired
from erless.errors import ConfigError

__all__ = ["function_service", "gateway_service", "traffic_line"]

API = "serving.knative.dev/v1"
# A function may answer before Knative's proxies have seen the end of the request; without this they
# then cut the answer short (golang/go#40747, seen here on loaded nodes as "unexpected EOF").
FULL_DUPLEX = {"features.knative.dev/http-full-duplex": "Enabled"}
QUEUE_PROXY = "queue.sidecar.serving.knative.dev"
QUEUE_PROXY_MILLICORES = 1000  # its limit where pods have one: throttling it lengthens every answer
LOCAL = {"networking.knative.dev/visibility": "cluster-local"}


def traffic_line(target: TrafficTarget) -> Object:
    """A share of the traffic in Knative's words."""
    tag = {"tag": target.tag} if target.tag else {}
    return {
        "revisionName": target.revision,
        "percent": target.percent,
        "latestRevision": False,
        **tag,
    }


def gateway_service(
    gateway: ClusterFunction,
    desired: Desired,
    settings: ClusterSettings,
    traffic: Sequence[TrafficTarget] = (),
) -> Object:
    """The gateway's Service, with a revision named for the release.

    Args:
        gateway: the function.
        desired: release and plan.
        settings: the cluster.
        traffic: the share of each revision; all to this release where it is empty.
    """
    service = function_service(gateway, desired, settings)
    template = service["spec"]["template"]
    # a kept release's revision must not be collected: rollback needs it
    template["metadata"]["annotations"]["serving.knative.dev/no-gc"] = "true"
    name = settings.scope.revision(desired.release.digest, template)
    template["metadata"]["name"] = name
    lines = traffic or [TrafficTarget(name, 100)]
    service["spec"]["traffic"] = [traffic_line(line) for line in lines]
    return service


def function_service(
    function: ClusterFunction, desired: Desired, settings: ClusterSettings
) -> Object:
    """A Knative Service that moves to its newest revision when that is ready.

    Raises:
        ConfigError: its cold start takes longer than Knative lets an answer take, or no image.
        PlanError: its scaling is outside Knative's bounds.
    """
    _check_timeout(function.name, function.timeout_s, settings)
    scaling, sizing = function.scaling, function.sizing(settings)
    if sizing is not None:  # pods grow first: Knative adds some where all are of the largest size
        scaling = scaling.model_copy(update={"target": scaling.target * sizing.growth})
    return {
        "apiVersion": API,
        "kind": "Service",
        "metadata": function.metadata(
            desired.release.digest, settings, **({} if function.public else LOCAL)
        ),
        "spec": {
            "template": {
                "metadata": {
                    "labels": function.labels(settings),
                    "annotations": scaling_annotations(
                        function.name,
                        scaling,
                        settings.options.min_window_s,
                        starts_asleep=function.starts_asleep,
                    )
                    | FULL_DUPLEX
                    | function.pod_notes(settings)
                    | {"serving.knative.dev/progress-deadline": f"{function.progress_s}s"}
                    | _queue_proxy(settings),
                },
                "spec": {
                    "containerConcurrency": 0,  # functions bound their queues, and say Retry-After
                    "timeoutSeconds": function.timeout_s,
                    "responseStartTimeoutSeconds": function.timeout_s,
                    **function.pod(settings, desired.store),
                },
            },
            "traffic": [{"latestRevision": True, "percent": 100}],
        },
    }


def _check_timeout(function: str, seconds: int, settings: ClusterSettings) -> None:
    """Refuse a timeout beyond the cluster's maximum: Knative would cut the cold start off.

    Raises:
        ConfigError: names the function, what it needs and what is allowed.
    """
    most = settings.knative.max_timeout_s
    if seconds > most:
        raise ConfigError(
            f"{function} needs up to {seconds} s for a cold start at "
            f"{settings.options.load_mb_per_s:g} MB/s, and answers may take {most} s "
            "(targets.knative.max_timeout_s); smaller shards (planner.max_shard_bytes), a faster "
            "store (targets.knative.load_mb_per_s) or a higher maximum of the cluster mend it"
        )


def _queue_proxy(settings: ClusterSettings) -> dict[str, str]:
    """Requests and limits of Knative's container in every pod.

    Where a ResourceQuota counts memory limits, a pod with a container without one is refused. The
    limit has to hold all requests that are on their way at once, or the pod loses its way in.
    Knative 1.23's took at most 34 MiB for 100 at once, 76 for 512, 121 for 1000, 226 for 2000 and
    392 for 4000 (bodies of 100 kB; with 1 MB no more); 2000 killed it under a limit of 128 MiB.
    Each replica of the ingress lets 1024 through, which is Envoy's default.
    """
    options = settings.knative
    cpu = math.ceil(1000 * options.queue_proxy_cpu / options.cpu_overcommit)
    most_mb = max(options.queue_proxy_memory_limit_mb, options.queue_proxy_memory_mb)
    values = {
        "cpu-resource-request": f"{cpu}m",
        "memory-resource-request": f"{options.queue_proxy_memory_mb}Mi",
        "memory-resource-limit": f"{most_mb}Mi",
    }
    if options.cpu_limits:
        values["cpu-resource-limit"] = f"{max(QUEUE_PROXY_MILLICORES, cpu)}m"
    return {f"{QUEUE_PROXY}/{name}": value for name, value in values.items()}
