"""Where a function stands: what it serves, in which versions, and whether it is ready."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from erless.errors import ServeError
from erless.serve.protocol.fast_lane import secret_prefix
from erless.serve.protocol.served import Served
from erless.serve.protocol.versions import OpenVersions

__all__ = ["Standing"]

UP_FOR_S = 120.0  # answers carry the age of a function for so long


class Standing:
    """What is served, from loading to draining.

    Args:
        clock: the loop's time.
        behind_s: most that opening a version may take.
    """

    def __init__(self, clock: Callable[[], float], behind_s: float) -> None:
        self._clock, self._behind_s = clock, behind_s
        self.state: Literal["loading", "ready", "draining", "failed"] = "loading"
        self.served: Served | None = None
        self.version = ""
        self._reason = ""
        self._ready_at: float | None = None
        self._versions: OpenVersions | None = None
        self.at: dict[bytes, Served] = {}  # the paths of infer calls
        # Who has one, with a request's beginning; whose rows have moved has another at once.
        self.fast_paths: tuple[tuple[bytes, Served], ...] = ()

    def get_ready(self, served: Served) -> None:
        """Serve `served`: everything is loaded and verified."""
        self.served, self.state, self._ready_at = served, "ready", self._clock()
        self.version = served.digest[:12]
        if served.open_version is not None:
            self._versions = OpenVersions(served.open_version, self._clock, self._behind_s)
        self._know_paths(served)

    def _know_paths(self, base: Served) -> None:
        """Know the paths of what is served, and of all its open versions."""
        versions = self._versions.served if self._versions else ()
        everything = (*versions, base)
        self.at = {_infer_path(served.version_path): served for served in everything}
        self.at[_infer_path(f"{base.model}/versions/{self.version}")] = base
        self.fast_paths = tuple(
            (secret_prefix(served.version_path.encode()), served)
            for served in everything
            if served.fast_path is not None
        )

    def fail(self, reason: str) -> None:
        """Refuse all queries from now on, with `reason`."""
        self.state, self._reason = "failed", reason

    def begin_drain(self) -> None:
        """Answer probes of readiness with "draining" from now on."""
        self.state = "draining"

    def close(self) -> bool:
        """Let go of all versions; whether no thread is still opening one."""
        return self._versions is None or self._versions.close()

    def up_s(self, now: float) -> float | None:
        """For how long it has been ready; None: for so long that nobody asks, or not yet."""
        if self._ready_at is None:
            return None
        up = now - self._ready_at
        return up if up < UP_FOR_S else None

    def loaded(self) -> Served:
        """What is served. Raises ServeError where nothing is, or nothing any more."""
        if self.served is None:
            raise ServeError("not ready: still loading", 503, "overload")
        if self.state == "failed":
            raise ServeError(self._reason, 503, "rows")
        return self.served

    def open_version(self, base: Served, digest: str) -> Served:
        """The version with `digest`. Raises ServeError where there is none, or not yet."""
        if self._versions is None or not self._versions.is_digest(digest):
            raise ServeError(f"there is no such version: this serves {self.version}", 404, "query")
        known = self._versions.served
        served = self._versions.get(digest)
        if self._versions.served != known:
            self._know_paths(base)
        return served

    @property
    def behind(self) -> str:
        """Why another function has to take the place of this one, which goes on answering."""
        return self._versions.behind if self._versions else ""

    @property
    def not_ready(self) -> str:
        """Why it is not ready; "" where it is."""
        if self.state == "ready" and not self.behind:
            return ""
        return self._reason or self.behind or self.state


def _infer_path(version_path: str) -> bytes:
    return f"/v2/models/{version_path}/infer".encode()
