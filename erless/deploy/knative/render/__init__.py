"""Render, then act: release + plan + cluster → every Kubernetes object, in the order of applying.

Pure: the same inputs give the same objects, byte for byte. `erless render` writes them, `deploy
--dry-run` prints them, `deploy` applies them.
"""

from __future__ import annotations

from erless.deploy.knative.render.routes import routes
from erless.deploy.knative.render.services import function_service, gateway_service
from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.deploy.kubernetes.pod_names import KNATIVE
from erless.deploy.kubernetes.render import policies
from erless.deploy.kubernetes.render.functions import gateway_function, released_functions
from erless.deploy.kubernetes.render.rendered import Object, Rendered
from erless.deploy.target import Desired

__all__ = ["Object", "Rendered", "render"]


def render(desired: Desired, settings: ClusterSettings) -> Rendered:
    """Everything that `deploy` applies for `desired` at `settings`.

    Raises:
        ConfigError: an image is missing, or a folder store is not visible to pods.
        PlanError: the plan does not know a shard of the release.
    """
    settings = settings.with_endpoint(desired.endpoint_url)
    digest = desired.release.digest
    functions = released_functions(desired, settings)
    services = tuple(function_service(function, desired, settings) for function in functions)
    gateway = gateway_function(desired, settings, functions)
    service = gateway_service(gateway, desired, settings)
    return Rendered(
        policies.base(digest, settings, desired.store, routes(settings)),
        services,
        service,
        policies.extras([*functions, gateway], KNATIVE, digest, settings),
        revision=str(service["spec"]["template"]["metadata"]["name"]),
        decoys=frozenset(function.service for function in functions if function.decoy),
    )
