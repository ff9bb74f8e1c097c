"""What a reconciler makes of the rendered objects: all applied at once, again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kubernetes import client

from erless.deploy.knative.render import Rendered
from erless.deploy.knative.target import KnativeTarget
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.kinds import kind_of
from erless.deploy.kubernetes.names import GATEWAY, Scope
from erless.progress import Silent
from erless.specs.config import Config
from tests.deploy.desired import IMAGES, desired
from tests.deploy.fake_cluster import REVISIONS, SERVICES, FakeCluster, Key, condition

SPACE = "recs"
SCOPE = Scope(SPACE)
MANAGER = "argocd-controller"


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()
    yield fake
    fake.close()


def target(cluster: FakeCluster) -> KnativeTarget:
    knative = {"images": IMAGES, "namespace": SPACE, "gateway_address": "127.0.0.1:9"}
    config = Config.model_validate({"targets": {"knative": knative}})
    configuration = client.Configuration(host=cluster.url)
    return KnativeTarget(config, api=Api(client.ApiClient(configuration), 10.0))


def key_of(document: dict[str, Any]) -> Key:
    kind, meta = kind_of(document), document["metadata"]
    plural = f"{kind.plural}.{kind.group}" if kind.group else kind.plural
    return plural, meta.get("namespace", ""), meta["name"]


def reconcile(cluster: FakeCluster, rendered: Rendered) -> None:
    """Apply everything, the gateway before the functions that it calls."""
    namespace, *others = rendered.objects
    for document in (namespace, *reversed(others)):
        cluster.apply(key_of(document), document, MANAGER, dry_run=False, force=False)


def serving(cluster: FakeCluster) -> dict[str, int]:
    """Revision → percent, as the gateway's route has it."""
    lines = cluster.get(SERVICES, SPACE, GATEWAY).get("status", {}).get("traffic", [])
    return {line["revisionName"]: line["percent"] for line in lines}


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10.0
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_traffic_stays_until_the_new_gateway_is_ready(cluster: FakeCluster) -> None:
    old = target(cluster).objects(desired("1"), SCOPE)
    reconcile(cluster, old)
    wait_until(lambda: serving(cluster) == {old.revision: 100})
    cluster.ready_after_s = 0.5
    new = target(cluster).objects(desired("2"), SCOPE)
    reconcile(cluster, new)
    ready = [condition("Ready", "True")]
    while serving(cluster) == {old.revision: 100}:
        time.sleep(0.01)
    assert serving(cluster) == {new.revision: 100}
    assert cluster.get(REVISIONS, SPACE, new.revision)["status"]["conditions"] == ready


def test_traffic_stays_where_the_new_gateway_fails(cluster: FakeCluster) -> None:
    old = target(cluster).objects(desired("1"), SCOPE)
    reconcile(cluster, old)
    wait_until(lambda: serving(cluster) == {old.revision: 100})
    cluster.pod_trouble[GATEWAY] = {"containerStatuses": []}
    new = target(cluster).objects(desired("2"), SCOPE)
    reconcile(cluster, new)
    failed = [condition("Ready", "False")]
    wait_until(
        lambda: cluster.get(REVISIONS, SPACE, new.revision)["status"]["conditions"] == failed
    )
    assert serving(cluster) == {old.revision: 100}


def test_what_deploy_applied_is_what_render_writes(cluster: FakeCluster) -> None:
    """`kubectl diff` of the rendered objects is empty, and applying them again changes nothing."""
    knative = target(cluster)
    knative.deploy(desired("1"), Silent(), 30.0)
    rendered = knative.objects(desired("1"), SCOPE)
    for document in rendered.objects:
        key = key_of(document)
        tried = cluster.apply(key, document, MANAGER, dry_run=True, force=False)
        assert tried == cluster.objects[key]
    reconcile(cluster, rendered)
    version = cluster.version
    reconcile(cluster, rendered)
    assert cluster.version == version
