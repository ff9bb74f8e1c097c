"""An HTTP server that speaks the Kubernetes API, as far as erless uses it, and plays Knative.

Server-side apply with field ownership and conflicts, merge patches, lists with selectors, watches
that stream, drop and expire, and 429 with Retry-After. Behind it a small controller does what
Knative does with a Service: revision, autoscaler, pods, conditions, traffic. What it does was
compared with a real cluster, which `tests/conformance` runs against where one is given.
"""

from __future__ import annotations

import copy
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]
Key = tuple[str, str, str]  # plural.group, namespace, name
MIN_SCALE = "autoscaling.knative.dev/min-scale"
SERVICES, REVISIONS = "services.serving.knative.dev", "revisions.serving.knative.dev"
SCALERS, PODS = "podautoscalers.autoscaling.internal.knative.dev", "pods"
DEPLOYMENTS = "deployments.apps"


class Refused(Exception):  # noqa: N818
    def __init__(self, code: int, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code, self.details = code, details


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths of all values; a list is one value, as in Knative's own types."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path, value


def put(document: Object, path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        document = document.setdefault(key, {})
    document[path[-1]] = copy.deepcopy(value)


def take(document: Object, path: tuple[str, ...]) -> Any:
    place: Any = document
    for key in path:
        if not isinstance(place, dict) or key not in place:
            return None
        place = place[key]
    return place


def drop(document: Object, path: tuple[str, ...]) -> None:
    place = take(document, path[:-1])
    if isinstance(place, dict):
        place.pop(path[-1], None)


def condition(kind: str, status: str, **more: str) -> Object:
    return {"type": kind, "status": status, **more}


class FakeCluster:
    """The state, the controller, and switches for what may go wrong.

    ready_after_s: from apply to ready. pod_trouble: Service → container status of a pod that never
    runs. stale_pods: pods outlive their revision, as on a real cluster for a while. before: asked
    first for every request, may raise `Refused`. watch_limit: a watch is cut off after so many
    events.
    """

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        self.owners: dict[Key, dict[str, set[tuple[str, ...]]]] = {}
        self.log: list[tuple[int, str, Key, Object]] = []
        self.version = 100
        self.forgotten = 0  # versions before this one are answered by 410
        self.ready_after_s = 0.05
        self.pod_trouble: dict[str, Object] = {}
        self.stale_pods = False
        self.domain = "example.com"
        self.watch_limit = 1_000_000
        self.resources: dict[str, list[str]] = {}  # of a group's version: /apis/GROUP/VERSION
        self.denied: set[tuple[str, str]] = set()
        self.resizes = True
        self.fits: Callable[[str], str] = lambda cpu: ""  # else why not: Deferred, Infeasible
        self.requests_total: dict[str, float] = {}  # by pod, as its metrics say
        self.gathers_total: dict[str, float] = {}
        self.throttling: dict[str, float] = {}  # more of every pod's metrics
        self.logs: dict[str, str] = {}  # pod → what it said
        self.watches = self.lists = 0
        self.requests: list[tuple[str, str]] = []
        self.before: Callable[[str, str, Object], None] = lambda *_: None
        self.changed = threading.Condition(threading.RLock())
        cluster = self

        class Handler(_Handler):
            pass

        Handler.cluster = cluster
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        for name in ("default", "knative-serving"):
            self.store(("namespaces", "", name), {"metadata": {"name": name}})
        crd = ("customresourcedefinitions.apiextensions.k8s.io", "", "services.serving.knative.dev")
        self.store(crd, {"metadata": {"name": crd[2]}})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def kubeconfig(self, folder: Path, server: str = "", **more: str) -> Path:
        """A kubeconfig in `folder` that leads here, or to `server`; `more`: of its cluster."""
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": server or self.url} | more}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me"}}],
        }
        path = folder / "kubeconfig"
        path.write_text(json.dumps(document))
        return path

    def encrypt(self, context: ssl.SSLContext) -> None:
        """Speak TLS from now on."""
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    # --- storage

    def store(self, key: Key, document: Object, event: str = "") -> Object:
        with self.changed:
            self.version += 1
            event = event or ("MODIFIED" if key in self.objects else "ADDED")
            document["metadata"]["resourceVersion"] = str(self.version)
            document["metadata"].setdefault("uid", f"uid-{key[2]}")
            self.objects[key] = document
            self.log.append((self.version, event, key, copy.deepcopy(document)))
            self.changed.notify_all()
            return document

    def remove(self, key: Key) -> None:
        with self.changed:
            document = self.objects.pop(key, None)
            self.owners.pop(key, None)
            if document is None:
                return
            self.version += 1
            document["metadata"]["resourceVersion"] = str(self.version)
            self.log.append((self.version, "DELETED", key, document))
            name = key[2]
            for other in [*self.objects]:
                if other not in self.objects:
                    continue  # it went with another
                owner = self.objects[other]["metadata"].get("ownerReferences", [{}])[0]
                if self.stale_pods and other[0] == PODS:
                    continue
                if owner.get("uid") == f"uid-{name}" and owner.get("of") == key[0]:
                    self.remove(other)
            if key[0] == REVISIONS:
                self._made_again(key[1], document)
            if key[0] == "namespaces":
                for other in [key for key in self.objects if key[1] == name]:
                    self.remove(other)
            self.changed.notify_all()

    def find(self, plural: str, namespace: str = "") -> list[Object]:
        with self.changed:
            return [
                copy.deepcopy(document)
                for key, document in sorted(self.objects.items())
                if key[0] == plural and (not namespace or key[1] == namespace)
            ]

    def get(self, plural: str, namespace: str, name: str) -> Object:
        return self.objects[(plural, namespace, name)]

    # --- server-side apply

    def apply(self, key: Key, document: Object, manager: str, dry_run: bool, force: bool) -> Object:
        with self.changed:
            if key[1] and ("namespaces", "", key[1]) not in self.objects:
                raise Refused(404, f'namespaces "{key[1]}" not found')
            live = copy.deepcopy(self.objects.get(key)) or {"metadata": {"name": key[2]}}
            owned = copy.deepcopy(self.owners.get(key, {}))
            wanted = {
                path: value
                for path, value in leaves(document)
                if path not in (("metadata", "name"), ("metadata", "namespace"))
            }
            clashes = [
                (path, other)
                for path, value in wanted.items()
                for other in owned
                if other != manager and path in owned[other] and take(live, path) != value
            ]
            if clashes and not force:
                causes = [
                    {
                        "reason": "FieldManagerConflict",
                        "field": "." + ".".join(path),
                        "message": f'conflict with "{other}" using v1',
                    }
                    for path, other in clashes
                ]
                raise Refused(409, "Apply failed with conflicts", details={"causes": causes})
            for path in owned.get(manager, set()) - set(wanted):
                if not any(path in owned[other] for other in owned if other != manager):
                    drop(live, path)
            before = copy.deepcopy(self.objects.get(key))
            for path, value in wanted.items():
                put(live, path, value)
            live["metadata"].update(name=key[2], **({"namespace": key[1]} if key[1] else {}))
            owned[manager] = set(wanted)
            if before is None or before.get("spec") != live.get("spec"):
                live["metadata"]["generation"] = live["metadata"].get("generation", 0) + 1
            if dry_run:
                return live
            self.owners[key] = owned
            if live == before:
                return live
            self.store(key, live)
            if key[0] == SERVICES:
                self._reconcile(key)
            if key[0] == DEPLOYMENTS:
                self._roll_out(key)
            return self.objects[key]

    def merge(self, key: Key, patch: Object) -> Object:
        with self.changed:
            live = copy.deepcopy(self.objects[key])
            for path, value in leaves(patch):
                put(live, path, value)
            self.store(key, live)
            if key[0] == REVISIONS and MIN_SCALE in live["metadata"].get("annotations", {}):
                self._scale(key[1], key[2], live["metadata"]["annotations"][MIN_SCALE])
            if key[0] == DEPLOYMENTS:
                live["metadata"]["generation"] += 1
                self._roll_out(key)
            return live

    # --- the part of Kubernetes' own controllers

    def _roll_out(self, key: Key) -> None:
        """A Deployment's pods are there at once, and ready after a while."""
        live = copy.deepcopy(self.objects[key])
        replicas = live["spec"].setdefault("replicas", 1)
        counts = {"replicas": replicas, "updatedReplicas": replicas, "availableReplicas": 0}
        live["status"] = {"observedGeneration": live["metadata"]["generation"], **counts}
        self.store(key, live)
        for pod in self.find(PODS, key[1]):
            if pod["metadata"].get("ownerReferences", [{}])[0].get("uid") == f"uid-{key[2]}":
                self.remove((PODS, key[1], pod["metadata"]["name"]))
        trouble = self.pod_trouble.get(key[2])
        ready = {"conditions": [condition("Ready", "True")]}
        for number in range(replicas):
            name = f"{key[2]}-{self.version}-{number}"
            meta = {
                "name": name,
                "namespace": key[1],
                "labels": live["spec"]["template"]["metadata"]["labels"],
                "ownerReferences": [{"uid": f"uid-{key[2]}", "of": DEPLOYMENTS}],
            }
            self.store((PODS, key[1], name), {"metadata": meta, "status": trouble or ready})
        threading.Timer(self.ready_after_s, self._available, (key,)).start()

    def replace_pod(self, pod: Object) -> None:
        """What a Deployment does when a pod of its own is deleted."""
        owner = pod["metadata"].get("ownerReferences", [{}])[0]
        key = (DEPLOYMENTS, pod["metadata"].get("namespace", ""), owner.get("uid", "")[4:])
        if owner.get("of") == DEPLOYMENTS and key in self.objects:
            self._roll_out(key)

    def _available(self, key: Key) -> None:
        with self.changed:
            if key in self.objects and key[2] not in self.pod_trouble:
                live = copy.deepcopy(self.objects[key])
                live["status"]["availableReplicas"] = live["spec"]["replicas"]
                self.store(key, live)

    def resize(self, key: Key, patch: Object) -> Object:
        """What a kubelet does with a pod's new size: give it, let it wait, or never give it."""
        with self.changed:
            if not self.resizes or key not in self.objects:
                raise Refused(404, "the server could not find the requested resource")
            pod = copy.deepcopy(self.objects[key])
            (change,) = patch["spec"]["containers"]
            (container,) = [
                each for each in pod["spec"]["containers"] if each["name"] == change["name"]
            ]
            for side, values in change["resources"].items():
                container["resources"][side] |= values
            status = pod["status"]
            status["conditions"] = [
                each for each in status["conditions"] if each["type"] != "PodResizePending"
            ]
            verdict = self.fits(container["resources"]["limits"]["cpu"])
            if verdict:
                pending = condition("PodResizePending", "True", reason=verdict, message="no room")
                status["conditions"].append(pending)
            else:
                given = {"name": change["name"], "resources": copy.deepcopy(container["resources"])}
                status["containerStatuses"] = [given]
            return self.store(key, pod)

    # --- Knative's part

    def _scale(self, namespace: str, revision: str, low: str) -> None:
        """An idle revision has as many replicas as its min-scale says."""
        scaler = copy.deepcopy(self.objects[(SCALERS, namespace, revision)])
        scaler["metadata"]["annotations"][MIN_SCALE] = low
        scaler["status"] = {"actualScale": int(low), "desiredScale": int(low)}
        self.store((SCALERS, namespace, revision), scaler)

    def idle(self, namespace: str) -> None:
        """Time passes without a query: every revision goes to its min-scale."""
        for scaler in self.find(SCALERS, namespace):
            name = scaler["metadata"]["name"]
            self._scale(namespace, name, scaler["metadata"]["annotations"].get(MIN_SCALE, "0"))

    def _reconcile(self, key: Key) -> None:
        service = self.objects[key]
        template, meta = service["spec"]["template"], service["metadata"]
        name = template["metadata"].get("name") or f"{key[2]}-{meta['generation']:05d}"
        status = service.get("status", {})
        newest = status.get("latestCreatedRevisionName")
        same = (
            newest
            and not template["metadata"].get("name")
            and (REVISIONS, key[1], newest) in self.objects
            and self.get(REVISIONS, key[1], newest)["template"] == template
        )
        name = newest if same else name
        if (REVISIONS, key[1], name) not in self.objects:
            self._revision(key, name, template)
        self._report(key, name, settled=False)
        threading.Timer(self.ready_after_s, self._settle, (key, name)).start()

    def _made_again(self, namespace: str, revision: Object) -> None:
        """The newest revision of a Service that lives on is made again under its name."""
        name = revision["metadata"]["name"]
        key = (SERVICES, namespace, revision["metadata"]["labels"]["serving.knative.dev/service"])
        live = self.objects.get(key, {}).get("status", {})
        if live.get("latestCreatedRevisionName") == name:
            self._revision(key, name, self.objects[key]["spec"]["template"])
            self._report(key, name, settled=False)
            threading.Timer(self.ready_after_s, self._settle, (key, name)).start()

    def _revision(self, key: Key, name: str, template: Object) -> None:
        labels = {**template["metadata"].get("labels", {}), "serving.knative.dev/service": key[2]}
        notes = dict(template["metadata"].get("annotations", {}))
        owner = [{"uid": f"uid-{key[2]}", "of": key[0]}]
        meta = {"name": name, "namespace": key[1], "labels": labels, "annotations": notes}
        self.store(
            (REVISIONS, key[1], name),
            {
                "metadata": {**meta, "ownerReferences": owner},
                "spec": template["spec"],
                "template": copy.deepcopy(template),
                "status": {"conditions": []},
            },
        )
        low = int(notes.get(MIN_SCALE, "0"))
        scale = max(low, int(notes.get("autoscaling.knative.dev/initial-scale", "1")))
        owner = [{"uid": f"uid-{name}", "of": REVISIONS}]
        trouble = self.pod_trouble.get(key[2])
        self.store(
            (SCALERS, key[1], name),
            {
                "metadata": {**copy.deepcopy(meta), "ownerReferences": owner},
                "status": {} if trouble else {"actualScale": scale, "desiredScale": scale},
            },
        )
        if trouble:
            pod = f"{name}-deployment-{self.version}"
            labels = {**labels, "serving.knative.dev/revision": name}
            self.store(
                (PODS, key[1], pod),
                {
                    "metadata": {
                        "name": pod,
                        "namespace": key[1],
                        "labels": labels,
                        "ownerReferences": owner,
                    },
                    "status": trouble,
                },
            )

    def _settle(self, key: Key, name: str) -> None:
        with self.changed:
            if key not in self.objects or (REVISIONS, key[1], name) not in self.objects:
                return
            revision = copy.deepcopy(self.get(REVISIONS, key[1], name))
            good = key[2] not in self.pod_trouble
            revision["status"]["conditions"] = [condition("Ready", "True" if good else "False")]
            self.store((REVISIONS, key[1], name), revision)
            self._report(key, name, settled=True)

    def _report(self, key: Key, name: str, *, settled: bool) -> None:
        service = copy.deepcopy(self.objects[key])
        status = service.setdefault("status", {})
        status["latestCreatedRevisionName"] = name
        good = settled and key[2] not in self.pod_trouble
        word = "True" if good else "False" if settled else "Unknown"
        if good:
            status["latestReadyRevisionName"] = name
        lines = service["spec"]["traffic"]
        ready = {
            revision["metadata"]["name"]
            for revision in self.find(REVISIONS, key[1])
            if revision["status"]["conditions"] == [condition("Ready", "True")]
        }
        targets = [line.get("revisionName") or name for line in lines]
        if settled and all(target in ready for target in targets):
            status["traffic"] = [
                {**line, "revisionName": target}
                for line, target in zip(lines, targets, strict=True)
            ]
            status["observedGeneration"] = service["metadata"]["generation"]
            routes = "True"
        else:
            routes = word
        status["url"] = f"http://{key[2]}.{key[1]}.{self.domain}"
        status["conditions"] = [condition("Ready", word), condition("RoutesReady", routes)]
        if settled:
            status["observedGeneration"] = service["metadata"]["generation"]
        self.store(key, service)


