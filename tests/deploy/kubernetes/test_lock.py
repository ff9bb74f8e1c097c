"""One leader at a time: the next waits, takes over from the dead, and the deposed notice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from kubernetes import client

from erless.deploy.kubernetes import lock, names
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.lock import leading
from tests.deploy.fake_cluster import FakeCluster, Refused

SCOPE = names.Scope("recs", "ads")
LEASE = ("leases.coordination.k8s.io", "recs", "erless-autoscale-ads")
WAIT_S = 20.0


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    monkeypatch.setattr(lock, "POLL_S", 0.05)
    fake = FakeCluster()
    yield fake
    fake.close()


def connection(cluster: FakeCluster) -> Api:
    return Api(client.ApiClient(client.Configuration(host=cluster.url)), 1.0)


def until(met: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not met():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_next_leads_once_the_first_has_ended(cluster: FakeCluster) -> None:
    led = threading.Event()

    def follow() -> None:
        with leading(connection(cluster), SCOPE):
            led.set()

    with leading(connection(cluster), SCOPE, 3) as leads:
        follower = threading.Thread(target=follow)
        follower.start()
        assert not led.wait(4)  # renewed in between: longer than the lease's three seconds
        assert leads()
    assert led.wait(WAIT_S)
    follower.join(WAIT_S)
    assert LEASE not in cluster.objects


def test_a_dead_leader_is_followed(cluster: FakeCluster) -> None:
    spec = {"holderIdentity": "gone", "leaseDurationSeconds": 1, "renewTime": "x"}
    cluster.store(LEASE, {"metadata": {"name": LEASE[2], "namespace": "recs"}, "spec": spec})
    with leading(connection(cluster), SCOPE) as leads:
        assert leads()
        assert cluster.get(*LEASE)["spec"]["holderIdentity"] != "gone"


def test_who_is_deposed_notices_and_leaves_the_lease_alone(cluster: FakeCluster) -> None:
    with leading(connection(cluster), SCOPE, 1) as leads:
        cluster.merge(LEASE, {"spec": {"holderIdentity": "another"}})
        until(lambda: not leads())
    assert cluster.get(*LEASE)["spec"]["holderIdentity"] == "another"


def test_who_cannot_renew_stops_to_lead(cluster: FakeCluster) -> None:
    def down(method: str, path: str, body: object) -> None:
        if method == "PUT":
            raise Refused(403, "no more")

    with leading(connection(cluster), SCOPE, 1) as leads:
        cluster.before = down
        until(lambda: not leads())
    cluster.before = lambda *_: None
