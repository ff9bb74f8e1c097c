"""Options of verbs that speak to a Kubernetes cluster, and what they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erless.cli.options import EndpointOption, InfraOption, StoreOption, project

if TYPE_CHECKING:
    from erless.deploy.kubernetes.cluster_settings import ClusterSettings
    from erless.deploy.target import Desired
    from erless.specs.config import Config

__all__ = [
    "CLUSTER_TARGETS",
    "ClusterOptions",
    "ClusterTargetOption",
    "ClusterTargetOptions",
    "ContextOption",
    "KubeconfigOption",
    "ModelOption",
    "NamespaceOption",
    "ReleaseOptions",
    "cluster_config",
    "cluster_settings_of",
    "cluster_target",
    "desired_release",
    "named_model",
]

ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Name of the model, where several are deployed [the only one]."),
]
CLUSTER_TARGETS = ("knative", "kubernetes")
ClusterTargetOption = Annotated[
    str | None, typer.Option("--target", "-t", help="knative or kubernetes [erless.yaml's].")
]
ReleaseOption = Annotated[
    str, typer.Option("--release", "-r", help="Digest or its beginning [default: the newest].")
]
KubeconfigOption = Annotated[
    Path | None, typer.Option(help="kubeconfig [default: KUBECONFIG] [on a cluster].")
]
ContextOption = Annotated[str | None, typer.Option(help="kubeconfig context [on a cluster].")]
NamespaceOption = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Kubernetes namespace [on a cluster].")
]
ImageOption = Annotated[
    list[str] | None,
    typer.Option(
        "--image", help="KIND=IMAGE@sha256:… or, of the registry, KIND=sha256:… [on a cluster]."
    ),
]


@dataclass(frozen=True)
class ClusterOptions:
    """Which cluster, and where in it."""

    kubeconfig: KubeconfigOption = None
    context: ContextOption = None
    namespace: NamespaceOption = None
    infra: InfraOption = None

    def config(self) -> Config:
        """The project's configuration, with these options above it.

        Raises:
            OptionError: a value does not fit.
        """
        return cluster_config(project(), vars(self))


@dataclass(frozen=True)
class ClusterTargetOptions(ClusterOptions):
    """Which cluster, where in it, and what runs it there."""

    target: ClusterTargetOption = None

    def chosen(self, config: Config) -> str:
        """The target, as `cluster_target`."""
        return cluster_target(self.target, config)

    def config(self) -> Config:
        """As `ClusterOptions.config`, of the target."""
        values = {name: value for name, value in vars(self).items() if name != "target"}
        config = project()
        return cluster_config(config, values, self.chosen(config))


@dataclass(frozen=True)
class ReleaseOptions:
    """Which release, of which store, in which images."""

    store: StoreOption = None
    release: ReleaseOption = ""
    image: ImageOption = None
    endpoint_url: EndpointOption = None


def cluster_config(config: Config, options: Mapping[str, Any], target: str = "knative") -> Config:
    """`config` with the command line's values for a target above `erless.yaml`'s.

    Args:
        config: what `erless.yaml` says.
        options: values by the name of their field; None leaves the field as it is.
        target: knative or kubernetes.

    Raises:
        OptionError: a value does not fit.
    """
    from pydantic import ValidationError

    from erless.errors import OptionError

    set_options = {name: value for name, value in options.items() if value is not None}
    if not set_options:
        return config
    section = getattr(config.targets, target)
    configured = section.model_dump(exclude_unset=True)
    try:
        changed = type(section).model_validate(configured | set_options)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            raise OptionError(f"{first['loc'][0]} is not for target {target}") from error
        raise OptionError(f"--{first['loc'][0]} {first['input']}: {first['msg']}") from error
    targets = config.targets.model_copy(update={target: changed})
    return config.model_copy(update={"targets": targets})


def named_model(config: Config, model: str | None) -> Config:
    """`config`, about the model that the command line names, where it names one."""
    if not model:
        return config
    targets = config.targets.model_copy(update={"model": model})
    return config.model_copy(update={"targets": targets})


def cluster_target(target: str | None, config: Config) -> str:
    """The target on a cluster that a verb of clusters is about: knative, unless another is named.

    Raises:
        OptionError: it needs no cluster, or there is none of that name.
    """
    from erless.errors import OptionError

    name = target or config.targets.default
    if target is None and name == "local":
        return "knative"
    if name not in CLUSTER_TARGETS:
        raise OptionError(f"--target {name}: {' or '.join(CLUSTER_TARGETS)} run on a cluster")
    return name


def cluster_settings_of(
    config: Config, images: Sequence[str] | None = None, target: str = "knative"
) -> ClusterSettings:
    """The cluster that `config` names for a target, with `images` as the command line has them.

    Raises:
        ConfigError: an image is not KIND=IMAGE, or the images file is damaged.
        InfraError: Terraform's outputs cannot be read.
    """
    from erless.deploy.infra import read_infra
    from erless.deploy.kubernetes.cluster_settings import parse_image_options, resolve_settings

    options = getattr(config.targets, target)
    infra = read_infra(options.infra) if options.infra else None
    return resolve_settings(config, infra, parse_image_options(images or ()), options)


def desired_release(
    config: Config,
    store: str | None,
    release: str,
    endpoint_url: str | None,
    *,
    replace_model: bool = False,
) -> Desired:
    """A release of the store and its plan; it may take the place of another model, or not.

    Raises:
        StoreError: no such release.
        ArtifactError: it is damaged.
    """
    from erless.deploy.desired_release import load_desired

    location = store or config.store
    return load_desired(location, release, endpoint_url, replace_model=replace_model)
