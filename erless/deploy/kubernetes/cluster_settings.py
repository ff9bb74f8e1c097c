"""What the objects depend on besides release and plan: the cluster, as configured and provisioned.

`erless.yaml` wins over what Terraform says; images come from `erless.yaml`, or from the file that
`erless image push` wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from erless.deploy.canary import canary_digest
from erless.deploy.deployed_models import model_key
from erless.deploy.infra import Infra
from erless.deploy.kubernetes.kinds import CLAIM, SECRET, Kind
from erless.deploy.kubernetes.names import Scope
from erless.errors import ConfigError, OptionError
from erless.specs.cluster import ClusterConfig, PodPlacement
from erless.specs.config import (
    Config,
    FreshnessConfig,
    GatewayConfig,
    ObserveConfig,
    TracesConfig,
)
from erless.specs.functions import FunctionKind
from erless.specs.knative import KnativeConfig
from erless.specs.kubernetes import KubernetesConfig
from erless.storage.atomic import os_errors

__all__ = ["ClusterSettings", "parse_image_options", "read_images", "resolve_settings"]

KINDS: tuple[FunctionKind, ...] = ("gateway", "dense", "sparse")
DIGEST = re.compile(r"^[^\s@]+@sha256:[0-9a-f]{64}$")


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """A cluster to render for.

    images: function kind → image by digest. sla_ms: p95 objective of a query. model: key of the
    model's name, where its objects carry it. canary: SHA-256 of a token that opens nothing.
    ids_in_order: who takes ids in order is an alert.
    mutual_tls: gateway and functions know each other by certificates.
    """

    options: ClusterConfig
    images: Mapping[FunctionKind, str]
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    sla_ms: float = 100.0
    create_namespace: bool = True
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    freshness: FreshnessConfig = field(default_factory=FreshnessConfig)
    traces: TracesConfig = field(default_factory=TracesConfig)
    model: str = ""
    canary: str | None = None
    ids_in_order: bool = False
    mutual_tls: bool = False

    @property
    def identity_prefix(self) -> str:
        """What the URIs of all functions' certificates begin with."""
        return "/".join(filter(None, ("spiffe://erless", self.options.namespace, self.model))) + "/"

    @property
    def section(self) -> str:
        """The section of `erless.yaml` that the options are from."""
        return "kubernetes" if isinstance(self.options, KubernetesConfig) else "knative"

    @property
    def knative(self) -> KnativeConfig:
        """The options, of a cluster with Knative."""
        if not isinstance(self.options, KnativeConfig):
            raise TypeError("these are settings of a cluster without Knative")
        return self.options

    @property
    def plain(self) -> KubernetesConfig:
        """The options, of a cluster without Knative."""
        if not isinstance(self.options, KubernetesConfig):
            raise TypeError("these are settings of a cluster with Knative")
        return self.options

    @property
    def scope(self) -> Scope:
        """The objects of this deployment among those of its namespace."""
        return Scope(self.options.namespace, self.model)

    def image(self, kind: FunctionKind) -> str:
        """The image of a function.

        Raises:
            OptionError: none is configured, or by tag: a tag may move.
        """
        image = self.images.get(kind)
        if image is None:
            raise OptionError(
                f"no image for {kind} functions: pass --image, set targets.{self.section}.images, "
                f"or run `erless image push`, which writes {self.options.images_file}"
            )
        if not DIGEST.match(image):
            raise OptionError(
                f"image {image} of {kind} functions is not named by digest (@sha256:…)"
            )
        return image

    def with_placeholders(
        self, kinds: Sequence[FunctionKind]
    ) -> tuple[ClusterSettings, tuple[str, ...]]:
        """This cluster with an image for each of `kinds`, and what had to be made up.

        A dry run may come before the images do; their names end in `.invalid`, which no registry
        has (RFC 2606).
        """
        missing = [kind for kind in kinds if kind not in self.images]
        made_up = {kind: f"images.invalid/erless/{kind}@sha256:{'0' * 64}" for kind in missing}
        facts = tuple(f"image of {kind} functions" for kind in missing)
        return replace(self, images={**self.images, **made_up}), facts

    def with_endpoint(self, endpoint_url: str | None) -> ClusterSettings:
        """This cluster; where it names no S3 API, the one at `endpoint_url`."""
        if not endpoint_url or self.options.endpoint_url:
            return self
        options = self.options.model_copy(update={"endpoint_url": endpoint_url})
        return replace(self, options=options)

    def references(self) -> Iterator[tuple[Kind, str]]:
        """The Secrets and volume claims that the pods refer to, by kind and name."""
        options = self.options
        secrets = (*options.image_pull_secrets, options.credentials_secret, options.token_secret)
        claims = (options.cache_claim, options.store_volume.claim)
        for kind, references in ((SECRET, secrets), (CLAIM, claims)):
            for name in filter(None, references):
                yield kind, name

    def place(self, role: str) -> PodPlacement:
        """Where pods of `role` may run."""
        return next(
            (p for name, p in self.options.placement.items() if name == role), PodPlacement()
        )


