"""Targets on the cluster of ERLESS_TEST_KUBECONFIG, each in a namespace of its own.

| variable | |
|---|---|
| ERLESS_TEST_KUBECONFIG | the cluster |
| ERLESS_TEST_IMAGES | what `erless image push` wrote; default: images.json in the checkout |
| ERLESS_TEST_STORE | s3://bucket/prefix that pods reach; default: a folder of this machine, |
| | which has to be the node (hostPath) |
| ERLESS_TEST_ENDPOINT_URL | of its S3 API |
| ERLESS_TEST_GATEWAY | HOST:PORT of the ingress; default: looked for |

Credentials for the S3 API are this process's AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

from __future__ import annotations

import base64
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import pytest

from erless.deploy.desired_release import load_desired
from erless.deploy.knative.target import KnativeTarget
from erless.deploy.kubernetes.kinds import CRD, LEASE, NAMESPACE, POD, SECRET
from erless.deploy.kubernetes.names import OWNED
from erless.deploy.kubernetes.target import ClusterTarget
from erless.deploy.plain_kubernetes.scaling_apis import KEDA_CRD
from erless.deploy.target import Desired
from erless.progress import Silent
from erless.specs.config import Config
from erless.storage.store import Blob, Ignore
from erless.storage.stores import open_store
from tests.conftest import ROOT
from tests.releases import Made

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
KEYS_SECRET = "store-keys"  # noqa: S105
TIMEOUT_S = 300.0


class ClusterHarness:
    """A namespace on a real cluster; windows of seconds.

    Args:
        kind: the target.
    """

    def __init__(self, kind: type[ClusterTarget]) -> None:
        images = Path(os.environ.get("ERLESS_TEST_IMAGES", ROOT / "images.json"))
        if not images.is_file():
            pytest.skip(f"no images: {images} is absent; `erless image push` writes it")
        self._bucket = os.environ.get("ERLESS_TEST_STORE")
        self._endpoint = os.environ.get("ERLESS_TEST_ENDPOINT_URL")
        self._namespace = f"erless-test-{secrets.token_hex(4)}"
        self._folder = Path("/var/tmp") / self._namespace  # pods read it: pytest's own is private
        options = {
            "kubeconfig": os.environ["ERLESS_TEST_KUBECONFIG"],
            "namespace": self._namespace,
            "images_file": str(images),
            "min_window_s": 6,
            "cpu_overcommit": 20,  # a test cluster is small
        }
        gateway = {}
        if kind is KnativeTarget:
            options["gateway_address"] = os.environ.get("ERLESS_TEST_GATEWAY")
            gateway["visibility"] = "public"
        if self._bucket and os.environ.get(KEYS[0]):
            options["credentials_secret"] = KEYS_SECRET
        self._document: dict[str, Any] = {"targets": {kind.name: options}, "gateway": gateway}
        self.target = kind(Config.model_validate(self._document))
        has_keda = self.target.api.get(CRD, None, KEDA_CRD) is not None
        self.scales_to_zero = kind is KnativeTarget or has_keda
        if "credentials_secret" in options:
            self._make_secret()

    def of_model(self, name: str) -> ClusterTarget:
        targets = {**self._document["targets"], "model": name}
        return type(self.target)(Config.model_validate(self._document | {"targets": targets}))

    def _make_secret(self) -> None:
        api = self.target.api
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self._namespace}}
        api.call("POST", NAMESPACE.path(), space)
        data = {
            key: base64.b64encode(os.environ[key].encode()).decode()
            for key in KEYS
            if key in os.environ
        }
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": KEYS_SECRET},
            "data": data,
        }
        api.call("POST", SECRET.path(self._namespace), secret)

    def desired(self, made: Made) -> Desired:
        if self._bucket:
            store = f"{self._bucket.rstrip('/')}/{self._namespace}"
            _copy_to_bucket(made.store, store, self._endpoint)
        else:
            store = str(self._folder / Path(made.store).parent.name)
            _copy_missing(Path(made.store), Path(store))
            _let_pods_read(self._folder)
        return load_desired(store, made.release.digest, self._endpoint)

    def leftovers(self) -> list[str]:
        api, found = self.target.api, []
        for kind in (*self.target.owned_kinds, LEASE, POD):
            found += [
                f"{kind.kind} {each['metadata']['name']}"
                for each in api.list(kind, self._namespace, OWNED)[0]
            ]
        space = api.get(NAMESPACE, None, self._namespace)
        if space is not None and "labels" in space["metadata"]:
            ours = space["metadata"]["labels"].get("app.kubernetes.io/managed-by") == "erless"
            found += [f"Namespace {self._namespace}"] if ours else []
        return found

    def end(self) -> None:
        for target in self.target.by_model() or (self.target,):
            target.destroy(Silent(), TIMEOUT_S)
        self.target.api.delete(NAMESPACE, None, self._namespace)
        shutil.rmtree(self._folder, ignore_errors=True)
        kind = self.target.function_kind
        assert self.target.api.list(kind, self._namespace, OWNED)[0] == []


def _copy_missing(source: Path, target: Path) -> None:
    """Add to a folder store what it lacks; what is there may be mapped by a function."""
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def _copy_to_bucket(folder: str, url: str, endpoint_url: str | None) -> None:
    """All of a folder store in a bucket, under the same names."""
    source, target = open_store(folder), open_store(url, endpoint_url=endpoint_url, create=True)
    there = {each.name for each in target.list("")}
    with target.staging() as stage:
        for each in source.list(""):
            if each.name in there or each.name == "store.json":
                continue
            path = Path(folder, each.name)
            if each.name.startswith("blobs/"):
                staged = stage / "blob"
                shutil.copyfile(path, staged)
                digest = Path(each.name).name.partition(".")[0]
                target.adopt(staged, Blob(each.name, each.size_bytes, digest), Ignore())
            else:
                target.replace(each.name, path.read_bytes())


def _let_pods_read(folder: Path) -> None:
    """The functions run as nobody in particular."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
