"""Kubernetes manifests from files and URLs, in the order in which they can be applied."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3
import yaml

from erless.errors import ClusterError, first_line
from erless.outbound import open_pool
from erless.storage.atomic import os_errors

__all__ = [
    "KNATIVE",
    "KOURIER_VERSION",
    "SERVING_VERSION",
    "ManifestFile",
    "in_order",
    "read_manifest_file",
]

Object = dict[str, Any]

# The release that this was run with on a real cluster; it asks for Kubernetes 1.34.
SERVING_VERSION, KOURIER_VERSION = "1.23.0", "1.23.0"
_SERVING = f"https://github.com/knative/serving/releases/download/knative-v{SERVING_VERSION}"
_KOURIER = f"https://github.com/knative-extensions/net-kourier/releases/download/knative-v{KOURIER_VERSION}"
KNATIVE = (
    f"{_SERVING}/serving-crds.yaml",
    f"{_SERVING}/serving-core.yaml",
    f"{_KOURIER}/kourier.yaml",
)

TIMEOUT_S = 30.0
MAX_BYTES = 32 << 20  # the largest of Knative's files has 0.5 MB
LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# What others stand on comes first; kinds not named here come between the two lists.
_FIRST = (
    "CustomResourceDefinition",
    "Namespace",
    "ServiceAccount",
    "Secret",
    "ConfigMap",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Service",
)
# A webhook refuses objects until its own pod answers, so webhooks come last.
_LAST = ("APIService", "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration")


@dataclass(frozen=True)
class ManifestFile:
    """One manifest file: where it is from, what it holds, and its digest for the record."""

    name: str
    sha256: str
    objects: tuple[Object, ...]


def read_manifest_file(name: str) -> ManifestFile:
    """Read the manifests at a path or https URL.

    Raises:
        ArtifactError: there is no such file.
        ClusterError: no answer, not YAML, or something in it is not a Kubernetes object.
    """
    if "://" in name:
        data = _download(name)
    else:
        with os_errors(Path(name), "read"):
            data = Path(name).read_bytes()
    try:
        documents = [document for document in yaml.load_all(data, _LOADER) if document]
    except yaml.YAMLError as error:
        raise ClusterError(f"{name}: not YAML: {first_line(error)}") from error
    objects: list[Any] = []
    for document in documents:
        is_list = isinstance(document, dict) and isinstance(document.get("items"), list)
        objects += document["items"] if is_list else [document]
    for number, document in enumerate(objects, 1):
        meta = document.get("metadata") if isinstance(document, dict) else None
        if not (
            isinstance(meta, dict) and {"apiVersion", "kind"} <= set(document) and "name" in meta
        ):
            raise ClusterError(
                f"{name}: document {number} is no Kubernetes object: apiVersion, kind and "
                "metadata.name are needed"
            )
    if not objects:
        raise ClusterError(f"{name}: no Kubernetes objects in it")
    return ManifestFile(name, hashlib.sha256(data).hexdigest(), tuple(objects))


def _download(url: str) -> bytes:
    """The body at `url`; plain http is for loopback only."""
    _check_scheme(url)
    saved = "save the file elsewhere and name its path"
    try:
        with open_pool(url, TIMEOUT_S) as pool:
            retries = urllib3.Retry(3, redirect=5)
            answer = pool.request("GET", url, preload_content=False, retries=retries)
            _check_scheme(answer.geturl() or url)
            data = answer.read(MAX_BYTES + 1, decode_content=True)
            answer.release_conn()
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise ClusterError(f"cannot fetch {url}: {first_line(error)}; {saved}") from error
    if answer.status != 200:
        raise ClusterError(f"cannot fetch {url}: the server answered {answer.status}; {saved}")
    if len(data) > MAX_BYTES:
        raise ClusterError(f"{url}: more than {MAX_BYTES:,} bytes")
    return bytes(data)


def _check_scheme(url: str) -> None:
    parts = urlsplit(url)
    if parts.netloc and parts.scheme != "https" and parts.hostname not in LOOPBACK:
        raise ClusterError(f"{url}: only https is fetched; save the file and name its path")


def in_order(sources: Iterable[ManifestFile]) -> list[Object]:
    """All objects, those that others stand on first; else in the order of their files."""

    def place(document: Object) -> int:
        kind = document["kind"]
        if kind in _FIRST:
            return _FIRST.index(kind) - len(_FIRST)
        return 1 + _LAST.index(kind) if kind in _LAST else 0

    return sorted((document for source in sources for document in source.objects), key=place)
