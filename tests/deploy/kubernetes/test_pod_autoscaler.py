"""Pods grow and shrink in place by their own counters; what a node refuses is not asked again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kubernetes import client

from erless.deploy.kubernetes import names
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.pod_autoscaler import REFUSED_S, PodAutoscaler, Resized
from erless.deploy.kubernetes.pod_sizing import PodSizing
from tests.deploy.fake_cluster import PODS, FakeCluster, Object

SPACE = "recs"
SIZING = PodSizing(
    function="hot-0",
    vcpu=0.25,
    most_vcpu=1.0,
    requests_per_vcpu_s=100,
    utilisation=0.7,
    overcommit=5,
)
PLANNED = {"requests": {"cpu": "50m", "memory": "1Gi"}, "limits": {"cpu": "250m", "memory": "1Gi"}}
TICK_S = 2.0


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()
    yield fake
    fake.close()


class Deployment:
    """Pods of one shard, the load on them, and the autoscaler with a clock of its own."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster, self.now_s = cluster, 0.0
        api = Api(client.ApiClient(client.Configuration(host=cluster.url)), 1.0)
        self.autoscaler = PodAutoscaler(api, names.Scope(SPACE), clock=lambda: self.now_s)

    def add(self, name: str, sizing: PodSizing | None = SIZING) -> None:
        """A pod as its template has it."""
        labels = names.function_labels("sparse", "hot", "a" * 64)
        notes = {names.SIZING: sizing.model_dump_json()} if sizing else {}
        meta = {"name": name, "namespace": SPACE, "labels": labels, "annotations": notes}
        containers = [
            {"name": "user-container", "resources": {k: dict(v) for k, v in PLANNED.items()}},
            {"name": "queue-proxy", "resources": {}},
        ]
        given = {"name": "user-container", "resources": PLANNED}
        status = {
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [given],
        }
        document = {"metadata": meta, "spec": {"containers": containers}, "status": status}
        self._cluster.store((PODS, SPACE, name), document)
        self._cluster.requests_total[name] = 0.0

    def resources(self, name: str) -> Object:
        pod = self._cluster.get(PODS, SPACE, name)
        return dict(pod["spec"]["containers"][0]["resources"])

    def run(self, seconds: float, rate: float) -> list[Resized]:
        """`rate` requests/s on each pod for so long."""
        done = []
        for _ in range(round(seconds / TICK_S)):
            self.now_s += TICK_S
            for pod in self._cluster.requests_total:
                self._cluster.requests_total[pod] += rate * TICK_S
            done += self.autoscaler.tick()
        return done


def test_a_pod_grows_at_once_and_shrinks_in_steps(cluster: FakeCluster) -> None:
    run = Deployment(cluster)
    run.add("p")
    run.run(4, 12.0)
    (grown, *_) = run.run(2, 80.0)
    assert grown.function == "hot-0" and "vCPU each" in grown.why
    assert run.resources("p")["limits"] == {"cpu": "1", "memory": "1Gi"}
    assert run.resources("p")["requests"] == {"cpu": "200m", "memory": "1Gi"}
    steps = [each.vcpu for each in run.run(120, 5.0)]
    assert steps and all(
        later >= 0.5 * before for before, later in zip([1.0, *steps], steps, strict=False)
    )
    assert steps[-1] == SIZING.vcpu  # never less than planned


def test_a_pod_that_its_limit_holds_up_grows_whatever_its_load_is(cluster: FakeCluster) -> None:
    """Its planned throughput was told too high, or its node is slower than thought."""
    run = Deployment(cluster)
    run.add("p")
    run.run(4, 12.0)
    for tick, given in ((1, "500m"), (2, "1")):
        cluster.throttling = {"cpu_periods": 20.0 * tick, "cpu_throttled_periods": 15.0 * tick}
        (grown,) = run.run(2, 12.0)
        assert "75% of the periods throttled" in grown.why
        assert run.resources("p")["limits"]["cpu"] == given


def test_a_pod_that_is_made_again_grows_again_and_others_are_left_alone(
    cluster: FakeCluster,
) -> None:
    run = Deployment(cluster)
    run.add("p")
    run.add("other", sizing=None)
    run.run(10, 60.0)
    assert run.resources("p")["limits"]["cpu"] == "1"
    cluster.remove((PODS, SPACE, "p"))
    del cluster.requests_total["p"]
    run.run(2, 60.0)
    run.add("q")
    run.run(6, 60.0)
    assert run.resources("q")["limits"]["cpu"] == "1"
    assert run.resources("other") == PLANNED


def test_what_never_fits_is_taken_back_and_asked_for_again_later(cluster: FakeCluster) -> None:
    run = Deployment(cluster)
    run.add("p")
    cluster.fits = lambda cpu: "Infeasible" if cpu == "1" else ""
    run.run(4, 12.0)
    said = run.run(20, 60.0)
    assert run.resources("p")["limits"]["cpu"] == "250m"
    assert "no room" in said[1].why and len(said) == 2
    cluster.fits = lambda cpu: ""
    run.run(REFUSED_S, 60.0)
    assert run.resources("p")["limits"]["cpu"] == "1"


def test_what_waits_for_room_is_told_once_and_left_to_the_kubelet(cluster: FakeCluster) -> None:
    run = Deployment(cluster)
    run.add("p")
    cluster.fits = lambda cpu: "Deferred"
    said = run.run(20, 60.0)
    assert run.resources("p")["limits"]["cpu"] == "1"
    assert sum("waits for room" in each.why for each in said) == 1


@pytest.mark.parametrize("trouble", ["no such part", "may not", "no metrics"])
def test_troubles_are_told_and_change_nothing(cluster: FakeCluster, trouble: str) -> None:
    run = Deployment(cluster)
    run.add("p")
    run.run(4, 12.0)
    if trouble == "no such part":
        cluster.resizes = False
    elif trouble == "may not":
        cluster.denied.add(("patch", "pods"))
    else:
        cluster.requests_total.clear()
    said = run.run(10, 60.0)
    assert run.resources("p") == PLANNED
    assert len(said) == (0 if trouble == "no metrics" else 1)
