"""Alerts on Knative: what pods say, what Events keep, and decoys' pods as they are made."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kubernetes import client

from erless.deploy.knative.alerts import deployment_alerts
from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.pod_names import KNATIVE
from erless.deploy.kubernetes.render.pods import CONTAINER
from erless.deploy.target import Watched
from erless.errors import ForbiddenError, NotDeployedError
from erless.specs.alerts import ALERT_MESSAGE, Alert
from erless.specs.odds import ShardOdds
from tests.deploy.fake_cluster import SERVICES, FakeCluster

SPACE = "recs"
SCOPE = names.Scope(SPACE)
DECOYS = {"erless-s-decoy": "d" * 64, "erless-s-other": "e" * 64}
REAL = "erless-s-real"
WAIT_S = 30.0
TIME = "2026-01-01T00:00:00.000+00:00"


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()
    for name, digest in {**DECOYS, REAL: "a" * 64, names.GATEWAY: "b" * 64}.items():
        add_service(fake, name, digest)
    yield fake
    fake.close()


def add_service(cluster: FakeCluster, name: str, digest: str) -> None:
    kind = "gateway" if name == names.GATEWAY else "sparse"
    notes = {names.DIGEST: digest, names.FUNCTION: name.removeprefix("erless-")}
    labels = {names.MANAGED: names.MANAGER, names.KIND: kind}
    service = {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels, "annotations": notes},
    }
    cluster.store((SERVICES, SPACE, name), service)


def add_pod(cluster: FakeCluster, service: str, pod: str, *said: str) -> None:
    """A pod of `service` whose function has started, and what it logged."""
    kind = "gateway" if service == names.GATEWAY else "sparse"
    labels = {names.MANAGED: names.MANAGER, names.KIND: kind, KNATIVE.service: service}
    containers = [{"name": CONTAINER, "containerID": "containerd://1"}]
    notes = cluster.get(SERVICES, SPACE, service)["metadata"]["annotations"]
    cluster.logs[pod] = "".join(f"{TIME} {line}\n" for line in said)
    document = {
        "metadata": {
            "name": pod,
            "namespace": SPACE,
            "labels": labels,
            "annotations": {names.DIGEST: notes[names.DIGEST]},
        },
        "status": {"containerStatuses": containers, "phase": "Running"},
    }
    cluster.store(("pods", SPACE, pod), document)


def logged(**fields: Any) -> str:
    alert = {"time": TIME, "kind": "decoy", "function": "sparse", **fields}
    return json.dumps({"message": ALERT_MESSAGE, "alert": alert})


def add_event(cluster: FakeCluster, reason: str, about: str, **more: Any) -> None:
    name = f"event-{cluster.version}"
    meta = {"name": name, "creationTimestamp": "2026-01-01T00:00:05Z", **more}
    event = {"metadata": meta, "reason": reason, "involvedObject": {"name": about}}
    cluster.store(("events", SPACE, name), event)


def api_of(cluster: FakeCluster) -> Api:
    return Api(client.ApiClient(client.Configuration(host=cluster.url)), 1.0)


def past(cluster: FakeCluster, lines: int = 100) -> list[Alert]:
    return list(deployment_alerts(api_of(cluster), SCOPE, watched, lines, False, None))


def watched() -> Watched:
    return Watched(frozenset(DECOYS.values()))


class Follower:
    """Somebody who follows, in a thread."""

    def __init__(self, cluster: FakeCluster, watched: Callable[[], Watched] = watched) -> None:
        self._cluster, self._watched = cluster, watched
        self._told: queue.Queue[Alert | Exception] = queue.Queue()
        before = cluster.watches
        threading.Thread(target=self._follow, daemon=True).start()
        with cluster.changed:
            assert cluster.changed.wait_for(lambda: cluster.watches > before, WAIT_S)

    def _follow(self) -> None:
        try:
            for alert in deployment_alerts(
                api_of(self._cluster), SCOPE, self._watched, 0, True, None
            ):
                self._told.put(alert)
        except Exception as error:
            self._told.put(error)

    def next(self) -> Alert | Exception:
        return self._told.get(timeout=WAIT_S)

    def at_once(self) -> Alert | Exception | None:
        """As `next`, where it comes right away."""
        try:
            return self._told.get(timeout=0.05)
        except queue.Empty:
            return None


def test_what_pods_logged_is_told_in_the_order_of_time(cluster: FakeCluster) -> None:
    second = "2026-01-01T00:00:02.000+00:00"
    add_pod(
        cluster,
        "erless-s-decoy",
        "decoy-1",
        logged(time=second, asked="GET /metrics", source="10.0.0.9"),
        '{"message": "ready"}',
        'not JSON, and it says "message": "alert"',
        '{"message": "alert", "alert": {"kind": "no such"}}',
    )
    add_pod(cluster, names.GATEWAY, "gateway-1", logged(kind="canary", function="gateway"))
    told = past(cluster)
    assert [(alert.kind, alert.function) for alert in told] == [
        ("canary", "gateway"),
        ("decoy", "s-decoy"),
    ]
    assert told[1].asked == "GET /metrics"
    assert past(cluster, 1) == told[1:]


def test_a_decoys_pod_that_was_made_unseen_is_told_and_a_shards_is_not(
    cluster: FakeCluster,
) -> None:
    for service in ("erless-s-decoy", REAL, names.GATEWAY):
        add_event(cluster, "SuccessfulCreate", f"{service}-00001-deployment-6c9f")
    add_event(cluster, "ScalingReplicaSet", "erless-s-other-00001-deployment")
    (alert,) = past(cluster)
    assert (alert.function, alert.digest) == ("s-decoy", DECOYS["erless-s-decoy"])
    assert alert.time == "2026-01-01T00:00:05+00:00"
    assert "its pod is made" in alert.detail


def test_what_was_left_as_an_event_is_told_once(cluster: FakeCluster) -> None:
    kept = Alert(time=TIME, kind="decoy", function="s-decoy", asked="GET /", source="10.0.0.9")
    note = {"erless.dev/alert": kept.model_dump_json()}
    add_event(cluster, "Touched", names.GATEWAY, annotations=note)
    add_event(cluster, "Touched", names.GATEWAY, annotations={"erless.dev/alert": "{"})
    add_event(cluster, "SuccessfulCreate", "erless-s-decoy-00001-deployment-6c9f")
    add_pod(cluster, "erless-s-decoy", "decoy-1", logged(asked="GET /", source="10.0.0.9"))
    assert past(cluster) == [kept]


def test_a_drained_nodes_pods_are_no_alerts(cluster: FakeCluster) -> None:
    """An awake decoy's pod is evicted with all others, and another is made for it."""
    add_event(cluster, "Touched", names.GATEWAY)
    add_event(cluster, "Killing", "erless-s-decoy-00001-deployment-6c9f-x7", kind="Pod")
    add_event(cluster, "SuccessfulCreate", "erless-s-decoy-00001-deployment-6c9f")
    assert past(cluster) == []


