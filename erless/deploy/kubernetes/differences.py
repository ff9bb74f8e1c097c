"""One object's change: as it lives against what the server would make of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from erless.deploy.kubernetes import names
from erless.deploy.target import Change

__all__ = ["compared"]

Object = dict[str, Any]
_SERVERS = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")
# which release applied it last, by which version: true of every shared function, and no change
_NOTES = (names.RELEASE, "app.kubernetes.io/version", names.FUNCTION)
_SHOWN = 6  # fields per object; a changed image and scale are seen, a page of JSON is not


def compared(subject: str, live: Object, tried: Object) -> Change:
    """The change of `subject` from `live` to `tried`, which may be none."""
    fields = list(_differences(live, tried))
    if not fields:
        return Change("keep", subject)
    more = f"; {len(fields) - _SHOWN} more" if len(fields) > _SHOWN else ""
    return Change("update", subject, "; ".join(fields[:_SHOWN]) + more)


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Changed fields, as `path: old → new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            field = f"{path}.{key}".lstrip(".")
            if path == "metadata" and key in _SERVERS:
                continue
            if field != "status" and not field.endswith(_NOTES):
                yield from _differences(old.get(key), new.get(key), field)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (old_item, new_item) in enumerate(zip(old, new, strict=True)):
            yield from _differences(old_item, new_item, f"{path}[{index}]")
    elif old != new:
        yield f"{path}: {_short(old)} → {_short(new)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
