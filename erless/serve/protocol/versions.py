"""Versions of what a function serves beside the one that it was started with.

A version is known by its digest and asked for by its path, `/v2/models/M/versions/DIGEST`. The
first request for one opens it in the background; until it is there, whoever asks is told that it
loads, and asks again. Of those that are open, the ones that were opened last are kept.

A function that does not get one open in a given time, or fails in a way that nobody foresaw, is
`behind`: it goes on answering with what it has, and is no longer ready or live, so that another
takes its place. A version that is damaged, or a store that refuses, is no reason: whoever took its
place would meet the same.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

from erless.errors import ErlessError, ServeError
from erless.serve.protocol.served import Served

__all__ = ["KEPT_VERSIONS", "OpenVersions", "VersionError"]

KEPT_VERSIONS = 4
LEAVE_S = 60.0  # a version that is not kept may still have queries for so long
AGAIN_S = 2.0  # a version that could not be opened is tried again after so long
_DIGEST = re.compile(r"[0-9a-f]{64}")


class VersionError(ServeError):
    """A version is not there, or not yet; `state` says which, in the words of readiness."""

    def __init__(self, message: str, state: Literal["loading", "failed"]) -> None:
        super().__init__(message, 503, "version")
        self.state = state


class OpenVersions:
    """The versions of one function that are open, or being opened. For the event loop's thread.

    Args:
        open_version: opens the version with a digest, in a thread of ours.
        clock: seconds, monotonic.
        behind_s: most that opening a version may take.
    """

    def __init__(
        self,
        open_version: Callable[[str], Served],
        clock: Callable[[], float],
        behind_s: float,
    ) -> None:
        self._open, self._clock, self._behind_s = open_version, clock, behind_s
        self.behind = ""  # why another function has to take the place of this one
        self._served: OrderedDict[str, Served] = OrderedDict()
        self._opening: dict[str, tuple[float, Future[Served]]] = {}  # since when
        self._failed: dict[str, tuple[float, str]] = {}
        self._leaving: list[tuple[float, Served]] = []  # since when; a query may still be under way
        self._thread = ThreadPoolExecutor(1, "versions")

    @staticmethod
    def is_digest(text: str) -> bool:
        """Whether `text` may name a version."""
        return _DIGEST.fullmatch(text) is not None

    @property
    def served(self) -> tuple[Served, ...]:
        """Those that are open, the one that was opened last first."""
        return tuple(reversed(self._served.values()))

    def get(self, digest: str) -> Served:
        """The version with `digest`.

        Raises:
            VersionError: it is being opened, or could not be.
        """
        if digest in self._served:
            return self._served[digest]
        tried_s, reason = self._failed.get(digest, (0.0, ""))
        if reason and self._clock() - tried_s < AGAIN_S:
            raise VersionError(f"version {digest[:12]}: {reason}", "failed")
        if digest not in self._opening:
            self._failed.pop(digest, None)
            self._opening[digest] = (self._clock(), self._thread.submit(self._open, digest))
        began, opening = self._opening[digest]
        if not opening.done():
            took = self._clock() - began
            if took > self._behind_s:
                self.behind = f"version {digest[:12]} is not open after {took:.0f} s"
            raise VersionError(f"version {digest[:12]} is still loading", "loading")
        del self._opening[digest]
        return self._adopt(digest, opening)

    def _adopt(self, digest: str, opened: Future[Served]) -> Served:
        try:
            served = opened.result()
        except Exception as error:
            reason = str(error)
            if not isinstance(error, ErlessError):
                reason = f"{type(error).__name__}: {error}"
                self.behind = f"version {digest[:12]} cannot be opened: {reason}"
            while len(self._failed) >= KEPT_VERSIONS:
                del self._failed[next(iter(self._failed))]
            self._failed[digest] = (self._clock(), reason)
            raise VersionError(f"version {digest[:12]}: {reason}", "failed") from None
        self._served[digest] = served
        now = self._clock()
        while len(self._served) > KEPT_VERSIONS:
            self._leaving.append((now, self._served.popitem(last=False)[1]))
        while self._leaving and now - self._leaving[0][0] > LEAVE_S:
            self._leaving.pop(0)[1].close()
        return served

    def close(self) -> bool:
        """Open no more, and let go of all that is open; whether no thread is left at it."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        for served in (*self._served.values(), *(served for _, served in self._leaving)):
            served.close()
        return all(opening.done() for _, opening in self._opening.values())
