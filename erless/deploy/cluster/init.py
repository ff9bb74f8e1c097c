"""Make a cluster ready: apply Knative's manifests, wait until they serve, set what erless needs.

Every step is server-side apply, so a second run changes nothing, and a run that was stopped is
completed by the next. Manifests are taken over from whoever applied them before, but for the rules
of webhooks, which Knative's own controller writes once it runs; of Knative's
settings erless owns its own keys and leaves a key that somebody else set to another value alone,
unless `force` is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from erless.deploy.cluster.manifests import ManifestFile, Object, in_order
from erless.deploy.kubernetes.api import FIELD_MANAGER, Api, Missing
from erless.deploy.kubernetes.kinds import CRD, DEPLOYMENT, EVENT, POD, Kind
from erless.deploy.kubernetes.reasons import pod_problems
from erless.errors import ClusterError, DeployError
from erless.progress import Progress, Silent, Step

__all__ = ["Applied", "ClusterInit"]

MANIFESTS = "erless-cluster-init"  # field manager of what is not erless's own
APPLY = "application/apply-patch+yaml"
PAUSE_S = 1.0
Action = Literal["create", "update", "keep"]


@dataclass(frozen=True, slots=True)
class Applied:
    """One object: what was done with it, or under a dry run, what would be."""

    action: Action
    kind: str
    namespace: str | None
    name: str


@dataclass
class ClusterInit:
    """One run.

    Args:
        api: the cluster.
        sources: manifests to apply.
        settings: ConfigMaps of Knative of which erless sets some keys.
        access: the functions' namespace and who may deploy there.
        dry_run: ask the server, change nothing.
        force: take keys of `settings` from whoever set them to something else.
        timeout_s: longest wait for CRDs, and for deployments.
        progress: counts every object.
    """

    api: Api
    sources: Sequence[ManifestFile]
    settings: Sequence[Object]
    access: Sequence[Object]
    dry_run: bool = False
    force: bool = False
    timeout_s: float = 600.0
    progress: Progress = field(default_factory=Silent)
    _kinds: dict[tuple[str, str], Kind] = field(default_factory=dict)
    _planned: set[tuple[str, str]] = field(default_factory=set)

    def run(self) -> list[Applied]:
        """Apply everything, in order, and wait between the steps.

        Raises:
            ConflictError: somebody else set a key that erless needs to another value.
            DeployError: refused, or something did not become ready in time.
        """
        objects = in_order(self.sources)
        definitions = [document for document in objects if document["kind"] == CRD.kind]
        others = [document for document in objects if document["kind"] != CRD.kind]
        ours = [*self.settings, *self.access]
        self._planned = set(_promised(definitions))
        done: list[Applied] = []
        with self.progress.step("applying", len(objects) + len(ours), "steps") as step:
            done += self._apply_all(definitions, MANIFESTS, True, step)
            self._wait("definitions", lambda: self._pending_definitions(definitions))
            done += self._apply_all(others, MANIFESTS, True, step)
            self._wait("deployments", lambda: self._pending_deployments(others))
            done += self._apply_all(ours, FIELD_MANAGER, self.force, step)
        return done

    def _apply_all(
        self, documents: Iterable[Object], manager: str, force: bool, step: Step
    ) -> Iterator[Applied]:
        for document in documents:
            yield self._apply(document, manager, force)
            step.advance(1)

    def _apply(self, document: Object, manager: str, force: bool) -> Applied:
        """Server-side apply of one object, as far as a dry run can go."""
        meta = document["metadata"]
        kind = self._kind(document)
        space = meta.get("namespace", "default") if kind.namespaced else None
        live = self.api.get(kind, space, meta["name"])
        document = _with_rules(document, live or {})
        query = {"fieldManager": manager} | ({"force": "true"} if force else {})
        if self.dry_run:
            query["dryRun"] = "All"
        action: Action = "update" if live else "create"
        # under a dry run, neither new kinds nor new namespaces are there to try against
        if live or not self.dry_run:
            path = kind.path(space, meta["name"])
            try:
                after = self.api.call("PATCH", path, document, query=query, content_type=APPLY)
            except Missing as error:
                raise ClusterError(f"cannot apply {kind.kind} {meta['name']}: {error}") from error
            if live and _content(after) == _content(live):
                action = "keep"
        return Applied(action, kind.kind, space, meta["name"])

    def _kind(self, document: Object) -> Kind:
        """Where the server serves the kind of `document`, by the API's own listing."""
        version, name = document["apiVersion"], document["kind"]
        if (version, name) not in self._kinds:
            root = f"/apis/{version}" if "/" in version else f"/api/{version}"
            try:
                listed = self.api.call("GET", root).get("resources", [])
            except Missing:
                listed = []
            for resource in listed:
                if "/" not in resource["name"]:
                    kind = Kind(version, resource["kind"], resource["name"], resource["namespaced"])
                    self._kinds[version, resource["kind"]] = kind
        served = self._kinds.get((version, name))
        if served is None and self.dry_run and (version, name) in self._planned:
            return Kind(version, name, f"{name.lower()}s")
        if served is None:
            raise ClusterError(f"{version} {name}: the cluster knows no such kind")
        return served

    def _wait(self, label: str, pending: Callable[[], Iterable[str]]) -> None:
        """Wait until nothing is pending; a dry run has nothing to wait for.

        Raises:
            ClusterError: past the deadline; names what is still pending and why.
        """
        deadline = time.monotonic() + self.timeout_s
        while not self.dry_run and (waiting := list(pending())):
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{label} not ready after {self.timeout_s:g} s: {'; '.join(waiting[:5])}"
                    f"{self._causes()}"
                )
            time.sleep(PAUSE_S)

    def _causes(self) -> str:
        """What pods and events of Knative's namespaces say, newest last; empty where nothing."""
        spaces = {
            document["metadata"].get("namespace", "default")
            for source in self.sources
            for document in source.objects
            if document["kind"] == DEPLOYMENT.kind
        }
        causes: list[str] = []
        for space in sorted(spaces):
            with suppress(DeployError):
                pods, _ = self.api.list(POD, space)
                events, _ = self.api.list(EVENT, space)
                problems = pod_problems(pods, events)
                causes += [f"pod {problem.pod}: {problem.what}" for problem in problems]
                warnings = [event for event in events if event.get("type") == "Warning"]
                warnings.sort(key=lambda event: str(event.get("lastTimestamp") or ""))
                causes += [
                    f"{event.get('involvedObject', {}).get('name', '?')}: "
                    f"{event.get('reason', '?')}: {event.get('message', '')}"
                    for event in warnings[-3:]
                ]
        return "".join(f"\n{cause}" for cause in dict.fromkeys(causes))

    def _pending_definitions(self, definitions: Sequence[Object]) -> Iterator[str]:
        for document in definitions:
            definition = self.api.get(CRD, None, document["metadata"]["name"]) or {}
            state = _conditions(definition)
            if state.get("Established", {}).get("status") != "True":
                why = state.get("NamesAccepted", {}).get("message", "not established yet")
                yield f"{document['metadata']['name']} ({why})"

    def _pending_deployments(self, objects: Sequence[Object]) -> Iterator[str]:
        for document in objects:
            if document["kind"] != DEPLOYMENT.kind:
                continue
            meta = document["metadata"]
            deployment = (
                self.api.get(DEPLOYMENT, meta.get("namespace", "default"), meta["name"]) or {}
            )
            status = deployment.get("status", {})
            fresh = status.get("observedGeneration", 0) >= deployment.get("metadata", {}).get(
                "generation", 0
            )
            available = _conditions(deployment).get("Available", {})
            if not fresh or available.get("status") != "True":
                why = available.get("message") or "no condition yet"
                yield f"{meta.get('namespace', 'default')}/{meta['name']} ({why})"


