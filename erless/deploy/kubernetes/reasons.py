"""Why a pod does not run, in the pod's own words: image, memory, crash, configuration, placement.

A problem is final when waiting cannot mend it: an image that is not there, a container that ended
for want of memory or with one of our own exit codes (docs/functions.md: 78 and 65), a Secret that
is missing. A pod without a node may get one, so it is final only after a while in which no
autoscaler said that it brings one; neither is a volume or network that is late, of which only
events tell.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

__all__ = ["PodProblem", "pod_problems"]

Object = dict[str, Any]
OURS = {78: "its settings are wrong", 65: "an artifact is damaged or missing"}
UNSCHEDULABLE_S = 90.0
HELD_UP_S = 90.0  # a volume of a network is attached within this
_IMAGE = {"ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
_CONFIG = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_HELD_UP = {"FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox"}  # events of a placed pod
_SCALES_UP = {"TriggeredScaleUp", "Nominated"}  # cluster autoscaler, Karpenter
_LENGTH = 400


@dataclass(frozen=True, slots=True)
class PodProblem:
    """What keeps a pod from running.

    final: waiting does not help. unplaced: no node takes it, so nothing of it has started yet.
    """

    pod: str
    what: str
    final: bool
    unplaced: bool = False


def pod_problems(pods: Iterable[Object], events: Iterable[Object]) -> list[PodProblem]:
    """One problem per pod that does not run.

    Args:
        pods: as the API server gives them.
        events: of their namespace.
    """
    scaling: set[str] = set()
    held_up: dict[str, Object] = {}
    for event in sorted(events, key=lambda event: str(event.get("lastTimestamp") or "")):
        about = str(event.get("involvedObject", {}).get("name"))
        if event.get("reason") in _SCALES_UP:
            scaling.add(about)
        elif event.get("reason") in _HELD_UP:
            held_up[about] = event
    problems = (_problem(pod, scaling, held_up) for pod in pods)
    return [problem for problem in problems if problem is not None]


def _problem(pod: Object, scaling: set[str], held_up: Mapping[str, Object]) -> PodProblem | None:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    placed: Object = {}
    for condition in status.get("conditions", []):
        if condition.get("type") == "PodScheduled":
            placed = condition
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            final = name not in scaling and _age_s(condition) > UNSCHEDULABLE_S
            text = f"no node takes it: {condition.get('message', '?')}"
            return PodProblem(name, text, final, unplaced=True)
    if status.get("reason") == "Evicted":
        return PodProblem(name, f"evicted: {status.get('message', '?')}", True)
    for container in status.get("containerStatuses", []):
        problem = _container_problem(name, container)
        if problem is not None:
            return problem
    if name in held_up and not any(map(_has_started, status.get("containerStatuses", []))):
        event = held_up[name]
        what = f"{event['reason']}: {_line(str(event.get('message', '')))}"
        return PodProblem(name, what, _age_s(placed) > HELD_UP_S)
    return None


def _has_started(container: Object) -> bool:
    return bool(container.get("containerID"))


def _container_problem(pod: str, container: Object) -> PodProblem | None:
    waiting = container.get("state", {}).get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _IMAGE or (reason == "ErrImagePull" and message):
        text = f"image {container.get('image')} cannot be pulled: {_line(message)}"
        return PodProblem(pod, text, reason in _IMAGE)
    if reason in _CONFIG:
        return PodProblem(pod, f"{reason}: {_line(message)}", True)
    ended = (
        container.get("state", {}).get("terminated")
        or container.get("lastState", {}).get("terminated")
        or {}
    )
    if not ended or (container.get("ready") and container.get("started")):
        return None
    code = ended.get("exitCode", 0)
    if ended.get("reason") == "OOMKilled":
        limit = container.get("resources", {}).get("limits", {}).get("memory", "its limit")
        return PodProblem(pod, f"out of memory: it took more than {limit}", True)
    if code == 0:
        return None
    why = f" ({OURS[code]})" if code in OURS else ""
    text = f"{container.get('name')} ended with code {code}{why}: {_last_words(ended)}"
    final = code in OURS or reason == "CrashLoopBackOff" or container.get("restartCount", 0) > 1
    return PodProblem(pod, text, final)


def _last_words(ended: Object) -> str:
    """What the container said last; our functions say it as one JSON line."""
    text = (ended.get("message") or ended.get("reason") or "no word").strip()
    line = text.splitlines()[-1]
    try:
        document = json.loads(line)
    except ValueError:
        return _line(line)
    if not isinstance(document, dict):
        return _line(line)
    text = next((document[key] for key in ("error", "message", "event") if document.get(key)), line)
    return _line(str(text))


def _line(text: str) -> str:
    short = re.sub(r"\s+", " ", text).strip()
    return short if len(short) <= _LENGTH else f"{short[: _LENGTH - 1]}…"


def _age_s(condition: Object) -> float:
    """Seconds since the condition changed; 0 where it does not say."""
    try:
        since = datetime.fromisoformat(condition["lastTransitionTime"].replace("Z", "+00:00"))
    except (KeyError, ValueError):
        return 0.0
    return max(time.time() - since.timestamp(), 0.0)
