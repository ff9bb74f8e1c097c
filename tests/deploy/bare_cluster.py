"""A Kubernetes API on loopback for `erless cluster init`: discovery, server-side apply, conditions.

Objects are kept by path. An apply merges into what is there; a scalar that another field manager
set to another value is a conflict unless forced, as in Kubernetes. Definitions become established
and deployments available after a few looks, and a definition's kinds are served from then on.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Object = dict[str, Any]
Path_ = tuple[str, ...]

BUILT_IN: dict[str, dict[str, tuple[str, bool]]] = {
    "/api/v1": {
        "Namespace": ("namespaces", False),
        "ConfigMap": ("configmaps", True),
        "ServiceAccount": ("serviceaccounts", True),
        "Service": ("services", True),
    },
    "/apis/apps/v1": {"Deployment": ("deployments", True)},
    "/apis/apiextensions.k8s.io/v1": {
        "CustomResourceDefinition": ("customresourcedefinitions", False)
    },
    "/apis/rbac.authorization.k8s.io/v1": {
        "Role": ("roles", True),
        "RoleBinding": ("rolebindings", True),
        "ClusterRole": ("clusterroles", False),
        "ClusterRoleBinding": ("clusterrolebindings", False),
    },
    "/apis/admissionregistration.k8s.io/v1": {
        "ValidatingWebhookConfiguration": ("validatingwebhookconfigurations", False)
    },
}


def leaves(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path, value


class BareCluster:
    """The state. `looks`: how often something is looked at before it is ready; `never`: kinds."""

    def __init__(self) -> None:
        self.kinds = copy.deepcopy(BUILT_IN)
        self.objects: dict[str, Object] = {}
        self.owners: dict[str, dict[Path_, str]] = {}
        self.applied: list[str] = []
        self.looks = 2
        self.never: set[str] = set()
        self.listed: dict[str, list[Object]] = {}  # path of a collection → its objects
        self._looked: dict[str, int] = {}
        self._version = 0
        self.lock = threading.Lock()

    def get(self, path: str) -> tuple[int, Object]:
        if path in self.kinds:
            listed = [
                {"name": plural, "kind": kind, "namespaced": namespaced}
                for kind, (plural, namespaced) in self.kinds[path].items()
            ]
            return 200, {"resources": [*listed, {"name": "x/status", "kind": "X"}]}
        if path in self.listed:
            return 200, {"items": self.listed[path]}
        if path not in self.objects:
            return 404, {"message": f"{path} not found"}
        self._look(path)
        return 200, self.objects[path]

    def _look(self, path: str) -> None:
        """Let a definition or deployment make progress."""
        document = self.objects[path]
        self._looked[path] = self._looked.get(path, 0) + 1
        ready = self._looked[path] > self.looks and document["kind"] not in self.never
        if document["kind"] == "Deployment":
            state = {"type": "Available", "status": str(ready), "message": "0 of 1 pods ready"}
            document["status"] = {"conditions": [state], "observedGeneration": 1}
        if document["kind"] == "CustomResourceDefinition":
            state = {"type": "Established", "status": str(ready)}
            document["status"] = {"conditions": [state]}
            spec = document["spec"]
            if ready:
                entry = {spec["names"]["kind"]: (spec["names"]["plural"], True)}
                for version in spec["versions"]:
                    root = f"/apis/{spec['group']}/{version['name']}"
                    self.kinds.setdefault(root, {}).update(entry)

    def apply(self, path: str, sent: Object, query: dict[str, str]) -> tuple[int, Object]:
        namespace = sent["metadata"].get("namespace")
        if namespace and f"/api/v1/namespaces/{namespace}" not in self.objects:
            return 404, {"message": f'namespaces "{namespace}" not found'}
        manager, force = query["fieldManager"], query.get("force") == "true"
        before = self.objects.get(path, {})
        document, owners = copy.deepcopy(before), dict(self.owners.get(path, {}))
        causes = []
        for where, value in leaves(sent):
            place = document
            for key in where[:-1]:
                place = place.setdefault(key, {})
            owner = owners.get(where, manager)
            if owner != manager and place.get(where[-1]) != value and not force:
                causes.append({"field": ".".join(where), "message": f'conflict with "{owner}"'})
            place[where[-1]] = value
            owners[where] = manager
        if causes:
            return 409, {"message": "Apply failed with conflicts", "details": {"causes": causes}}
        if document != before:
            self._version += 1
            document["metadata"]["resourceVersion"] = str(self._version)
        if query.get("dryRun") != "All":
            self.objects[path], self.owners[path] = document, owners
            self.applied.append(path)
        return (200 if before else 201), document


class _Handler(BaseHTTPRequestHandler):
    cluster: BareCluster
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with self.cluster.lock:
            self._answer(*self.cluster.get(urlsplit(self.path).path))

    def do_PATCH(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        assert self.headers["Content-Type"] == "application/apply-patch+yaml"
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.cluster.lock:
            self._answer(*self.cluster.apply(parts.path, sent, query))

    def _answer(self, status: int, document: Object) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def serving(cluster: BareCluster, folder: Path) -> Iterator[Path]:
    """Serve `cluster`; yields a kubeconfig that leads there."""
    handler = type("Handler", (_Handler,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [
                    {
                        "name": "test",
                        "cluster": {"server": f"http://127.0.0.1:{server.server_port}"},
                    }
                ],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                "users": [{"name": "test", "user": {}}],
            }
        )
    )
    try:
        yield kubeconfig
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