def _with_rules(document: Object, live: Object) -> Object:
    """`document`, its webhooks with the rules that they have now."""
    if not document["kind"].endswith("WebhookConfiguration"):
        return document
    rules = {
        webhook["name"]: webhook["rules"]
        for webhook in live.get("webhooks", ())
        if "rules" in webhook
    }
    hooks = [
        webhook | ({"rules": rules[webhook["name"]]} if webhook["name"] in rules else {})
        for webhook in document.get("webhooks", ())
    ]
    return {**document, "webhooks": hooks}


def _promised(definitions: Sequence[Object]) -> Iterator[tuple[str, str]]:
    """Version and kind of everything that `definitions` will add."""
    for document in definitions:
        spec = document.get("spec", {})
        for version in spec.get("versions", ()):
            yield f"{spec.get('group')}/{version.get('name')}", spec.get("names", {}).get("kind")


def _conditions(document: Object) -> dict[str, Object]:
    return {state["type"]: state for state in document.get("status", {}).get("conditions", ())}


def _content(document: Object) -> Object:
    """An object without what the server counts and stamps by itself."""
    meta = {
        key: value
        for key, value in document.get("metadata", {}).items()
        if key not in ("managedFields", "resourceVersion", "generation")
    }
    return {**document, "metadata": meta, "status": None}
