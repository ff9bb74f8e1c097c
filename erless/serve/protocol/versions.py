"""Versions of what a function serves beside the one that it was started with.

A version is known by its digest and asked for by its path, `/v2/models/M/versions/DIGEST`. The
first request for one opens it in the background; until it is there, whoever asks is told that it
loads, and asks again. Of those that are open, the ones that were opened last are kept.
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
    """

    def __init__(self, open_version: Callable[[str], Served], clock: Callable[[], float]) -> None:
        self._open, self._clock = open_version, clock
        self._served: OrderedDict[str, Served] = OrderedDict()
        self._opening: dict[str, Future[Served]] = {}
        self._failed: dict[str, tuple[float, str]] = {}
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
            self._opening[digest] = self._thread.submit(self._open, digest)
        if not self._opening[digest].done():
            raise VersionError(f"version {digest[:12]} is still loading", "loading")
        return self._adopt(digest, self._opening.pop(digest))

    def _adopt(self, digest: str, opened: Future[Served]) -> Served:
        try:
            served = opened.result()
        except ErlessError as error:
            while len(self._failed) >= KEPT_VERSIONS:
                del self._failed[next(iter(self._failed))]
            self._failed[digest] = (self._clock(), str(error))
            raise VersionError(f"version {digest[:12]}: {error}", "failed") from None
        self._served[digest] = served
        while len(self._served) > KEPT_VERSIONS:
            self._served.popitem(last=False)
        return served

    def close(self) -> None:
        """Open no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
