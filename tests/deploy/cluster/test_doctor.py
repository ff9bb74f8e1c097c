"""`erless doctor`: each line passes, warns or fails for the right reason, with what mends it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kubernetes import client

from erless.deploy.cluster.doctor import Examination, Finding, examine
from erless.deploy.knative.render import render
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.cluster_settings import ClusterSettings
from erless.deploy.plain_kubernetes.render import render as render_plain
from erless.deploy.plain_kubernetes.scaling_apis import ScalingApis
from erless.specs.config import GatewayConfig
from tests.deploy.desired import cluster_settings, desired, plain_settings
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
    cluster: FakeCluster, where: ClusterSettings | None = None, store: str = "s3://recs/r"
) -> dict[str, Finding]:
    return {finding.what: finding for finding in all_findings(cluster, where, store)}


def all_findings(
    cluster: FakeCluster, where: ClusterSettings | None = None, store: str = "s3://recs/r"
) -> list[Finding]:
    """What is found of a cluster for a release whose rows lie in `store`."""
    where = where or cluster_settings()
    wanted = render(desired(store=store, dense=True), where)
    return list(examine(Examination(connection(cluster), where, wanted)))


def connection(cluster: FakeCluster) -> Api:
    return Api(client.ApiClient(client.Configuration(host=cluster.url)), 5.0)


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


def test_an_older_knative_takes_no_folder_of_the_node(cluster: FakeCluster) -> None:
    """Its definition of a Service has no hostPath, so no flag helps."""
    key = ("customresourcedefinitions.apiextensions.k8s.io", "", "services.serving.knative.dev")
    labels = cluster.objects[key]["metadata"]["labels"] = {"app.kubernetes.io/version": "1.16.2"}
    flag = "kubernetes.podspec-volumes-hostpath"
    set_config(cluster, "features", {flag: "enabled"})
    found = ask(cluster, store="/srv/releases")[flag]
    assert (found.level, found.mend) == (
        "fail",
        "a newer Knative, or a claim: store_volume.claim",
    )
    labels["app.kubernetes.io/version"] = "1.17.0"
    assert ask(cluster, store="/srv/releases")[flag].level == "pass"


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


def test_every_missing_permission_is_listed_though_reads_are_refused(cluster: FakeCluster) -> None:
    """A user without cluster-wide rights: the first refused read used to end the examination."""
    cluster.denied = {
        ("get", "customresourcedefinitions"),
        ("list", "nodes"),
        ("get", "configmaps"),
        ("list", "deployments"),
        ("patch", "podautoscalers"),
        ("create", "secrets"),
    }
    found = all_findings(cluster)
    missing = [finding.fact for finding in found if finding.what == "permission"]
    assert len(missing) == len(cluster.denied)
    for verb, plural in cluster.denied:
        assert any(f"you may not {verb} {plural}" in fact for fact in missing)
    skipped = {finding.what for finding in found if finding.fact.startswith("not checked: ")}
    assert {"nodes", "features", "timeouts"} <= skipped
    assert "image gateway" in {finding.what for finding in found}  # the other checks went on


def test_permissions_to_one_kind_are_one_line_with_what_grants_them(cluster: FakeCluster) -> None:
    """One `kubectl create role` for each verb: the second fails, and no role binds anybody."""
    cluster.denied = {("patch", "secrets"), ("create", "secrets")}
    found = ask(cluster)["permission"]
    assert found.fact == "you may not patch, create secrets in erless"
    assert found.mend.startswith("an administrator: erless cluster init; and you in the group")


def test_an_ingress_that_may_not_be_looked_at_is_told(cluster: FakeCluster) -> None:
    """Without it `predict` and `loadtest` do not find a gateway whose name is in no DNS."""
    cluster.denied = {("list", "services")}
    facts = [finding.fact for finding in all_findings(cluster) if finding.what == "permission"]
    assert any("you may not list services in kourier-system or" in fact for fact in facts)
    known = cluster_settings(gateway_address="192.0.2.1:80")
    facts = [finding.fact for finding in all_findings(cluster, known)]
    assert not any("kourier-system" in fact for fact in facts)


def test_a_public_gateway_needs_a_domain_that_leads_in(cluster: FakeCluster) -> None:
    public = replace(cluster_settings(), gateway=GatewayConfig(visibility="public"))
    found = ask(cluster, public)["domain"]
    assert (found.level, found.mend) == ("fail", "erless cluster init --domain DOMAIN")
    set_config(cluster, "domain", {"_example": "…", "svc.cluster.local": "selector:\n  app: x\n"})
    assert ask(cluster, public)["domain"].level == "fail"
    assert ask(cluster)["domain"].level == "pass"  # not public: nothing is missing
    set_config(cluster, "domain", {"recs.example.com": ""})
    assert ask(cluster, public)["domain"].fact == "recs.example.com"


def test_a_store_that_cannot_be_read_fails(cluster: FakeCluster, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    examination = Examination(
        connection(cluster), cluster_settings(), None, str(tmp_path / "empty")
    )
    store = {finding.what: finding for finding in examine(examination)}["store"]
    assert store.level == "fail"


def test_functions_that_need_longer_than_the_cluster_allows_fail(cluster: FakeCluster) -> None:
    """780 s of cold start: what the revision asks for is compared, not what it was capped to."""
    slow = cluster_settings(load_mb_per_s=0.15, max_timeout_s=900)
    found = ask(cluster, slow)["timeouts"]
    assert found.level == "fail"
    assert "the cluster allows 600" in found.fact
    set_config(cluster, "defaults", {"max-revision-timeout-seconds": "900"})
    assert ask(cluster, slow)["timeouts"].level == "pass"


def test_without_knative_it_asks_what_autoscalers_go_by(cluster: FakeCluster) -> None:
    settings = plain_settings()
    wanted = render_plain(desired(), settings, ScalingApis())
    cluster.denied = {("delete", "httpscaledobjects"), ("list", "revisions")}  # not needed

    def found() -> dict[str, Finding]:
        examination = Examination(connection(cluster), settings, wanted)
        return {finding.what: finding for finding in examine(examination)}

    first = found()
    assert first["autoscaling"].level == "warn"
    assert first["scale to zero"].level == "warn"
    assert first["permissions"].level == "pass"
    assert "Knative" not in first
    cluster.resources["/apis/metrics.k8s.io/v1beta1"] = ["nodes", "pods"]
    assert found()["autoscaling"].fact.startswith("by CPU")
    cluster.resources["/apis/custom.metrics.k8s.io/v1beta1"] = ["pods/erless_requests"]
    assert found()["autoscaling"].fact == "by the pods' metric erless_requests"
    cluster.denied = {("watch", "deployments")}
    assert found()["permission"].fact == "you may not watch deployments.apps in erless"


def test_long_names_and_flags_of_placement_are_asked_for(cluster: FakeCluster) -> None:
    set_config(cluster, "domain", {"recs.example.com": ""})
    set_config(cluster, "network", {"domain-template": "{{.Name}}-{{.Namespace}}.{{.Domain}}"})
    zone, first = "topology.kubernetes.io/zone", {"gateway": {"priority_class": "serving"}}
    where = cluster_settings(namespace="n" * 50, spread_over=zone, placement=first)
    found = ask(cluster, replace(where, gateway=GatewayConfig(visibility="public")))
    assert found["names"].level == "fail"
    assert "has 70 characters, 63 are allowed" in found["names"].fact  # under the tag `next`
    for flag in ("priorityclassname", "topologyspreadconstraints"):
        assert found[f"kubernetes.podspec-{flag}"].level == "fail"


def test_pods_that_shall_grow_in_place_need_a_cluster_that_does_it(cluster: FakeCluster) -> None:
    assert "resize" not in ask(cluster)
    wanted = cluster_settings(cpu_limits=True, resize=True)
    assert ask(cluster, wanted)["resize"].level == "pass"
    cluster.resizes = False
    found = ask(cluster, wanted)["resize"]
    assert found.level == "fail" and "v1.33.0" in found.fact and "1.35" in found.fact
