"""The targets by name. A new target is one line here; verbs call only the protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from erless.deploy.target import Target
from erless.errors import OptionError
from erless.specs.config import Config

__all__ = ["TARGETS", "open_target"]


Opener = Callable[[Config, Sequence[str]], Target]


def _local(config: Config, images: Sequence[str]) -> Target:
    from erless.deploy.local.target import LocalTarget

    return LocalTarget(config)


def _knative(config: Config, images: Sequence[str]) -> Target:
    from erless.deploy.knative.target import KnativeTarget
    from erless.deploy.kubernetes.cluster_settings import parse_image_options

    return KnativeTarget(config, parse_image_options(images))


TARGETS: dict[str, Opener] = {"local": _local, "knative": _knative}


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