def test_a_decoys_pod_is_told_as_it_is_made_and_left_as_an_event(cluster: FakeCluster) -> None:
    follower = Follower(cluster)
    add_pod(cluster, REAL, "real-1")
    add_pod(cluster, "erless-s-decoy", "decoy-1")
    told = follower.next()
    assert isinstance(told, Alert)
    assert (told.kind, told.function, told.asked) == ("decoy", "s-decoy", "")
    with cluster.changed:
        assert cluster.changed.wait_for(lambda: cluster.find("events", SPACE), WAIT_S)
    (event,) = cluster.find("events", SPACE)
    assert event["reason"] == "Touched"
    assert event["involvedObject"]["name"] == names.GATEWAY
    assert [alert.function for alert in past(cluster)] == ["s-decoy"]


def test_pods_that_take_the_place_of_evicted_ones_are_no_alerts(cluster: FakeCluster) -> None:
    add_pod(cluster, "erless-s-decoy", "decoy-1")
    add_pod(cluster, REAL, "real-1")
    follower = Follower(cluster)
    for service, pod in (("erless-s-decoy", "decoy"), (REAL, "real")):
        add_pod(cluster, service, f"{pod}-2")  # as long as the former one drains
        cluster.remove(("pods", SPACE, f"{pod}-1"))
        cluster.remove(("pods", SPACE, f"{pod}-2"))  # and one that was not given time to
        add_pod(cluster, service, f"{pod}-3")
    add_pod(cluster, "erless-s-other", "other-1")
    told = follower.next()
    assert isinstance(told, Alert)
    assert told.function == "s-other"


