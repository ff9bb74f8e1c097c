"""Logs of functions: the last lines of every pod, then what comes, as one stream."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

from erless.deploy.kube.api import Api, Missing
from erless.deploy.kube.kinds import POD
from erless.deploy.ready import SERVICE_LABEL
from erless.deploy.render import names
from erless.errors import DeployError

__all__ = ["pod_logs"]

CONTAINER = "user-container"
LOOK_S = 3.0  # new pods are found this often while following
LOG_TIMEOUT_S = 30.0


def pod_logs(
    api: Api, namespace: str, services: set[str] | None, lines: int, follow: bool
) -> Iterator[str]:
    """Lines as `POD | LINE`; of `services`, or of all functions."""

    def pods() -> list[str]:
        found, _ = api.list(POD, namespace, names.OWNED)
        return sorted(
            each["metadata"]["name"] for each in found
            if services is None or each["metadata"]["labels"].get(SERVICE_LABEL) in services
        )  # fmt: skip

    if not follow:
        for pod in pods():
            yield from _tail(api, namespace, pod, lines)
        return
    yield from _follow(api, namespace, pods, lines)


def _short(pod: str) -> str:
    return pod.replace("-deployment-", "-")


def _tail(api: Api, namespace: str, pod: str, lines: int) -> Iterator[str]:
    query = {"container": CONTAINER, "tailLines": str(lines)}
    try:
        text = api.text(POD.path(namespace, pod, "log"), query, LOG_TIMEOUT_S)
    except (DeployError, Missing):
        return  # it has not started, or is gone
    yield from (f"{_short(pod)} | {line}" for line in text.splitlines())


def _follow(api: Api, namespace: str, pods: Any, lines: int) -> Iterator[str]:
    """One thread per pod; the iterator ends with its reader."""
    found: queue.Queue[str] = queue.Queue(maxsize=10_000)
    known: set[str] = set()

    def read(pod: str, tail: int) -> None:
        query = {"container": CONTAINER, "tailLines": str(tail), "follow": "true"}
        try:
            for line in api.lines(POD.path(namespace, pod, "log"), query):
                found.put(f"{_short(pod)} | {line}")
        except (DeployError, Missing):
            known.discard(pod)  # not started yet: tried again

    first = True
    while True:
        for pod in pods():
            if pod not in known:
                known.add(pod)
                tail = lines if first else 1000
                threading.Thread(target=read, args=(pod, tail), daemon=True).start()
        first = False
        try:
            while True:
                yield found.get(timeout=LOOK_S)
        except queue.Empty:
            continue
