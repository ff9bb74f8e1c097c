"""Logs of functions, from a server that speaks the API."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client

from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.names import OWNED
from erless.deploy.kubernetes.pod_logs import pod_logs
from erless.deploy.kubernetes.pod_names import KNATIVE
from erless.deploy.kubernetes.render.pods import CONTAINER
from erless.errors import DeployError
from tests.deploy.fake_cluster import FakeCluster, Refused

FUNCTIONS = {"erless-gateway": "gateway"}


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()
    yield fake
    fake.close()


def add_pod(cluster: FakeCluster, name: str, **container: Any) -> None:
    owned, _, value = OWNED.partition("=")
    labels = {owned: value, KNATIVE.service: "erless-gateway"}
    status = {"containerStatuses": [{"name": CONTAINER, **container}]}
    pod = {"metadata": {"name": name, "labels": labels}, "status": status}
    cluster.store(("pods", "recs", name), pod)


def logs(cluster: FakeCluster, lines: int = 100) -> Iterator[str]:
    api = Api(client.ApiClient(client.Configuration(host=cluster.url)), 1.0)
    return pod_logs(api, "recs", KNATIVE.service, FUNCTIONS, lines, follow=False)


def test_a_log_that_cannot_be_read_is_told_after_the_others(cluster: FakeCluster) -> None:
    """A node whose kubelet does not answer gave no line, no word, and exit code 0."""
    for name in ("sound", "unreachable"):
        add_pod(cluster, name, containerID="containerd://1")

    def refuse(_: str, path: str, __: object) -> None:
        if path.endswith("/unreachable/log"):
            raise Refused(500, "dial tcp 10.0.0.1:10250: i/o timeout")

    cluster.before = refuse
    cluster.logs["sound"] = "2026-01-01T00:00:00Z ready\n"
    read = logs(cluster)
    assert next(read).startswith("gateway | ")
    with pytest.raises(DeployError, match=r"log of pod unreachable cannot be read: .*i/o timeout"):
        list(read)


def test_a_pod_that_has_not_started_has_no_log_and_is_no_failure(cluster: FakeCluster) -> None:
    add_pod(cluster, "new", state={"waiting": {"reason": "ContainerCreating"}})

    def refuse(_: str, path: str, __: object) -> None:
        if path.endswith("/log"):
            raise Refused(400, "container is waiting to start")

    cluster.before = refuse
    assert list(logs(cluster)) == []
