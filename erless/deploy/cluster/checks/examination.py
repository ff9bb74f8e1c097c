"""What a check is given, and what it answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from erless.deploy.cluster.settings import SERVING
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.deploy.kubernetes.kinds import CONFIG_MAP, HTTP_SCALER
from erless.deploy.kubernetes.render.rendered import Object, Rendered
from erless.specs.knative import KnativeConfig

__all__ = ["Examination", "Finding", "patch_command"]

Level = Literal["pass", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer: `mend` is the command that changes it, empty where nothing is to be done."""

    level: Level
    what: str
    fact: str
    mend: str = ""


@dataclass(frozen=True)
class Examination:
    """A cluster and what shall run on it.

    Args:
        api: the cluster.
        settings: as configured.
        rendered: a release's objects; without one, only what every release needs is asked.
        store: the release store, None: not asked.
        endpoint_url: of the store's S3 API as this machine reaches it.
        version: what the API server says of itself.
    """

    api: Api
    settings: ClusterSettings
    rendered: Rendered | None = None
    store: str | None = None
    endpoint_url: str | None = None
    version: Mapping[str, str] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        """Of the functions."""
        return self.settings.options.namespace

    @property
    def services(self) -> tuple[Object, ...]:
        """What the functions' pods are made from, as far as a release is known."""
        objects = self.rendered.objects if self.rendered else ()
        return tuple(each for each in objects if "template" in each.get("spec", {}))

    @property
    def scales_by_http(self) -> bool:
        """Whether the release has objects of KEDA's HTTP add-on."""
        objects = self.rendered.objects if self.rendered else ()
        return any(each["kind"] == HTTP_SCALER.kind for each in objects)

    @property
    def with_knative(self) -> bool:
        """Whether it is for target knative."""
        return isinstance(self.settings.options, KnativeConfig)

    def config(self, name: str) -> Mapping[str, str]:
        """Knative's ConfigMap `config-NAME`, read once.

        Raises:
            DeployError: it may not be read.
        """
        if name not in self._configs:
            document = self.api.get(CONFIG_MAP, SERVING, f"config-{name}") or {}
            self._configs[name] = document.get("data", {})
        return self._configs[name]

    @cached_property
    def _configs(self) -> dict[str, Mapping[str, str]]:
        return {}


def patch_command(config: str, values: Mapping[str, str]) -> str:
    """The command that sets keys of Knative's ConfigMap `config-CONFIG`."""
    text = json.dumps({"data": values}, separators=(",", ":"))
    return f"kubectl -n {SERVING} patch configmap config-{config} --type merge -p '{text}'"
