"""Render, then act: release + plan + cluster → every Kubernetes object, in the order of applying.

Pure: the same inputs give the same objects, byte for byte. `erless render` writes them, `deploy
--dry-run` prints them, `deploy` applies them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from erless.deploy.knative.render.routes import routes
from erless.deploy.knative.render.services import (
    SERVICE_LABEL,
    function_service,
    gateway_service,
)
from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.deploy.kubernetes.render import policies
from erless.deploy.kubernetes.render.functions import (
    Object,
    gateway_function,
    released_functions,
)
from erless.deploy.target import Desired

__all__ = ["Object", "Rendered", "render"]


@dataclass(frozen=True, slots=True)
class Rendered:
    """All objects of one release.

    base: namespace, account, network policies. functions: shards and tower. extras: budgets and
    the monitor.
    """

    base: tuple[Object, ...]
    functions: tuple[Object, ...]
    gateway: Object
    extras: tuple[Object, ...]

    @property
    def objects(self) -> tuple[Object, ...]:
        """In the order of applying."""
        return (*self.base, *self.functions, self.gateway, *self.extras)

    def with_functions_of(self, others: Sequence[Rendered]) -> tuple[Object, ...]:
        """In the order of applying, with the functions that other releases have besides.

        A reconciler that removes what is no longer rendered, before the gateway has moved, would
        take them from the gateway that still serves.
        """
        known = {function["metadata"]["name"] for function in self.functions}
        more = {
            function["metadata"]["name"]: function
            for other in others
            for function in other.functions
            if function["metadata"]["name"] not in known
        }
        functions = (*self.functions, *(more[name] for name in sorted(more)))
        return (*self.base, *functions, self.gateway, *self.extras)

    @property
    def revision(self) -> str:
        """The gateway's revision."""
        return str(self.gateway["spec"]["template"]["metadata"]["name"])


def render(desired: Desired, settings: ClusterSettings) -> Rendered:
    """Everything that `deploy` applies for `desired` at `settings`.

    Raises:
        ConfigError: an image is missing, or a folder store is not visible to pods.
        PlanError: the plan does not know a shard of the release.
    """
    settings = settings.with_endpoint(desired.endpoint_url)
    digest = desired.release.digest
    base: list[Object] = []
    if settings.create_namespace:
        base.append(policies.namespace(digest, settings))
    if settings.options.create_service_account:
        base.append(policies.account(digest, settings))
    if settings.options.network_policies:
        base += policies.network_policies(digest, settings, desired.store, routes(settings))
    functions = released_functions(desired, settings)
    gateway = gateway_function(desired, settings, functions)
    extras = policies.budgets([*functions, gateway], SERVICE_LABEL, digest, settings)
    if settings.options.pod_monitor:
        extras.append(policies.monitor(digest, settings))
    return Rendered(
        tuple(base),
        tuple(function_service(function, desired, settings) for function in functions),
        gateway_service(gateway, desired, settings),
        tuple(extras),
    )
