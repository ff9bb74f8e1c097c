"""The target without Knative against a server that speaks the API, and what it renders."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from erless.deploy.knative.target import KnativeTarget
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.names import GATEWAY, SIZING, Scope
from erless.deploy.kubernetes.pod_names import PLAIN
from erless.deploy.kubernetes.pod_sizing import PodSizing
from erless.deploy.kubernetes.schema import check_objects, findings
from erless.deploy.plain_kubernetes.render import render
from erless.deploy.plain_kubernetes.scaling_apis import KEDA_CRD, ScalingApis
from erless.deploy.plain_kubernetes.target import KubernetesTarget
from erless.deploy.target import FunctionState, served_model
from erless.errors import DeployError, NotDeployedError, SeveralModelsError
from erless.progress import Silent
from erless.specs.config import Config
from erless.specs.plan import Tier
from tests.deploy.desired import IMAGES, desired, digest_of, plain_settings, with_status
from tests.deploy.fake_cluster import DEPLOYMENTS, FakeCluster

SPACE = "recs"
SCOPE = Scope(SPACE)
TIMEOUT_S = 30.0
GOLDEN = Path(__file__).with_name("objects.yaml")
APIS = "/apis/custom.metrics.k8s.io/v1beta1"


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()
    yield fake
    fake.close()


def target(cluster: FakeCluster, model: str | None = None, **options: Any) -> KubernetesTarget:
    section = {"images": IMAGES, "namespace": SPACE, "gateway_address": "127.0.0.1:9", **options}
    config = Config.model_validate({"targets": {"kubernetes": section, "model": model}})
    api = Api(client.ApiClient(client.Configuration(host=cluster.url)), 10.0)
    return KubernetesTarget(config, api=api)


def deploy(cluster: FakeCluster, version: str = "1", **options: Any) -> str:
    wanted = desired(version, changed=(Tier.HOT,))
    target(cluster, **options).deploy(wanted, Silent(), TIMEOUT_S)
    return wanted.release.digest


def hot(version: str) -> str:
    return SCOPE.shard(digest_of(f"hot-{version}"))


def replicas(cluster: FakeCluster) -> dict[str, int]:
    found = cluster.find(DEPLOYMENTS, SPACE)
    return {each["metadata"]["name"]: each["spec"]["replicas"] for each in found}


def pointer(cluster: FakeCluster) -> str:
    selector = cluster.get("services", SPACE, GATEWAY)["spec"]["selector"]
    return str(selector[PLAIN.revision])


def test_objects_are_the_reviewed_ones() -> None:
    """Write the file anew by deleting it, and read the difference before committing it."""
    rendered = render(desired(dense=True), plain_settings(pod_monitor=True), ScalingApis())
    check_objects(rendered.objects)
    for each in rendered.objects:
        each["metadata"]["labels"]["app.kubernetes.io/version"] = "VERSION"
    text = yaml.safe_dump_all(rendered.objects, sort_keys=False, width=1000)
    if not GOLDEN.exists():
        GOLDEN.write_text(text)
        pytest.fail(f"{GOLDEN} was absent and is written: review it")
    assert text == GOLDEN.read_text()


def test_definitions_find_a_misspelt_field_and_an_image_by_tag() -> None:
    rendered = render(desired(), plain_settings(), ScalingApis())
    deployment = next(each for each in rendered.objects if each["kind"] == "Deployment")
    deployment["spec"]["minReadySecond"] = 1
    deployment["spec"]["template"]["spec"]["containers"][0]["image"] = "erless/sparse:latest"
    found = list(findings(deployment))
    assert any("spec.minReadySecond: DeploymentSpec has no such field" in each for each in found)
    assert any("is not named by digest" in each for each in found)


def test_autoscalers_go_by_what_the_cluster_measures() -> None:
    def metric(apis: ScalingApis) -> Any:
        objects = render(desired(), plain_settings(), apis).objects
        found = {
            each["metadata"]["name"]: each
            for each in objects
            if each["kind"] == "HorizontalPodAutoscaler"
        }
        assert found[hot("1")]["spec"]["minReplicas"] == 2
        return found[hot("1")]["spec"]["metrics"][0]

    # 700 requests/s and 0.5 vCPU a replica, of which 70 % are to be used
    assert metric(ScalingApis(custom=True))["pods"]["target"]["averageValue"] == "490"
    assert metric(ScalingApis())["resource"]["target"]["averageValue"] == "350m"


def test_pods_that_are_resized_carry_their_sizing_and_are_added_last() -> None:
    wanted = with_status(desired())
    for resize in (False, True):
        settings = plain_settings(cpu_limits=True, cpu_overcommit=4, resize=resize)
        rendered = render(wanted, settings, ScalingApis())
        by_kind = {
            each["kind"]: each for each in rendered.objects if each["metadata"]["name"] == hot("1")
        }
        notes = by_kind["Deployment"]["spec"]["template"]["metadata"]["annotations"]
        wants = by_kind["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["resource"]["target"]
        if resize:
            sizing = PodSizing.model_validate_json(notes[SIZING])
            assert (sizing.vcpu, sizing.most_vcpu, sizing.overcommit) == (0.5, 1.0, 4)
            assert wants["averageValue"] == "700m"  # 70 % of the largest size
        else:
            assert SIZING not in notes and wants["averageValue"] == "350m"
        gateway = rendered.candidate[0]["spec"]["template"]["metadata"]["annotations"]
        assert SIZING not in gateway


def test_whoever_deploys_is_told_who_changes_sizes(cluster: FakeCluster) -> None:
    wanted = with_status(desired())
    for resize, told in ((False, "targets.kubernetes.resize is off"), (True, "`erless autoscale`")):
        notes = target(cluster, cpu_limits=True, resize=resize).notes(wanted, "")
        assert any(told in note for note in notes)


def test_with_keda_cold_functions_rest_and_are_called_through_its_interceptor() -> None:
    rendered = render(desired(), plain_settings(), ScalingApis(zero=True))
    check_objects(rendered.objects)
    by_kind: dict[str, set[str]] = {}
    for each in rendered.objects:
        by_kind.setdefault(each["kind"], set()).add(each["metadata"]["name"])
    cold = SCOPE.shard(digest_of("cold-1"))
    assert cold in by_kind["HTTPScaledObject"]
    assert hot("1") in by_kind["HorizontalPodAutoscaler"]
    assert cold not in by_kind["HorizontalPodAutoscaler"]
    scaler = next(
        each["spec"]
        for each in rendered.objects
        if each["kind"] == "HTTPScaledObject" and each["metadata"]["name"] == cold
    )
    assert scaler["scaleTargetRef"]["service"] == f"{cold}-pods"
    # its own answer may take as long as a cold start, where the interceptor's default is 0.5 s
    assert int(scaler["timeouts"]["responseHeader"].removesuffix("s")) >= 30
    services = {
        e["metadata"]["name"]: e["spec"] for e in rendered.objects if e["kind"] == "Service"
    }
    assert services[cold]["type"] == "ExternalName"
    assert services[f"{cold}-pods"]["selector"] == {PLAIN.service: cold}
    container = rendered.candidate[0]["spec"]["template"]["spec"]["containers"][0]
    urls = next(each for each in container["env"] if each["name"] == "ERLESS_SHARD_URLS")["value"]
    assert f"http://{cold}.erless.svc.cluster.local:8080" in urls
    assert f'http://{hot("1")}.erless.svc.cluster.local"' in urls


def test_the_cluster_says_what_it_scales_by(cluster: FakeCluster) -> None:
    done = target(cluster).deploy(desired(), Silent(), TIMEOUT_S)
    assert "2 functions that may rest at zero keep a replica each" in done.note
    assert "no metrics API" in done.note
    key = ("customresourcedefinitions.apiextensions.k8s.io", "", KEDA_CRD)
    cluster.store(key, {"metadata": {"name": KEDA_CRD}})
    done = target(cluster).deploy(desired("2"), Silent(), TIMEOUT_S)
    assert "rest at zero" not in done.note
    assert cluster.find("httpscaledobjects.http.keda.sh", SPACE)
    cluster.resources[APIS] = ["pods/erless_requests"]
    assert "no metrics API" not in target(cluster).deploy(desired(), Silent(), TIMEOUT_S).note
    scaler = cluster.get("horizontalpodautoscalers.autoscaling", SPACE, hot("1"))
    assert scaler["spec"]["metrics"][0]["pods"]["metric"]["name"] == "erless_requests"


def test_deploys_and_deploying_again_changes_nothing(cluster: FakeCluster) -> None:
    release = deploy(cluster)
    assert release[:16] in pointer(cluster)
    assert replicas(cluster)[hot("1")] == 2  # its plan's lowest
    wanted = desired("1", changed=(Tier.HOT,))
    assert {each.action for each in target(cluster).diff(wanted)} == {"keep"}
    generations = {
        each["metadata"]["name"]: each["metadata"]["generation"]
        for each in cluster.find(DEPLOYMENTS, SPACE)
    }
    deploy(cluster)
    assert generations == {
        each["metadata"]["name"]: each["metadata"]["generation"]
        for each in cluster.find(DEPLOYMENTS, SPACE)
    }
    status = target(cluster).status()
    assert (status.target, status.release) == ("kubernetes", release)
    assert status.url == f"http://{GATEWAY}.{SPACE}.svc.cluster.local"
    assert {each.state for each in status.functions} == {FunctionState.IDLE}


def test_the_next_release_rests_what_only_the_old_one_calls_and_a_rollback_wakes_it(
    cluster: FakeCluster,
) -> None:
    old = deploy(cluster, "1")
    gateway = pointer(cluster)
    changes = {
        each.what: each.action for each in target(cluster).diff(desired("2", changed=(Tier.HOT,)))
    }
    assert (changes["hot-0"], changes["cold-0"], changes["gateway"]) == ("update", "keep", "update")
    new = deploy(cluster, "2")
    assert pointer(cluster) != gateway
    now = replicas(cluster)
    assert (now[hot("1")], now[hot("2")], now[gateway], now[pointer(cluster)]) == (0, 2, 0, 1)
    kept = target(cluster).deployments()
    assert [(each.release, each.current) for each in kept] == [(new, True), (old, False)]
    shown = [each.name for each in target(cluster).status().functions]
    assert len(shown) == len(set(shown)) == 4  # what rests is not shown

    back = target(cluster).rollback(None, Silent(), TIMEOUT_S)
    assert (back.release, pointer(cluster)) == (old, gateway)
    now = replicas(cluster)
    assert (now[hot("1")], now[hot("2")], now[gateway]) == (2, 0, 1)
    with pytest.raises(NotDeployedError, match="before the current"):
        target(cluster).rollback(None, Silent(), TIMEOUT_S)
    assert deploy(cluster, "2") == new
    for version in "34":
        deploy(cluster, version, keep_releases=2)
    left = set(replicas(cluster))
    assert not {hot("1"), hot("2"), gateway} & left
    assert {hot("3"), hot("4")} <= left
    names = {each["metadata"]["name"] for each in cluster.find("services", SPACE)}
    assert not {hot("1"), hot("2")} & names


def test_a_pod_that_will_not_run_says_why_and_the_old_release_serves_on(
    cluster: FakeCluster,
) -> None:
    deploy(cluster, "1")
    before = pointer(cluster)
    waiting = {"reason": "ImagePullBackOff", "message": "manifest unknown"}
    container = {"name": "user-container", "image": "sparse", "state": {"waiting": waiting}}
    cluster.pod_trouble = {hot("2"): {"containerStatuses": [container]}}
    with pytest.raises(DeployError, match="does not start: .*cannot be pulled: manifest unknown"):
        deploy(cluster, "2")
    time.sleep(0.3)  # the double would have made it ready by now
    assert pointer(cluster) == before
    cluster.pod_trouble = {}
    deploy(cluster, "2")
    assert pointer(cluster) != before


def test_two_models_and_an_end(cluster: FakeCluster) -> None:
    deploy(cluster)
    ads = desired(model="ads")
    target(cluster, "ads").deploy(ads, Silent(), TIMEOUT_S)
    with pytest.raises(SeveralModelsError):
        target(cluster).status()
    found = {served_model(each.deployments()) for each in target(cluster).by_model()}
    assert found == {"ads", "ranker"}
    target(cluster, "ads").destroy(Silent(), TIMEOUT_S)
    assert not [key for key in cluster.objects if "ads" in key[2]]
    target(cluster).destroy(Silent(), TIMEOUT_S)
    assert [key for key in cluster.objects if SPACE in key] == []
    with pytest.raises(NotDeployedError):
        target(cluster).status()


def test_targets_do_not_take_over_each_others_names(cluster: FakeCluster) -> None:
    deploy(cluster)
    section = {"images": IMAGES, "namespace": SPACE}
    config = Config.model_validate({"targets": {"knative": section}})
    api = Api(client.ApiClient(client.Configuration(host=cluster.url)), 10.0)
    knative = KnativeTarget(config, api=api)
    with pytest.raises(DeployError, match="destroy what target kubernetes deployed there"):
        knative.deploy(desired(), Silent(), TIMEOUT_S)
    target(cluster).destroy(Silent(), TIMEOUT_S)
    knative.deploy(desired(), Silent(), TIMEOUT_S)
    with pytest.raises(DeployError, match="target knative has deployed this model"):
        deploy(cluster)
