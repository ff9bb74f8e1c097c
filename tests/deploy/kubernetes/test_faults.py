"""Pods of the current release are found, deleted without grace, and evicted; no others are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client

from erless.deploy.knative.target import KnativeTarget
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.faults import LIST_S, PodFaults
from erless.deploy.kubernetes.names import GATEWAY, KIND, OWNED, Scope
from erless.deploy.target import Breakable
from erless.errors import DeployError, NotDeployedError
from erless.progress import Silent
from erless.specs.churn import FaultKind
from erless.specs.config import Config
from erless.specs.plan import Tier
from tests.deploy.desired import IMAGES, desired, digest_of
from tests.deploy.fake_cluster import PODS, SERVICES, FakeCluster

SPACE = "recs"


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()
    yield fake
    fake.close()


def put_pod(cluster: FakeCluster, service: str, name: str, revision: str, **meta: Any) -> None:
    manager, _, value = OWNED.partition("=")
    labels = {
        manager: value,
        KIND: "gateway" if service == GATEWAY else "sparse",
        "serving.knative.dev/service": service,
        "serving.knative.dev/revision": revision,
    }
    created = "2026-11-30T12:00:00Z"
    cluster.store(
        (PODS, SPACE, name),
        {
            "metadata": {
                "name": name,
                "namespace": SPACE,
                "labels": labels,
                "creationTimestamp": created,
                **meta,
            },
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        },
    )


def test_pods_of_the_current_release_are_broken_and_no_others(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erless.deploy.kubernetes.faults.LIST_S", 0.0)
    assert LIST_S > 0
    api = Api(client.ApiClient(client.Configuration(host=cluster.url)), 5.0)
    knative = {"images": IMAGES, "namespace": SPACE, "gateway_address": "127.0.0.1:9"}
    target = KnativeTarget(Config.model_validate({"targets": {"knative": knative}}), api=api)
    with pytest.raises(NotDeployedError):
        target.faults()
    target.deploy(desired("1"), Silent(), 30.0)
    assert isinstance(target, Breakable)
    site = target.faults()
    assert isinstance(site, PodFaults)
    assert site.shared

    gateway = cluster.get(SERVICES, SPACE, GATEWAY)["status"]["latestReadyRevisionName"]
    hot = Scope(SPACE).shard(digest_of(f"{Tier.HOT.value}-1"))
    put_pod(cluster, GATEWAY, "g1", gateway)
    put_pod(cluster, GATEWAY, "of-another-release", "erless-gateway-0000")
    put_pod(cluster, hot, "h1", "r")
    put_pod(cluster, hot, "h2", "r", deletionTimestamp="2026-11-30T12:01:00Z")
    put_pod(cluster, "somebody-elses", "x", "r")
    found = {replica.name: replica for replica in site.replicas()}
    assert {name: replica.ready for name, replica in found.items()} == {
        "g1": True,
        "h1": True,
        "h2": False,
    }
    assert found["g1"].kind == "gateway" and found["h1"].kind == "sparse"
    assert site.answered(found["h1"]) == 0

    site.inject(FaultKind.GATEWAY, found["g1"])
    site.inject(FaultKind.DRAIN, found["h1"])
    assert {replica.name for replica in site.replicas()} == {"h2"}
    with pytest.raises(DeployError, match="pod g1 is gone"):
        site.inject(FaultKind.KILL, found["g1"])
    site.undo()
