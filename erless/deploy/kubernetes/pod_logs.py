"""Logs of functions: the last lines of every pod, then what comes, as one stream."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api, Missing
from erless.deploy.kubernetes.kinds import POD
from erless.deploy.kubernetes.render.pods import CONTAINER
from erless.errors import DeployError

__all__ = ["pod_logs"]

LOOK_S = 3.0  # new pods are found this often while following
LOG_TIMEOUT_S = 30.0


def pod_logs(
    api: Api, namespace: str, label: str, functions: Mapping[str, str], lines: int, follow: bool
) -> Iterator[str]:
    """The last `lines` of all `functions` together, in the order of time, then what comes.

    Args:
        api: the cluster.
        namespace: where.
        label: of pods, whose value is their function's Service.
        functions: Service → the name that its lines begin with.
        lines: most lines of the past.
        follow: go on with what comes.

    Raises:
        DeployError: after the lines of the others, where logs cannot be read (a node that does not
            answer, a missing permission).
    """
    past: list[tuple[str, str]] = []
    refused: list[str] = []
    for pod, name in _pods(api, namespace, label, functions):
        try:
            past += _tail(api, namespace, pod, name, lines)
        except DeployError as error:
            refused.append(_unread(pod, error))
    past.sort(key=lambda line: line[0])
    yield from (text for _, text in past[-lines:] if lines)
    if follow:
        yield from _follow(api, namespace, label, functions)
    if refused:
        raise DeployError("; ".join(refused))


def _unread(pod: str, error: DeployError) -> str:
    return f"the log of pod {pod} cannot be read: {error}"


def _pods(
    api: Api, namespace: str, label: str, functions: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Pod and function name, of the pods whose function has ever started."""
    pods, _ = api.list(POD, namespace, names.OWNED)
    owners = [
        (pod["metadata"]["name"], pod["metadata"]["labels"].get(label))
        for pod in pods
        if _has_started(pod)
    ]
    return sorted((pod, functions[owner]) for pod, owner in owners if owner in functions)


def _has_started(pod: dict[str, Any]) -> bool:
    """Whether there is a log: Kubernetes names a container once it has made it."""
    containers = pod.get("status", {}).get("containerStatuses", ())
    return any(
        container.get("name") == CONTAINER and container.get("containerID")
        for container in containers
    )


def _tail(api: Api, namespace: str, pod: str, name: str, lines: int) -> list[tuple[str, str]]:
    """Time and text of a pod's last lines; none of a pod that is gone."""
    query = {"container": CONTAINER, "tailLines": str(lines), "timestamps": "true"}
    try:
        text = api.text(POD.path(namespace, pod, "log"), query, LOG_TIMEOUT_S)
    except Missing:
        return []
    parts = (line.partition(" ") for line in text.splitlines())
    return [(when, f"{name} | {message}") for when, _, message in parts]


def _follow(api: Api, namespace: str, label: str, functions: Mapping[str, str]) -> Iterator[str]:
    """What comes, from one thread per pod; new pods from their first line on."""
    arriving: queue.Queue[str] = queue.Queue(maxsize=10_000)
    followed: set[str] = set()
    told: set[str] = set()

    def read(pod: str, name: str, past: bool) -> None:
        query = {"container": CONTAINER, "follow": "true"} | ({} if past else {"tailLines": "0"})
        try:
            for line in api.lines(POD.path(namespace, pod, "log"), query):
                arriving.put(f"{name} | {line}")
        except Missing:
            followed.discard(pod)
        except DeployError as error:
            if pod not in told:
                told.add(pod)
                arriving.put(f"{name} | {_unread(pod, error)}")
            followed.discard(pod)  # tried again

    first = True
    while True:
        for pod, name in _pods(api, namespace, label, functions):
            if pod not in followed:
                followed.add(pod)
                threading.Thread(target=read, args=(pod, name, not first), daemon=True).start()
        first = False
        try:
            while True:
                yield arriving.get(timeout=LOOK_S)
        except queue.Empty:
            continue
