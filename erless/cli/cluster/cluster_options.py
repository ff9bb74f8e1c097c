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
    "ClusterOptions",
    "ContextOption",
    "KubeconfigOption",
    "NamespaceOption",
    "ReleaseOptions",
    "cluster_config",
    "cluster_settings_of",
    "desired_release",
]

ReleaseOption = Annotated[
    str, typer.Option("--release", "-r", help="Digest or its beginning [default: the newest].")
]
KubeconfigOption = Annotated[
    Path | None, typer.Option(help="kubeconfig [default: KUBECONFIG] [knative].")
]
ContextOption = Annotated[str | None, typer.Option(help="kubeconfig context [knative].")]
NamespaceOption = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Kubernetes namespace [knative].")
]
ImageOption = Annotated[
    list[str] | None,
    typer.Option(
        "--image", help="KIND=IMAGE@sha256:… or, of the registry, KIND=sha256:… [knative]."
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
class ReleaseOptions:
    """Which release, of which store, in which images."""

    store: StoreOption = None
    release: ReleaseOption = ""
    image: ImageOption = None
    endpoint_url: EndpointOption = None


def cluster_config(config: Config, options: Mapping[str, Any]) -> Config:
    """`config` with the command line's values for target knative above `erless.yaml`'s.

    Args:
        config: what `erless.yaml` says.
        options: values by the name of their field; None leaves the field as it is.

    Raises:
        OptionError: a value does not fit.
    """
    from pydantic import ValidationError

    from erless.errors import OptionError
    from erless.specs.config import KnativeConfig

    set_options = {name: value for name, value in options.items() if value is not None}
    if not set_options:
        return config
    configured = config.targets.knative.model_dump(exclude_unset=True)
    try:
        knative = KnativeConfig.model_validate(configured | set_options)
    except ValidationError as error:
        first = error.errors()[0]
        raise OptionError(f"--{first['loc'][0]} {first['input']}: {first['msg']}") from error
    targets = config.targets.model_copy(update={"knative": knative})
    return config.model_copy(update={"targets": targets})


def cluster_settings_of(config: Config, images: Sequence[str] | None = None) -> ClusterSettings:
    """The cluster that `config` names, with `images` as the command line has them.

    Raises:
        ConfigError: an image is not KIND=IMAGE, or the images file is damaged.
        InfraError: Terraform's outputs cannot be read.
    """
    from erless.deploy.infra import read_infra
    from erless.deploy.kubernetes.cluster_settings import parse_image_options, resolve_settings

    folder = config.targets.knative.infra
    return resolve_settings(
        config, read_infra(folder) if folder else None, parse_image_options(images or ())
    )


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