def resolve_settings(
    config: Config,
    infra: Infra | None = None,
    images: Mapping[str, str] | None = None,
    options: ClusterConfig | None = None,
) -> ClusterSettings:
    """Combine configuration and infrastructure.

    Args:
        config: of `erless.yaml`.
        infra: what Terraform provisioned, if it did.
        images: function kind → image, above all others.
        options: the target's section of `config`; default: target knative's.

    Raises:
        ImageError: a tag cannot be resolved.
        ConfigError: the images file is damaged, a digest has no registry, or `gateway.token_env`
            has no Secret beside it.
    """
    if options is None:
        options = config.targets.knative
    if infra is not None:
        options = _with_infra(options, infra)
    if config.gateway.token_env and not options.token_secret:
        raise ConfigError(
            "gateway.token_env is set; on Kubernetes the token comes from a Secret: name one under "
            "targets.knative.token_secret (key `token`)"
        )
    _refuse_local_security(config, with_knative=isinstance(options, KnativeConfig))
    by_kind: dict[FunctionKind, str] = {}
    if options.images_file.exists():
        by_kind |= read_images(options.images_file)
    by_kind |= options.images
    for kind, image in (images or {}).items():
        by_kind[_kind(kind)] = image
    by_kind = {kind: _by_digest(_whole(kind, image, options)) for kind, image in by_kind.items()}
    return ClusterSettings(
        options,
        by_kind,
        config.gateway,
        config.traffic.sla_p95_ms,
        observe=config.observe,
        freshness=config.freshness,
        traces=config.traces,
        model=model_key(config.targets.model or ""),
        canary=canary_digest(config.gateway, guarded=options.token_secret is not None),
        ids_in_order=config.decoys.alert.ids_in_order,
        mutual_tls=config.security.mutual_tls,
    )


def _refuse_local_security(config: Config, *, with_knative: bool) -> None:
    """Refuse files of this machine, and with Knative TLS between our processes.

    Its ingress, activator and queue-proxy stand between them: each ends TLS and speaks HTTP on, so
    no certificate of the gateway's reaches a shard. Past them its autoscaler would see no call.

    Raises:
        ConfigError: says what does it on Knative.
    """
    if config.gateway.tokens_file is not None:
        raise ConfigError(
            "gateway.tokens_file: on Kubernetes the gateway's token comes from a Secret: name one "
            "under targets.knative.token_secret (key `token`)"
        )
    if config.gateway.tls is not None:
        raise ConfigError(
            "gateway.tls: on Knative the ingress speaks HTTPS, by external-domain-tls in "
            "config-network or a DomainMapping with a certificate"
        )
    if config.security.mutual_tls and with_knative:
        raise ConfigError(
            "security.mutual_tls: Knative's proxies end TLS before a function; take target "
            "kubernetes, which has it, or let Knative encrypt (system-internal-tls and "
            "cluster-local-domain-tls in config-network), or a service mesh; callers are known by "
            "the deployment's secret and network policies"
        )


def _whole(kind: FunctionKind, image: str, options: ClusterConfig) -> str:
    """`image`, or where it is a digest alone, that of the registry's repository for `kind`."""
    if not image.startswith("sha256:"):
        return image
    if not options.registry:
        raise ConfigError(
            f"image {image}: a digest alone needs a registry: --infra, or erless.yaml"
        )
    return f"{options.registry.rstrip('/')}/{kind}@{image}"


def _by_digest(image: str) -> str:
    """The image as it is now: a tag may move between two pods, a digest may not."""
    if DIGEST.match(image):
        return image
    from erless.deploy.image.reference import parse_reference
    from erless.deploy.image.registry import resolve_digest

    return resolve_digest(parse_reference(image))


def parse_image_options(images: Sequence[str]) -> dict[str, str]:
    """KIND=IMAGE, as the command line has them.

    Raises:
        OptionError: one has another form.
    """
    by_kind: dict[str, str] = {}
    for option in images:
        kind, sign, image = option.partition("=")
        if not sign or not image:
            raise OptionError(f"--image {option}: expected KIND=IMAGE")
        by_kind[_kind(kind)] = image
    return by_kind


def _kind(name: str) -> FunctionKind:
    for kind in KINDS:
        if kind == name:
            return kind
    raise OptionError(f"no function kind {name!r}: {', '.join(KINDS)} are")


def read_images(path: Path) -> dict[FunctionKind, str]:
    """What `erless image push` wrote: function kind → image by digest.

    Raises:
        ConfigError: not that file.
        ArtifactError: there is no such file.
    """
    with os_errors(path, "read"):
        text = path.read_text(encoding="utf-8")
    try:
        document = json.loads(text)
        images = document["images"]
        return {_kind(kind): str(image) for kind, image in images.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: not a file of `erless image push` ({error!r})") from error


def _with_infra(options: ClusterConfig, infra: Infra) -> ClusterConfig:
    """`options`, completed by what Terraform says where nothing is set by hand."""
    set_by_hand = options.model_fields_set
    identity = infra.identity
    update: dict[str, object] = {}
    if "namespace" not in set_by_hand:
        update["namespace"] = identity.namespace
    if "service_account" not in set_by_hand:
        update["service_account"] = identity.service_account
    if options.role_arn is None and identity.method == "irsa":
        update["role_arn"] = identity.functions_role_arn
    update["region"] = options.region or infra.region
    update["registry"] = options.registry or infra.registry_url
    update["placement"] = dict(infra.placement) | dict(options.placement)
    return options.model_copy(update=update)
