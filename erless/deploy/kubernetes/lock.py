"""One deploy, and one pod autoscaler, at a time of a model in a namespace: a Lease, kept renewed.

A holder that was killed stops renewing; the next one sees that within the lease's duration and
takes over. Times are compared on one clock only: how long the lease stayed unchanged here. A holder
that could not renew for so long, or finds another's name in the lease, has lost it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api, Missing
from erless.deploy.kubernetes.kinds import LEASE
from erless.errors import ConflictError, DeployError

__all__ = ["leading", "locked"]

DURATION_S, RENEW_S, POLL_S = 15, 4.0, 1.0


@contextmanager
def locked(api: Api, scope: names.Scope, duration_s: int = DURATION_S) -> Iterator[None]:
    """Hold the lock of a model in a namespace while it is deployed.

    Raises:
        ConflictError: another deploy holds it and is alive.
    """
    lease = _Lease(api, scope, scope.lock, duration_s)
    while not lease.take():
        if lease.moved:
            raise ConflictError(f"{lease.holder} deploys to namespace {scope.namespace} just now")
        time.sleep(POLL_S)
    with lease.renewed():
        yield


@contextmanager
def leading(
    api: Api, scope: names.Scope, duration_s: int = DURATION_S
) -> Iterator[Callable[[], bool]]:
    """Be the one that looks after a model's pods: waits while another is, and as long as it lives.

    Yields what says whether that still holds: True until the lease is lost.

    Raises:
        DeployError: the API server's reason why there is no lease to be had.
    """
    lease = _Lease(api, scope, scope.leadership, duration_s)
    while not lease.take():
        time.sleep(POLL_S)
    with lease.renewed():
        yield lambda: not lease.lost.is_set()


@dataclass
class _Lease:
    """A Lease that is taken when it is free, and renewed in a thread."""

    api: Api
    scope: names.Scope
    name: str
    duration_s: int

    def __post_init__(self) -> None:
        self._me = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
        self._seen: tuple[object, object] | None = None
        self._since = time.monotonic()  # when that was first seen
        self.moved = False  # another's lease was renewed, or made, while we looked
        self.lost = threading.Event()

    @property
    def holder(self) -> object:
        """Who had it when it was last looked at."""
        return self._seen[0] if self._seen else "another deploy"

    def take(self) -> bool:
        """Create the lease, or replace one that nobody renews; False where another has it."""
        live = self.api.get(LEASE, self.scope.namespace, self.name)
        spec = (live or {}).get("spec", {})
        seen = (spec.get("holderIdentity"), spec.get("renewTime"))
        if live is not None and seen != self._seen:
            self.moved = self._seen is not None
            self._seen, self._since = seen, time.monotonic()
        try:
            if live is None:
                self.api.call("POST", LEASE.path(self.scope.namespace), self._document())
                return True
            if time.monotonic() - self._since > spec.get("leaseDurationSeconds", self.duration_s):
                self._put(live)
                return True
        except ConflictError:
            self.moved = True
        except Missing:
            self._seen = None  # it went away in between
        return False

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew the lease while the block runs; remove it behind, where it is still ours."""
        stop = threading.Event()
        renewer = threading.Thread(target=self._renew, args=(stop,), daemon=True)
        renewer.start()
        try:
            yield
        finally:
            stop.set()
            renewer.join(timeout=2 * RENEW_S)
            with suppress(DeployError, Missing):  # it runs out by itself
                if self._ours(self.api.get(LEASE, self.scope.namespace, self.name)):
                    self.api.delete(LEASE, self.scope.namespace, self.name)

    def _renew(self, stop: threading.Event) -> None:
        renewed_s = time.monotonic()
        while not stop.wait(min(RENEW_S, self.duration_s / 3)):
            with suppress(DeployError, Missing):
                live = self.api.get(LEASE, self.scope.namespace, self.name)
                if live is None or not self._ours(live):
                    break
                self._put(live)
                renewed_s = time.monotonic()
            if time.monotonic() - renewed_s > self.duration_s:
                break
        else:
            return
        self.lost.set()

    def _ours(self, live: dict[str, Any] | None) -> bool:
        spec = (live or {}).get("spec", {})
        return bool(spec.get("holderIdentity") == self._me)

    def _put(self, live: dict[str, Any]) -> None:
        """Write our name and the time; refused where another wrote since `live` was read."""
        document = self._document()
        document["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
        path = LEASE.path(self.scope.namespace)
        self.api.call("PUT", f"{path}/{self.name}", document)

    def _document(self) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "apiVersion": LEASE.api,
            "kind": LEASE.kind,
            "metadata": {
                "name": self.name,
                "namespace": self.scope.namespace,
                "labels": {names.MANAGED: names.MANAGER} | self.scope.labels,
            },
            "spec": {
                "holderIdentity": self._me,
                "leaseDurationSeconds": self.duration_s,
                "renewTime": now,
            },
        }
