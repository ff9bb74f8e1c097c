"""`erless doctor`: each line passes, warns or fails for the right reason, with what mends it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client

from erless.deploy.cluster.doctor import Finding, examine
from erless.deploy.knative.cluster_settings import ClusterSettings
from erless.deploy.knative.render import render
from erless.deploy.kubernetes.api import Api
from tests.deploy.desired import cluster_settings, desired
from tests.deploy.fake_cluster import FakeCluster

SERVING = "knative-serving"


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    """Knative as it is shipped: one node, every deployment up, no flag changed."""
    fake = FakeCluster()
    for name in ("controller", "activator"):
        fake.store(
            ("deployments.apps", SERVING, name),
            {
                "metadata": {"name": name},
                "spec": {"replicas": 1},
                "status": {"availableReplicas": 1},
            },
        )
    node = {"metadata": {"name": "n", "labels": {"erless.dev/pool": "hot"}}, "status": {}}
    fake.store(("nodes", "", "n"), node)
    set_config(fake, "network", {"ingress-class": "kourier"})
    yield fake
    fake.close()


def set_config(cluster: FakeCluster, name: str, data: dict[str, str]) -> None:
    name = f"config-{name}"
    cluster.store(("configmaps", SERVING, name), {"metadata": {"name": name}, "data": data})


def ask(
    cluster: FakeCluster, where: ClusterSettings | None = None, **more: Any
) -> dict[str, Finding]:
    where = where or cluster_settings()
    api = Api(client.ApiClient(client.Configuration(host=cluster.url)), 5.0)
    wanted = render(desired(store=more.pop("store", "s3://recs/r"), dense=True), where)
    return {each.what: each for each in examine(api, where, wanted)}


def test_a_cluster_as_shipped_lacks_only_what_its_functions_need(cluster: FakeCluster) -> None:
    found = ask(cluster)
    failed = {what for what, each in found.items() if each.level == "fail"}
    assert failed == {"image gateway", "image sparse"}  # registry.example is nobody's
    assert found["Knative's health"].fact == "2 deployments available"
    assert found["permissions"].level == "pass"
    assert found["pod-is-always-schedulable"].level == "warn"


def test_flags_are_asked_for_only_where_they_are_needed_and_come_with_the_patch(
    cluster: FakeCluster,
) -> None:
    assert "kubernetes.podspec-nodeselector" not in ask(cluster)
    placed = cluster_settings(placement={"hot": {"node_selector": {"erless.dev/pool": "hot"}}})
    flag = ask(cluster, placed)["kubernetes.podspec-nodeselector"]
    assert flag.level == "fail"
    assert flag.mend == (
        "kubectl -n knative-serving patch configmap config-features --type merge "
        '-p \'{"data":{"kubernetes.podspec-nodeselector":"enabled"}}\''
    )
    set_config(cluster, "features", {"kubernetes.podspec-nodeselector": "enabled"})
    assert ask(cluster, placed)["kubernetes.podspec-nodeselector"].level == "pass"
    folder = ask(cluster, store="/srv/releases")
    assert folder["kubernetes.podspec-volumes-hostpath"].level == "fail"


def test_a_mesh_that_is_not_there_is_not_to_be_looked_for(cluster: FakeCluster) -> None:
    found = ask(cluster)["mesh-compatibility-mode"]
    assert (found.level, found.mend) == (
        "warn",
        "kubectl -n knative-serving patch configmap config-network --type merge "
        '-p \'{"data":{"mesh-compatibility-mode":"disabled"}}\'',
    )
    set_config(cluster, "network", {"ingress-class": "kourier", found.what: "disabled"})
    assert ask(cluster)[found.what].level == "pass"
    set_config(cluster, "network", {"ingress-class": "istio.ingress.networking.knative.dev"})
    assert ask(cluster)[found.what].level == "pass"  # pods may be in a mesh


def test_what_is_down_off_or_forbidden_fails(cluster: FakeCluster) -> None:
    down = {"metadata": {"name": "webhook"}, "spec": {"replicas": 1}, "status": {}}
    cluster.store(("deployments.apps", SERVING, "webhook"), down)
    set_config(cluster, "autoscaler", {"enable-scale-to-zero": "false"})
    set_config(cluster, "defaults", {"max-revision-timeout-seconds": "30"})
    cluster.denied = {("patch", "services"), ("get", "pods")}
    found = ask(cluster)
    assert found["Knative's health"].fact == "not available: webhook"
    assert found["enable-scale-to-zero"].level == "fail"
    assert "the cluster allows 30" in found["timeouts"].fact
    assert "may not" in found["permission"].fact


def test_places_and_gpus_that_no_node_has_are_told(cluster: FakeCluster) -> None:
    where = cluster_settings(placement={"cold": {"node_selector": {"erless.dev/pool": "cold"}}})
    found = ask(cluster, where)
    missing = [each for what, each in found.items() if what.startswith("nodes for erless-s-")]
    assert [each.level for each in missing] == ["warn"]
    assert "erless.dev/pool=cold" in missing[0].mend
    gpus = [each for what, each in found.items() if what.startswith("GPUs for")]
    assert [each.level for each in gpus] == ["warn"]
    node = {"metadata": {"name": "g"}, "status": {"allocatable": {"nvidia.com/gpu": "2"}}}
    cluster.store(("nodes", "", "g"), node)
    gpus = [each for what, each in ask(cluster).items() if what.startswith("GPUs for")]
    assert [(each.level, each.fact) for each in gpus] == [("pass", "2 of nvidia.com/gpu")]


def test_secrets_and_claims_that_are_named_must_be_there(cluster: FakeCluster) -> None:
    where = cluster_settings(credentials_secret="keys")  # noqa: S106
    assert ask(cluster, where)["Secret keys"].level == "fail"
    cluster.store(("secrets", "erless", "keys"), {"metadata": {"name": "keys"}})
    assert ask(cluster, where)["Secret keys"].level == "pass"


def test_no_knative_and_no_cluster_end_it(cluster: FakeCluster) -> None:
    cluster.remove(
        ("customresourcedefinitions.apiextensions.k8s.io", "", "services.serving.knative.dev")
    )
    found = ask(cluster)
    assert found["Knative"].mend == "erless cluster init"
    cluster.close()
    assert list(ask(cluster)) == ["cluster"]
