"""Alerts of a deployment on Knative: what pods log, and that a decoy's pod is made at all.

A decoy's pod is the alarm: it is made as soon as somebody asks for the decoy, seconds before it can
say by whom. The watcher tells of both, and leaves each as an Event on the gateway's Service, where
`kubectl describe` shows it and a later look finds it after the pod is gone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from erless.deploy.knative.scraped import Gathers, read_gathers
from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api, Gone
from erless.deploy.kubernetes.kinds import EVENT, KSERVICE, POD
from erless.deploy.kubernetes.pod_logs import pod_logs
from erless.deploy.kubernetes.pod_names import KNATIVE
from erless.deploy.scraping import ScrapingWatch
from erless.deploy.target import Watched
from erless.deploy.webhook import Webhook
from erless.errors import DeployError, ForbiddenError, NotDeployedError
from erless.specs.alerts import ALERT_MESSAGE, Alert, AlertLimiter, utc_now

__all__ = ["deployment_alerts"]

Object = dict[str, Any]
REASON = "Touched"  # of our Events
ALERT = "erless.dev/alert"  # the annotation that has the whole of it
LOG_LINES = 1000  # of each function, in which alerts are looked for
WINDOW_S = 60
MADE = "SuccessfulCreate"  # of a ReplicaSet's Events: it has made a pod
KILLING = "Killing"  # of a pod's Events: it is being ended
REPLACED_S = 5.0  # a pod that is made so soon beside the end of another takes its place
GATHERS_S = 10.0  # between two looks at what functions have gathered
MOST_CHARACTERS = 1024  # of an Event's message


def deployment_alerts(
    api: Api,
    scope: names.Scope,
    watched: Callable[[], Watched],
    lines: int,
    follow: bool,
    webhook: str | None,
) -> Iterator[Alert]:
    """The last `lines` alerts of a scope, then what comes, which goes to the webhook as well.

    Args:
        watched: what the store knows of the deployed releases; asked again as these change.

    Raises:
        NotDeployedError: there is no function of ours.
        ForbiddenError: Events may not be left.
    """
    watch = _AlertWatch(api, scope, watched)
    if not watch.functions:
        raise NotDeployedError(f"nothing is deployed in namespace {scope.namespace}")
    yield from (watch.past()[-lines:] if lines else ())
    if not follow:
        return
    report = logging.getLogger(__name__).warning
    hook = Webhook(webhook, report) if webhook else None
    for alert in watch.follow():
        if hook is not None:
            hook.send(alert)
        yield alert


class _AlertWatch:
    """The alerts of the functions in a scope.

    Args:
        api: the cluster.
        scope: of the deployment.
        watched: as of `deployment_alerts`.
    """

    def __init__(self, api: Api, scope: names.Scope, watched: Callable[[], Watched]) -> None:
        self._api, self._scope = api, scope
        self._ask, self._watched = watched, watched()
        self.functions = self._named()

    def _named(self) -> dict[str, Object]:
        """The Services of the scope, by name."""
        services, _ = self._api.list(KSERVICE, self._scope.namespace, self._scope.selector)
        return {service["metadata"]["name"]: service for service in services}

    def _display(self, service: str) -> str:
        live = self.functions.get(service, {"metadata": {}})
        return str(live["metadata"].get("annotations", {}).get(names.FUNCTION, service))

    def _is_decoy(self, service: str) -> bool:
        live = self.functions.get(service, {"metadata": {}})
        digest = live["metadata"].get("annotations", {}).get(names.DIGEST)
        return digest in self._watched.decoys

    def _look_again(self) -> None:
        """A function is new: there was a deploy since."""
        self.functions, self._watched = self._named(), self._ask()

    def past(self) -> list[Alert]:
        """What Events and logs still tell, in order of time, each once."""
        found = [*self._from_events(), *self._from_logs(follow=False)]
        unique = {(alert.time, alert.kind, alert.function, alert.asked): alert for alert in found}
        return sorted(unique.values(), key=lambda alert: alert.time)

    def _from_events(self) -> Iterator[Alert]:
        """Alerts that were left as Events, and decoys' pods that were made unseen."""
        events, _ = self._api.list(EVENT, self._scope.namespace)
        told: set[str] = set()
        made: list[Alert] = []
        ended = [event for event in events if event.get("reason") == KILLING]
        for event in events:
            text = event["metadata"].get("annotations", {}).get(ALERT)
            if text and event.get("reason") == REASON:
                try:
                    alert = Alert.model_validate_json(text)
                except ValidationError:
                    continue
                told.add(alert.function)
                yield alert
            elif event.get("reason") == MADE:
                service = self._service_of(event.get("involvedObject", {}).get("name", ""))
                replaces = any(_replaces(event, other, service) for other in ended)
                if service and self._is_decoy(service) and not replaces:
                    made.append(self._woken(service, _time_of(event)))
        yield from (alert for alert in made if alert.function not in told)

    def _service_of(self, replica_set: str) -> str:
        """The function whose ReplicaSet that is: Knative names it for the revision."""
        return next((name for name in self.functions if replica_set.startswith(f"{name}-")), "")

    def _woken(self, service: str, time: str) -> Alert:
        digest = self.functions[service]["metadata"]["annotations"][names.DIGEST]
        return Alert(
            time=time,
            kind="decoy",
            function=self._display(service),
            digest=digest,
            detail="somebody woke it: its pod is made",
        )

    def _from_logs(self, *, follow: bool) -> Iterator[Alert]:
        shown = {name: self._display(name) for name in self.functions}
        lines = 0 if follow else LOG_LINES
        for line in pod_logs(
            self._api, self._scope.namespace, KNATIVE.service, shown, lines, follow
        ):
            function, _, text = line.partition(" | ")
            if ALERT_MESSAGE not in text:
                continue
            try:
                entry = json.loads(text)
                alert = Alert.model_validate(entry["alert"])
            except (ValueError, KeyError, TypeError):
                continue
            yield alert.model_copy(update={"function": function})

    def follow(self) -> Iterator[Alert]:
        """What comes, each left as an Event too; at most one a minute for each source.

        Raises:
            ForbiddenError: Events may not be made: `erless cluster init` gives the right.
        """
        arriving: queue.Queue[Alert | DeployError] = queue.Queue()
        limiter = AlertLimiter(time.monotonic)

        def read(source: Callable[[], Iterator[Alert]]) -> None:
            try:
                for alert in source():
                    arriving.put(alert)
            except DeployError as error:
                arriving.put(error)

        for source in (self._wakings, self._scrapers, lambda: self._from_logs(follow=True)):
            threading.Thread(target=read, args=(source,), daemon=True).start()
        while True:
            try:
                item = arriving.get(timeout=1.0)
            except queue.Empty:
                for alert in limiter.due():
                    self._leave_event(alert)
                    yield alert
                continue
            if isinstance(item, DeployError):
                raise item
            admitted = limiter.admit(item)
            if admitted is not None:
                self._leave_event(admitted)
                yield admitted

    def _wakings(self) -> Iterator[Alert]:
        """Pods of decoys, as they are made; not those that take the place of others."""
        selector = f"{self._scope.selector},{names.KIND}=sparse"
        alive, version = self._pods(selector)
        ended_s: dict[str, float] = {}  # by Service, when its last pod was gone
        while True:
            try:
                for event, pod in self._api.watch(
                    POD, self._scope.namespace, selector, version, WINDOW_S
                ):
                    version = pod["metadata"].get("resourceVersion", version)
                    service, uid = _service_and_uid(pod)
                    if event == "DELETED":
                        alive.pop(uid, None)
                        ended_s[service] = time.monotonic()
                    elif event == "ADDED" and uid not in alive:
                        lately = time.monotonic() - ended_s.get(service, -REPLACED_S) < REPLACED_S
                        replaces = service in alive.values() or lately
                        alive[uid] = service
                        if not replaces:
                            yield from self._waking(service)
            except Gone:
                before = alive
                alive, version = self._pods(selector)
                for service in sorted(set(alive.values()) - set(before.values())):
                    yield from self._waking(service)

    def _waking(self, service: str) -> Iterator[Alert]:
        """The alert of a pod that was made for `service`, where nobody should ask for it."""
        if service not in self.functions:
            self._look_again()
        if self._is_decoy(service):
            yield self._woken(service, utc_now())

    def _pods(self, selector: str) -> tuple[dict[str, str], str]:
        """The Service of each pod, by uid, and the list's version."""
        pods, version = self._api.list(POD, self._scope.namespace, selector)
        found = (_service_and_uid(pod) for pod in pods)
        return {uid: service for service, uid in found}, version

    def _scrapers(self) -> Iterator[Alert]:
        """Shards that are asked far more than the plan's odds allow."""
        odds = self._watched.odds
        watch, gathers, asked_s = ScrapingWatch(odds, time.monotonic), Gathers(), time.monotonic()
        while True:
            time.sleep(GATHERS_S)
            if time.monotonic() - asked_s > WINDOW_S:  # a release may have taken over
                self._look_again()
                asked_s = time.monotonic()
            if self._watched.odds != odds:
                odds = self._watched.odds
                watch = ScrapingWatch(odds, time.monotonic)
            with contextlib.suppress(DeployError):  # who watches goes on when the API is back
                gathers = read_gathers(self._api, self._scope, gathers)
            if not gathers:
                continue
            for digest, reason in watch.observe(gathers).items():
                yield Alert(
                    time=utc_now(),
                    kind="scraping",
                    function=self._named_by(digest),
                    digest=digest,
                    detail=reason,
                )

    def _named_by(self, digest: str) -> str:
        """What `erless status` calls the function with a digest."""
        for name, live in self.functions.items():
            if live["metadata"].get("annotations", {}).get(names.DIGEST) == digest:
                return self._display(name)
        return digest

    def _leave_event(self, alert: Alert) -> None:
        """An Event on the gateway's Service, which stands for the release."""
        gateway = self.functions.get(self._scope.gateway)
        if gateway is None:
            return
        meta, now = gateway["metadata"], datetime.now(UTC)
        stamp = now.isoformat(timespec="seconds").replace("+00:00", "Z")
        who = alert.source or alert.forwarded.get("x-forwarded-for", "") or "somebody"
        message = f"{alert.kind} {alert.function}: {who} {alert.asked or 'connected'}"
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "generateName": f"{meta['name']}.",
                "namespace": self._scope.namespace,
                "labels": {names.MANAGED: names.MANAGER},
                "annotations": {ALERT: alert.model_dump_json(exclude_defaults=True)},
            },
            "involvedObject": {
                "apiVersion": gateway["apiVersion"],
                "kind": gateway["kind"],
                "name": meta["name"],
                "namespace": self._scope.namespace,
                "uid": meta.get("uid", ""),
            },
            "type": "Warning",
            "reason": REASON,
            "message": message[:MOST_CHARACTERS],
            "count": alert.count,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "source": {"component": "erless"},
        }
        try:
            self._api.call("POST", EVENT.path(self._scope.namespace), event)
        except ForbiddenError as error:
            error.add_note("`erless cluster init` gives deployers the right to leave Events")
            raise


def _service_and_uid(pod: Object) -> tuple[str, str]:
    meta = pod["metadata"]
    return meta.get("labels", {}).get(KNATIVE.service, ""), meta.get("uid", "")


def _time_of(event: Object) -> str:
    """When an Event of Kubernetes last happened, as alerts say it."""
    stamp = event.get("lastTimestamp") or event["metadata"]["creationTimestamp"]
    return str(stamp).replace("Z", "+00:00")


def _replaces(made: Object, ended: Object, service: str) -> bool:
    """Whether a pod of `service` was made as another of its pods ended: `made` is no waking."""
    if not ended.get("involvedObject", {}).get("name", "").startswith(f"{service}-"):
        return False
    times = [datetime.fromisoformat(_time_of(event)) for event in (made, ended)]
    return abs((times[0] - times[1]).total_seconds()) <= REPLACED_S
