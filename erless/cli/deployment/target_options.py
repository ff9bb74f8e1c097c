"""Options of the verbs that speak to a target, and the target that they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.cluster.cluster_options import (
    CLUSTER_TARGETS,
    ContextOption,
    KubeconfigOption,
    ModelOption,
    NamespaceOption,
    cluster_config,
    named_model,
)
from erless.cli.options import project

if TYPE_CHECKING:
    from erless.deploy.target import Target
    from erless.specs.config import Config

__all__ = [
    "PlaceOptions",
    "TargetOptions",
    "TimeoutOption",
    "resolve_target",
]

TargetOption = Annotated[
    str | None, typer.Option("--target", "-t", help="local, knative or kubernetes [erless.yaml's].")
]
StateOption = Annotated[
    Path | None, typer.Option(help="State folder [default: erless.yaml's] [local].")
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=1, help="Most that it may take, in seconds.")
]


@dataclass(frozen=True)
class PlaceOptions:
    """Which target, and where it is."""

    target: TargetOption = None
    state: StateOption = None
    kubeconfig: KubeconfigOption = None
    context: ContextOption = None
    namespace: NamespaceOption = None


@dataclass(frozen=True)
class TargetOptions(PlaceOptions):
    """Which target, where it is, and which of the models there."""

    model: ModelOption = None


def resolve_target(
    options: PlaceOptions,
    *,
    local: Mapping[str, Any] | None = None,
    cluster: Mapping[str, Any] | None = None,
    images: Sequence[str] = (),
) -> tuple[Target, Config]:
    """The target that options and `erless.yaml` name, and the configuration behind it.

    Args:
        options: which target, where, and which model.
        local: further values for target local, above `erless.yaml`'s; None is none.
        cluster: likewise for a target on a cluster.
        images: KIND=IMAGE, above those of the configuration.

    Raises:
        OptionError: no such target, or a value does not fit it.
    """
    from erless.deploy.targets import open_target

    config = _local_config(project(), {"state": options.state, **(local or {})})
    where = {
        "kubeconfig": options.kubeconfig,
        "context": options.context,
        "namespace": options.namespace,
    }
    on = options.target or config.targets.default
    if on in CLUSTER_TARGETS:
        config = cluster_config(config, where | dict(cluster or {}), on)
    if isinstance(options, TargetOptions):
        config = named_model(config, options.model)
    return open_target(options.target, config, images), config


def _local_config(config: Config, values: Mapping[str, Any]) -> Config:
    """`config` with the command line's values for target local above `erless.yaml`'s."""
    overrides = {name: value for name, value in values.items() if value is not None}
    local = config.targets.local.model_copy(update=overrides)
    targets = config.targets.model_copy(update={"local": local})
    return config.model_copy(update={"targets": targets})
