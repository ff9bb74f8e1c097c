"""A secret per deployment: made once, rotated with a deploy, gone with the deployment."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from erless.deploy.knative.deployment_secret import ROTATED_AT, rotated
from erless.progress import Silent
from tests.deploy.desired import desired
from tests.deploy.fake_cluster import SERVICES, FakeCluster
from tests.deploy.knative.test_target import SPACE, TIMEOUT_S, deploy, target

KEY = ("secrets", SPACE, "erless-secret")


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()
    yield fake
    fake.close()


def values(cluster: FakeCluster) -> list[str]:
    return base64.b64decode(cluster.objects[KEY]["data"]["secret"]).decode().splitlines()


def make_old(cluster: FakeCluster) -> None:
    """Let the last rotation be long ago."""
    long_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat(timespec="seconds")
    cluster.objects[KEY]["metadata"]["annotations"][ROTATED_AT] = long_ago


def test_pods_mount_a_secret_that_is_there_before_them(cluster: FakeCluster) -> None:
    there: list[bool] = []

    def look(method: str, path: str, body: dict[str, object]) -> None:
        if method == "PATCH" and "/erless-s-" in path and not there:
            there.append(KEY in cluster.objects)

    cluster.before = look
    deploy(cluster)
    assert there == [True]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{16,128}", value) for value in values(cluster))
    for service in cluster.find(SERVICES, SPACE):
        spec = service["spec"]["template"]["spec"]
        assert {"name": "secret", "secret": {"secretName": "erless-secret"}} in spec["volumes"]
    target(cluster).destroy(Silent(), TIMEOUT_S)
    assert KEY not in cluster.objects


def test_it_rotates_with_a_deploy_to_a_value_that_pods_have_seen_for_long(
    cluster: FakeCluster,
) -> None:
    deploy(cluster, "1")
    current, following = values(cluster)
    deploy(cluster, "1")  # what runs already
    deploy(cluster, "2")  # so soon that not every kubelet has shown the file to its pods
    assert values(cluster) == [current, following]
    make_old(cluster)
    deploy(cluster, "2")
    assert values(cluster) == [current, following]  # no new gateway
    deploy(cluster, "3")
    now, fresh, former = values(cluster)
    assert (now, former) == (following, current)  # gateways that still run send the former
    assert fresh not in (current, following)


def test_values_leave_after_two_more_rotations() -> None:
    found = rotated(rotated(rotated(["first", "second"])))
    assert "first" not in found
    assert len(set(found)) == 4


def test_a_dry_run_makes_no_secret(cluster: FakeCluster) -> None:
    target(cluster).validate(desired())
    target(cluster).diff(desired())
    assert KEY not in cluster.objects