class _Handler(BaseHTTPRequestHandler):
    cluster: FakeCluster
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = 1 << 16, True

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, code: int, document: Object, **headers: str) -> None:
        data = json.dumps(document).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _say(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def _serve(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else {}
        self.cluster.requests.append((self.command, self.path))
        try:
            self.cluster.before(self.command, url.path, body)
            self._route(url.path, query, body)
        except Refused as error:
            more = error.details
            headers = {"Retry_After": str(more["retry_after"])} if "retry_after" in more else {}
            self._answer(
                error.code,
                {"message": str(error), "code": error.code, "details": more.get("details", {})},
                **headers,
            )
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def handle(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError, ValueError):
            super().handle()  # the client went away, or we cut the watch off

    def finish(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError, ValueError):
            super().finish()

    do_GET = do_PATCH = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _route(self, path: str, query: dict[str, str], body: Object) -> None:
        cluster = self.cluster
        if path == "/version":
            return self._answer(200, {"gitVersion": "v1.33.0"})
        if path == "/api/v1":
            names = ("pods", "pods/resize") if cluster.resizes else ("pods",)
            return self._answer(200, {"resources": [{"name": name} for name in names]})
        if path.endswith("/proxy/metrics"):
            return self._metrics(path)
        if path.startswith("/apis/") and path.count("/") == 3:
            if path not in cluster.resources:
                raise Refused(404, f"{path}: no such API")
            return self._answer(200, {"resources": [{"name": n} for n in cluster.resources[path]]})
        key, collection = self._key(path)
        verb = {"PATCH": "patch", "POST": "create", "DELETE": "delete", "PUT": "update"}
        doing = verb.get(self.command, "list" if collection else "get")
        plural = key[0].partition(".")[0]
        if (doing, plural) in cluster.denied:
            raise Refused(403, f'user "me" cannot {doing} resource "{plural}"')
        if self.command == "GET" and collection:
            if query.get("watch"):
                return self._watch(key, query)
            return self._list(key, query)
        if path.endswith("/selfsubjectaccessreviews"):
            attributes = body["spec"]["resourceAttributes"]
            allowed = (attributes["verb"], attributes["resource"]) not in cluster.denied
            return self._answer(201, {"status": {"allowed": allowed}})
        if path.endswith("/eviction"):
            cluster.remove(key)
            return self._answer(201, {"kind": "Status"})
        if path.endswith("/resize"):
            return self._answer(200, cluster.resize(key, body))
        if self.command == "POST":
            meta = body["metadata"]
            meta.setdefault("name", f"{meta.get('generateName', '')}{cluster.version}")
            key = (key[0], key[1], meta["name"])
            if key in cluster.objects:
                raise Refused(409, "already exists")
            return self._answer(201, cluster.store(key, body))
        if self.command == "PATCH" and "apply" in self.headers["Content-Type"]:
            done = cluster.apply(key, body, query["fieldManager"], "dryRun" in query, False)
            return self._answer(200, done)
        if path.endswith("/log"):
            return self._say(cluster.logs.get(key[2], ""))
        with cluster.changed:
            if key not in cluster.objects:
                raise Refused(404, f"{key[0]} {key[2]!r} not found")
            live = cluster.objects[key]
            if self.command == "PUT":
                if body["metadata"]["resourceVersion"] != live["metadata"]["resourceVersion"]:
                    raise Refused(409, "the object has been modified")
                return self._answer(200, cluster.store(key, body))
            if self.command == "PATCH":
                return self._answer(200, cluster.merge(key, body))
            if self.command == "DELETE":
                cluster.remove(key)
                cluster.replace_pod(live)
                return self._answer(200, {"kind": "Status"})
            return self._answer(200, live)

    def _metrics(self, path: str) -> None:
        """The text that a pod of ours answers with."""
        pod = path.rsplit("/", 3)[1].partition(":")[0]
        counted = {
            "requests_total": self.cluster.requests_total.get(pod),
            "gathers_total": self.cluster.gathers_total.get(pod),
        }
        lines = {name: value for name, value in counted.items() if value is not None}
        if not lines:
            raise Refused(503, "no endpoints available")
        lines |= self.cluster.throttling
        text = "".join(f"erless_{name} {value}\n" for name, value in lines.items()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _key(self, path: str) -> tuple[Key, bool]:
        parts = path.strip("/").split("/")
        group = "" if parts[0] == "api" else parts[1]
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        plural = f"{rest[0]}.{group}" if group else rest[0]
        return (plural, namespace, rest[1] if len(rest) > 1 else ""), len(rest) == 1

    @staticmethod
    def _matches(document: Object, query: dict[str, str]) -> bool:
        labels = document["metadata"].get("labels", {})
        terms = [term for term in query.get("labelSelector", "").split(",") if term]
        absent = [term[1:] for term in terms if term.startswith("!")]
        pairs = [term.split("=") for term in terms if not term.startswith("!")]
        return not labels.keys() & set(absent) and all(
            labels.get(name) == value for name, value in pairs
        )

    def _list(self, key: Key, query: dict[str, str]) -> None:
        cluster = self.cluster
        cluster.lists += 1
        with cluster.changed:
            found = [each for each in cluster.find(key[0], key[1]) if self._matches(each, query)]
            meta = {"resourceVersion": str(cluster.version)}
        self._answer(200, {"metadata": meta, "items": found})

    def _watch(self, key: Key, query: dict[str, str]) -> None:
        cluster = self.cluster
        with cluster.changed:
            cluster.watches += 1
            cluster.changed.notify_all()
        seen = int(query["resourceVersion"] or 0)
        if seen < cluster.forgotten:
            raise Refused(410, "too old resource version")
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        end, sent = time.monotonic() + int(query["timeoutSeconds"]), 0
        while time.monotonic() < end:
            with cluster.changed:
                news = [entry for entry in cluster.log if entry[0] > seen]
                if not news:
                    cluster.changed.wait(0.05)
                    continue
            for version, event, (plural, namespace, _), document in news:
                seen = version
                if plural != key[0] or namespace != key[1] or not self._matches(document, query):
                    continue
                line = json.dumps({"type": event, "object": document}).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                self.wfile.flush()
                sent += 1
                if sent >= cluster.watch_limit:
                    self.close_connection = True  # cut off in the middle of the stream
                    self.connection.close()
                    return
        self.wfile.write(b"0\r\n\r\n")
