"""Options of the verbs that speak to a target, and the target that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from erless.deploy.target import Target
    from erless.specs.config import Config

__all__ = ["StateOption", "TargetOption", "TimeoutOption", "local_config", "resolve_target"]

TargetOption = Annotated[
    str | None, typer.Option("--target", "-t", help="local or knative [default: erless.yaml's].")
]
StateOption = Annotated[
    Path | None, typer.Option(help="State folder [default: erless.yaml's] [local].")
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=1, help="Most that it may take, in seconds.")
]


def local_config(
    config: Config,
    *,
    state: Path | None = None,
    port: int | None = None,
    systemd: bool | None = None,
) -> Config:
    """`config` with the command line's values for target local above `erless.yaml`'s."""
    given = {"state": state, "port": port, "systemd": systemd}
    overrides = {name: value for name, value in given.items() if value is not None}
    local = config.targets.local.model_copy(update=overrides)
    targets = config.targets.model_copy(update={"local": local})
    return config.model_copy(update={"targets": targets})


def resolve_target(
    name: str | None,
    *,
    state: Path | None = None,
    port: int | None = None,
    systemd: bool | None = None,
    kubeconfig: Path | None = None,
    context: str | None = None,
    namespace: str | None = None,
    infra: Path | None = None,
    images: Sequence[str] | None = None,
    canary_percent: int | None = None,
) -> tuple[Target, Config]:
    """The target that options and `erless.yaml` name, and the configuration behind it.

    Raises:
        OptionError: no such target, or a value does not fit it.
    """
    from erless.cli.cluster.cluster_options import cluster_config
    from erless.cli.options import project
    from erless.deploy.targets import open_target

    config = local_config(project(), state=state, port=port, systemd=systemd)
    config = cluster_config(
        config,
        kubeconfig=kubeconfig,
        context=context,
        namespace=namespace,
        infra=infra,
        canary_percent=canary_percent,
    )
    return open_target(name, config, images or ()), config
