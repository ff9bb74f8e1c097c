"""Running an Indexed Job to its end: applied, or found running; watched; removed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.kinds import EVENT, JOB, POD
from erless.deploy.kubernetes.reasons import pod_problems
from erless.deploy.kubernetes.render.jobs import INDEX_LABEL, JOB_LABEL
from erless.errors import DeployError, WorkerError

__all__ = ["run_indexed_job"]

Object = dict[str, Any]
LOOK_S = 1.0
LOOK_AT_PODS_S = 5.0
GONE_S = 60.0


def run_indexed_job(api: Api, document: Object, done: Callable[[int], None]) -> None:
    """Run the Job `document` until all its parts are done; one that runs already is joined.

    Args:
        api: the cluster.
        document: of `indexed_job`.
        done: called with the number of each part that is done.

    Raises:
        WorkerError: a part failed for good: its pod's last line.
        ForbiddenError: this user may not make Jobs.
        DeployError: its pods cannot start, or the Job is gone.
    """
    namespace, name = document["metadata"]["namespace"], document["metadata"]["name"]
    live = api.get(JOB, namespace, name)
    if live is not None and _condition(live) is not None:  # of a run before: what it made is kept
        _remove(api, namespace, name)
        live = None
    if live is None:
        api.apply(document)
    seen: set[int] = set()
    looked = time.monotonic()
    while True:
        live = api.get(JOB, namespace, name)
        if live is None:
            raise DeployError(f"Job {name} in namespace {namespace} was removed by someone else")
        completed = _numbers(live.get("status", {}).get("completedIndexes", ""))
        for number in sorted(completed - seen):
            done(number)
        seen |= completed
        end = _condition(live)
        if end is not None and end["type"] == "Complete":
            _remove(api, namespace, name)
            return
        if end is not None:
            raise WorkerError(_why(api, namespace, name, live, end))
        if time.monotonic() - looked > LOOK_AT_PODS_S:
            _check_pods(api, namespace, name)
            looked = time.monotonic()
        time.sleep(LOOK_S)


def _condition(job: Object) -> Object | None:
    """How the Job ended, or None while it runs."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return dict(condition)
    return None


def _numbers(text: str) -> set[int]:
    """The numbers of a text such as Kubernetes writes them.

    >>> sorted(_numbers("0-2,7"))
    [0, 1, 2, 7]
    """
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def _remove(api: Api, namespace: str, name: str) -> None:
    """Remove the Job with its pods, and wait until it is gone."""
    api.delete(JOB, namespace, name)
    give_up = time.monotonic() + GONE_S
    while api.get(JOB, namespace, name) is not None:
        if time.monotonic() > give_up:
            raise DeployError(f"Job {name} in namespace {namespace} does not end")
        time.sleep(LOOK_S)


def _check_pods(api: Api, namespace: str, name: str) -> None:
    """Give up what waiting does not mend: an image that is not there, a Secret that is missing.

    A pod that ended is the Job's to judge.
    """
    pods, _ = api.list(POD, namespace, f"{JOB_LABEL}={name}")
    waiting = [pod for pod in pods if pod.get("status", {}).get("phase") == "Pending"]
    if waiting:
        events, _ = api.list(EVENT, namespace)
        for problem in pod_problems(waiting, events):
            if problem.final:
                raise DeployError(f"pod {problem.pod} of Job {name}: {problem.what}")


def _why(api: Api, namespace: str, name: str, job: Object, end: Object) -> str:
    """What the first failed part said last."""
    failed = sorted(_numbers(job["status"].get("failedIndexes", "")))
    told = f"Job {name}: {end.get('message') or end.get('reason', 'it failed')}"
    if not failed:
        return told
    selector = f"{JOB_LABEL}={name},{INDEX_LABEL}={failed[0]}"
    pods, _ = api.list(POD, namespace, selector)
    pods.sort(key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
    for pod in reversed(pods):
        path = POD.path(namespace, pod["metadata"]["name"], "log")
        lines = api.text(path, {"tailLines": "5"}).strip().splitlines()
        if lines:
            return f"{told}; index {failed[0]} said: {lines[-1]}"
    return f"{told}; index {failed[0]} left no log"
