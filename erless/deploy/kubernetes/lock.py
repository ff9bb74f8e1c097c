"""One deploy at a time per namespace: a Lease, renewed while its holder lives.

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

__all__ = ["LOCK", "locked"]

LOCK = "erless-deploy"
DURATION_S, RENEW_S, POLL_S = 15, 4.0, 1.0


@contextmanager
def locked(api: Api, namespace: str, duration_s: int = DURATION_S) -> Iterator[None]:
    """Hold the namespace's lock.

    Raises:
        ConflictError: another deploy holds it and is alive.
    """
    holder = f"{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}"
    _take(api, namespace, holder, duration_s)
    stop = threading.Event()
    renewer = threading.Thread(
        target=_renew, args=(api, namespace, holder, duration_s, stop), daemon=True
    )
    renewer.start()
    try:
        yield
    finally:
        stop.set()
        renewer.join(timeout=2 * RENEW_S)
        with suppress(DeployError, Missing):  # it runs out by itself
            if (api.get(LEASE, namespace, LOCK) or {}).get("spec", {}).get(
                "holderIdentity"
            ) == holder:
                api.delete(LEASE, namespace, LOCK)


def _document(namespace: str, holder: str, duration_s: int) -> dict[str, Any]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "apiVersion": LEASE.api,
        "kind": LEASE.kind,
        "metadata": {
            "name": LOCK,
            "namespace": namespace,
            "labels": {names.MANAGED: names.MANAGER},
        },
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": duration_s,
            "renewTime": now,
        },
    }


def _take(api: Api, namespace: str, holder: str, duration_s: int) -> None:
    """Create the lease, or replace one that nobody renews."""
    path = LEASE.path(namespace)
    last_mark, since = None, time.monotonic()
    while True:
        live = api.get(LEASE, namespace, LOCK)
        body = _document(namespace, holder, duration_s)
        spec = (live or {}).get("spec", {})
        mark = (spec.get("holderIdentity"), spec.get("renewTime"))
        if live is not None and last_mark is not None and mark != last_mark:
            raise ConflictError(f"{mark[0]} deploys to namespace {namespace} just now")
        last_mark = mark
        try:
            if live is None:
                api.call("POST", path, body)
                return
            if time.monotonic() - since > spec.get("leaseDurationSeconds", duration_s):
                body["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"]
                api.call("PUT", f"{path}/{LOCK}", body)
                return
        except ConflictError:
            raise ConflictError(f"another deploy to namespace {namespace} began just now") from None
        except Missing:
            last_mark = None  # it went away in between
        time.sleep(POLL_S)


def _renew(api: Api, namespace: str, holder: str, duration_s: int, stop: threading.Event) -> None:
    while not stop.wait(min(RENEW_S, duration_s / 3)):
        spec = _document(namespace, holder, duration_s)["spec"]
        with suppress(DeployError, Missing):
            api.merge(LEASE, namespace, LOCK, {"spec": spec})