def test_a_pod_that_was_made_while_the_watch_was_lost_is_told(cluster: FakeCluster) -> None:
    cluster.watch_limit = 1
    follower = Follower(cluster)
    with cluster.changed:
        cluster.forgotten = cluster.version + 3  # what the watch goes on from is too old
        add_pod(cluster, REAL, "real-1")  # ends it
        add_pod(cluster, "erless-s-other", "other-1")
        add_pod(cluster, REAL, "real-2")
    told = follower.next()
    assert isinstance(told, Alert)
    assert told.function == "s-other"


def test_who_may_leave_no_events_is_told_what_gives_the_right(cluster: FakeCluster) -> None:
    cluster.denied.add(("create", "events"))
    follower = Follower(cluster)
    add_pod(cluster, "erless-s-decoy", "decoy-1")
    told = follower.next()
    assert isinstance(told, ForbiddenError)
    assert any("cluster init" in note for note in told.__notes__)


def test_where_nothing_is_deployed_it_says_so(cluster: FakeCluster) -> None:
    elsewhere = names.Scope("elsewhere")
    with pytest.raises(NotDeployedError, match="elsewhere"):
        list(deployment_alerts(api_of(cluster), elsewhere, watched, 1, False, None))


def test_decoys_of_a_later_deploy_are_known(cluster: FakeCluster) -> None:
    known = [Watched()]
    follower = Follower(cluster, lambda: known[0])
    add_service(cluster, "erless-s-new", "f" * 64)
    known[0] = Watched(frozenset({"f" * 64}))
    add_pod(cluster, "erless-s-new", "new-1")
    told = follower.next()
    assert isinstance(told, Alert)
    assert told.function == "s-new"


def test_who_walks_a_cold_shard_is_told(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = scraping_follower(cluster, monkeypatch)
    told = walked(cluster, follower)
    assert isinstance(told, Alert)
    assert (told.kind, told.function) == ("scraping", "s-real")
    assert "gathers" in told.detail


def test_without_the_gateways_counts_nothing_is_compared(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its metrics may want a token: a shard's share of what the others gather says nothing."""
    follower = scraping_follower(cluster, monkeypatch)
    assert walked(cluster, follower, gateway=False, turns=60) is None


def scraping_follower(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> Follower:
    """Who follows a gateway and a cold shard, and looks at their counters many times a second."""
    monkeypatch.setattr("erless.deploy.knative.alerts.GATHERS_S", 0.02)
    monkeypatch.setattr("erless.deploy.scraping.WINDOW_S", 0.2)
    add_pod(cluster, REAL, "real-1")
    add_pod(cluster, names.GATEWAY, "gateway-1")
    odds = {"a" * 64: ShardOdds(share=0.001, rows_per_call=2.0)}
    return Follower(cluster, lambda: Watched(odds=odds))


def walked(
    cluster: FakeCluster, follower: Follower, *, gateway: bool = True, turns: int = 600
) -> Alert | Exception | None:
    """What is told while ordinary traffic turns into a walk of the shard."""
    for turn in range(turns):
        rows = 2_000.0 * turn
        if gateway:
            cluster.gathers_total["gateway-1"] = 10 * min(rows, 40_000) + rows
        cluster.gathers_total["real-1"] = max(0.0, rows - 40_000)
        told = follower.at_once()
        if told is not None:
            return told
    return None
