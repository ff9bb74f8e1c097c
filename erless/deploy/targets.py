"""The targets by name. A new target is one line here; verbs call only the protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from erless.deploy.target import Desired, Target
from erless.errors import OptionError
from erless.specs.config import Config

if TYPE_CHECKING:
    from erless.deploy.kubernetes.api import Api
    from erless.deploy.kubernetes.cluster_settings import ClusterSettings
    from erless.deploy.kubernetes.render.rendered import Rendered

__all__ = ["TARGETS", "open_target", "render_objects"]


Opener = Callable[[Config, Sequence[str]], Target]


def _local(config: Config, images: Sequence[str]) -> Target:
    from erless.deploy.local.target import LocalTarget

    return LocalTarget(config)


def _knative(config: Config, images: Sequence[str]) -> Target:
    from erless.deploy.knative.target import KnativeTarget
    from erless.deploy.kubernetes.cluster_settings import parse_image_options

    return KnativeTarget(config, parse_image_options(images))


def _kubernetes(config: Config, images: Sequence[str]) -> Target:
    from erless.deploy.kubernetes.cluster_settings import parse_image_options
    from erless.deploy.plain_kubernetes.target import KubernetesTarget

    return KubernetesTarget(config, parse_image_options(images))


TARGETS: dict[str, Opener] = {"local": _local, "knative": _knative, "kubernetes": _kubernetes}


def open_target(name: str | None, config: Config, images: Sequence[str] = ()) -> Target:
    """The target `name`; None: `erless.yaml`'s default.

    Args:
        name: a key of `TARGETS`.
        config: of the project, with the command line's values in place.
        images: KIND=IMAGE, of targets that run containers.

    Raises:
        OptionError: there is no such target.
    """
    name = name or config.targets.default
    if name not in TARGETS:
        raise OptionError(f"target {name!r} is unknown; valid are {', '.join(TARGETS)}")
    return TARGETS[name](config, images)


def render_objects(desired: Desired, settings: ClusterSettings, api: Api | None = None) -> Rendered:
    """The objects of a release on a cluster, for the target that the settings are of.

    Args:
        desired: release and plan.
        settings: the cluster.
        api: of a cluster to ask what it scales by, where the configuration leaves that open.

    Raises:
        ConfigError, PlanError: they cannot be rendered for this cluster.
    """
    from erless.specs.kubernetes import KubernetesConfig

    if not isinstance(settings.options, KubernetesConfig):
        from erless.deploy.knative.render import render

        return render(desired, settings)
    from erless.deploy.plain_kubernetes.render import render as render_plain
    from erless.deploy.plain_kubernetes.scaling_apis import configured, discover

    apis = discover(api, settings.plain) if api else configured(settings.plain)
    return render_plain(desired, settings, apis)
