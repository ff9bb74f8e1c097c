"""A local copy of some objects, kept by list and watch, and waits on it.

List once, then watch from there. A watch that drops goes on where it was; a version that the
server has forgotten (410) means listing again. Nothing is missed either way: a wait looks at the
whole state, never at single events.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from erless.deploy.kubernetes.api import Api, Gone
from erless.deploy.kubernetes.kinds import Kind

__all__ = ["Deadline", "Mirror"]

Object = dict[str, Any]
WINDOW_S = 4  # the state is looked at again at least so often: pods are not watched


class Deadline:
    """A point in time that a wait may not pass."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """Seconds that are left; never negative."""
        return max(self._end - time.monotonic(), 0.0)


class Mirror:
    """Objects of one kind that match a selector, by name."""

    def __init__(self, api: Api, kind: Kind, namespace: str, selector: str) -> None:
        self._api, self._kind = api, kind
        self._namespace, self._selector = namespace, selector
        self._version = ""
        self.objects: dict[str, Object] = {}

    def refresh(self) -> None:
        """List all."""
        documents, self._version = self._api.list(self._kind, self._namespace, self._selector)
        self.objects = {document["metadata"]["name"]: document for document in documents}

    def wait(self, done: Callable[[dict[str, Object]], bool], deadline: Deadline) -> bool:
        """Wait until `done` is true of the objects; False where the deadline passes first.

        `done` may raise to give up early. It is called after every change and every few seconds.
        """
        self.refresh()
        while not done(self.objects):
            if deadline.left_s <= 0:
                return False
            self._follow(done, deadline)
        return True

    def _follow(self, done: Callable[[dict[str, Object]], bool], deadline: Deadline) -> None:
        """Watch once, until a change makes `done` true or the window ends."""
        window = max(1, min(WINDOW_S, math.ceil(deadline.left_s)))
        began = time.monotonic()
        try:
            for event, document in self._api.watch(
                self._kind, self._namespace, self._selector, self._version, window
            ):
                meta = document["metadata"]
                self._version = meta.get("resourceVersion", self._version)
                if event == "BOOKMARK":
                    continue
                if event == "DELETED":
                    self.objects.pop(meta["name"], None)
                else:
                    self.objects[meta["name"]] = document
                if done(self.objects) or deadline.left_s <= 0:
                    return
        except Gone:
            self.refresh()
        if time.monotonic() - began < 0.2:
            time.sleep(0.2)  # a watch that ends at once must not become a busy loop
