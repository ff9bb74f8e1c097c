"""Render, then act: release + plan + cluster → every object, in the order of applying. Pure."""

from __future__ import annotations

from dataclasses import replace

from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.deploy.kubernetes.pod_names import PLAIN
from erless.deploy.kubernetes.render import policies
from erless.deploy.kubernetes.render.certificates import certificates
from erless.deploy.kubernetes.render.cluster_function import HTTPS_PORT
from erless.deploy.kubernetes.render.functions import gateway_function, released_functions
from erless.deploy.kubernetes.render.rendered import Object, Rendered
from erless.deploy.plain_kubernetes.render.autoscalers import autoscaler, reaches_zero
from erless.deploy.plain_kubernetes.render.routes import routes
from erless.deploy.plain_kubernetes.render.workloads import (
    INTERCEPTOR_PORT,
    deployment,
    function_services,
    gateway_deployment,
    gateway_service,
)
from erless.deploy.plain_kubernetes.scaling_apis import ScalingApis
from erless.deploy.target import Desired

__all__ = ["render"]


def render(desired: Desired, settings: ClusterSettings, apis: ScalingApis) -> Rendered:
    """Everything that `deploy` applies for `desired` at `settings`, scaled by `apis`.

    Raises:
        ConfigError: an image is missing, or a folder store is not visible to pods.
        PlanError: the plan does not know a shard of the release.
    """
    settings = settings.with_endpoint(desired.endpoint_url)
    if settings.mutual_tls:  # what wakes functions speaks HTTP
        apis = replace(apis, zero=False)
    digest = desired.release.digest
    desired = replace(desired, decoys=())  # none are placed here: docs/decoys.md
    functions = [
        replace(function, port=INTERCEPTOR_PORT) if reaches_zero(function, apis) else function
        for function in released_functions(desired, settings)
    ]
    if settings.mutual_tls:
        functions = [replace(function, port=HTTPS_PORT) for function in functions]
    objects: list[Object] = []
    for function in functions:
        interceptor = settings.plain.keda_namespace if reaches_zero(function, apis) else ""
        objects += [
            deployment(function, desired, settings),
            *function_services(function, digest, settings, interceptor),
            autoscaler(function.service, function, digest, settings, apis),
        ]
    gateway = gateway_function(desired, settings, functions)
    candidate = gateway_deployment(gateway, desired, settings)
    revision = str(candidate["metadata"]["name"])
    base = policies.base(digest, settings, desired.store, routes(settings, apis))
    if settings.mutual_tls:
        base += certificates([*functions, gateway], digest, settings)
    return Rendered(
        base,
        tuple(objects),
        gateway_service(gateway, revision, digest, settings),
        policies.extras([*functions, gateway], PLAIN, digest, settings),
        revision=revision,
        candidate=(candidate, autoscaler(revision, gateway, digest, settings, apis)),
    )
