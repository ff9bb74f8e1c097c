"""One deploy at a time of a model in a namespace: a Lease, renewed while its holder lives.

A holder that was killed stops renewing; the next one sees that within the lease's duration and
takes over. Times are compared on one clock only: how long the lease stayed unchanged here.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api, Missing
from erless.deploy.kubernetes.kinds import LEASE
from erless.errors import ConflictError, DeployError

__all__ = ["locked"]

DURATION_S, RENEW_S, POLL_S = 15, 4.0, 1.0


@contextmanager
def locked(api: Api, scope: names.Scope, duration_s: int = DURATION_S) -> Iterator[None]:
    """Hold the lock of a model in a namespace.

    Raises:
        ConflictError: another deploy holds it and is alive.
    """
    holder = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    _take(api, scope, holder, duration_s)
    stop = threading.Event()
    renewer = threading.Thread(
        target=_renew, args=(api, scope, holder, duration_s, stop), daemon=True
    )
    renewer.start()
    try:
        yield
    finally:
        stop.set()
        renewer.join(timeout=2 * RENEW_S)
        with suppress(DeployError, Missing):  # it runs out by itself
            live = api.get(LEASE, scope.namespace, scope.lock) or {}
            if live.get("spec", {}).get("holderIdentity") == holder:
                api.delete(LEASE, scope.namespace, scope.lock)


def _document(scope: names.Scope, holder: str, duration_s: int) -> dict[str, Any]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "apiVersion": LEASE.api,
        "kind": LEASE.kind,
        "metadata": {
            "name": scope.lock,
            "namespace": scope.namespace,
            "labels": {names.MANAGED: names.MANAGER} | scope.labels,
        },
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": duration_s,
            "renewTime": now,
        },
    }


def _take(api: Api, scope: names.Scope, holder: str, duration_s: int) -> None:
    """Create the lease, or replace one that nobody renews."""
    path = LEASE.path(scope.namespace)
    last_mark, since = None, time.monotonic()
    while True:
        live = api.get(LEASE, scope.namespace, scope.lock)
        body = _document(scope, holder, duration_s)
        spec = (live or {}).get("spec", {})
        mark = (spec.get("holderIdentity"), spec.get("renewTime"))
        if live is not None and last_mark is not None and mark != last_mark:
            raise ConflictError(f"{mark[0]} deploys to namespace {scope.namespace} just now")
        last_mark = mark
        try:
            if live is None:
                api.call("POST", path, body)
                return
            if time.monotonic() - since > spec.get("leaseDurationSeconds", duration_s):
                body["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
                api.call("PUT", f"{path}/{scope.lock}", body)
                return
        except ConflictError:
            message = f"another deploy to namespace {scope.namespace} began just now"
            raise ConflictError(message) from None
        except Missing:
            last_mark = None  # it went away in between
        time.sleep(POLL_S)


def _renew(
    api: Api, scope: names.Scope, holder: str, duration_s: int, stop: threading.Event
) -> None:
    while not stop.wait(min(RENEW_S, duration_s / 3)):
        spec = _document(scope, holder, duration_s)["spec"]
        with suppress(DeployError, Missing):
            api.merge(LEASE, scope.namespace, scope.lock, {"spec": spec})
