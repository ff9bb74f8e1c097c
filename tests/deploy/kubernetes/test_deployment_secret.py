"""A secret per deployment: made once, rotated with a deploy, gone with the deployment."""

from __future__ import annotations

import base64
import re
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from erless.deploy.kubernetes.deployment_secret import ROTATED_AT, ensure_secret, rotated
from erless.deploy.kubernetes.names import Scope
from erless.progress import Silent
from tests.conftest import Cli
from tests.deploy.desired import desired
from tests.deploy.fake_cluster import SERVICES, FakeCluster
from tests.deploy.knative.test_target import SPACE, TIMEOUT_S, connection, deploy, target

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


def test_it_is_made_by_hand_for_objects_that_kubectl_applies(
    cluster: FakeCluster, tmp_path: Path, cli: Cli
) -> None:
    """What `render` writes lacks it; no value is ever printed, and a file is its owner's alone."""
    cluster.kubeconfig(tmp_path)
    here = ("--kubeconfig", "kubeconfig", "--namespace", SPACE)
    told = []

    def secret(*options: str) -> str:
        done = cli("cluster", "secret", *here, *options, cwd=tmp_path)
        told.append(done.stdout + done.stderr)
        return told[-1] if done.returncode else done.stdout

    assert "namespace recs is not there yet" in secret()
    cluster.store(("namespaces", "", SPACE), {"metadata": {"name": SPACE}})
    assert "erless-secret in recs: made" in secret()
    current, following = values(cluster)
    assert "kept" in secret("--rotate")  # too soon: not every pod has seen it
    make_old(cluster)
    assert "kept" in secret()
    assert values(cluster) == [current, following]
    assert "rotated" in secret("--rotate", "-o", "json")
    assert values(cluster)[0] == following
    assert "--out makes fresh values" in secret("--out", "secret.yaml", "--rotate")
    assert "wrote secret.yaml" in secret("--out", "secret.yaml")
    file = tmp_path / "secret.yaml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    document = yaml.safe_load(file.read_text())
    sealed = base64.b64decode(document["data"]["secret"]).decode().split()
    assert len(set(sealed)) == 2
    assert "is there already" in secret("--out", "secret.yaml")
    words = "".join(told)
    assert not any(value in words for value in [*sealed, *values(cluster)])


def test_what_a_deploy_finds_stays(cluster: FakeCluster) -> None:
    cluster.store(("namespaces", "", SPACE), {"metadata": {"name": SPACE}})
    made = ensure_secret(connection(cluster), Scope(SPACE))
    before = values(cluster)
    deploy(cluster)
    assert made == "made"
    assert values(cluster) == before
