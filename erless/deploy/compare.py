"""What an apply would change: the live object against what the server would make of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from erless.deploy.kube.api import Api
from erless.deploy.kube.kinds import KSERVICE, REVISION, kind_of
from erless.deploy.pointer import called_services, pointed, read_pointer
from erless.deploy.render import Object, Rendered, names
from erless.deploy.target import Change
from erless.deploy.trial import Trial

__all__ = ["compare"]

_SERVERS = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")
_SHOWN = 6  # fields per object; a changed image and scale are seen, a page of JSON is not


def compare(api: Api, rendered: Rendered, namespace: str, trial: Trial) -> tuple[Change, ...]:
    """One change per object, and those that go away once no kept release needs them."""
    changes = []
    for each in rendered.objects:
        what = f"{each['kind']} {each['metadata']['name']}"
        live = api.get(kind_of(each), each["metadata"].get("namespace"), each["metadata"]["name"])
        if live is None:
            trial.apply(each)
            changes.append(Change("create", what))
            continue
        fields = list(_differences(live, _tried(trial, each, live)))
        if fields:
            more = f"; {len(fields) - _SHOWN} more" if len(fields) > _SHOWN else ""
            changes.append(Change("update", what, "; ".join(fields[:_SHOWN]) + more))
        else:
            changes.append(Change("keep", what))
    return (*changes, *_orphans(api, rendered, namespace))


def _tried(trial: Trial, document: Object, live: Object) -> Object:
    """What the server would make of it; the gateway's record is not a release's to change."""
    if document["metadata"]["name"] == names.GATEWAY and document["kind"] == KSERVICE.kind:
        pointer = read_pointer(live)
        lines = read_pointer(document).traffic
        document = pointed(document, lines, pointer.history, None)
        if _same_revision(document, live):
            document["spec"]["template"] = live["spec"]["template"]
    return trial.apply(document)


def _same_revision(one: Object, other: Object) -> bool:
    first, second = (each["spec"]["template"]["metadata"].get("name") for each in (one, other))
    return bool(first == second)


def _orphans(api: Api, rendered: Rendered, namespace: str) -> Iterator[Change]:
    """Functions that neither this release nor one to be kept calls."""
    found, _ = api.list(KSERVICE, namespace, names.OWNED)
    pointer = read_pointer(
        next((each for each in found if each["metadata"]["name"] == names.GATEWAY), None)
    )
    needed = {each["metadata"]["name"] for each in rendered.functions} | {names.GATEWAY}
    for kept in pointer.history:
        revision = api.get(REVISION, namespace, kept.revision)
        needed |= called_services(revision) if revision else set()
    for each in found:
        name = each["metadata"]["name"]
        if name not in needed:
            yield Change("remove", f"Service {name}", "no kept release calls it")


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Changed fields, as `path: old → new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            here = f"{path}.{key}".lstrip(".")
            if path == "metadata" and key in _SERVERS:
                continue
            if here != "status":
                yield from _differences(old.get(key), new.get(key), here)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differences(one, other, f"{path}[{index}]")
    elif old != new:
        yield f"{path}: {_short(old)} → {_short(new)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
