"""The Knative target against a server that speaks the API: apply, wait, cut over, interruptions."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from erless.deploy.desired_release import load_desired
from erless.deploy.knative.target import KnativeTarget
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.kinds import KSERVICE, LEASE
from erless.deploy.kubernetes.lock import locked
from erless.deploy.kubernetes.names import GATEWAY, HISTORY, Scope
from erless.deploy.target import FunctionState, FunctionStatus, served_model
from erless.errors import (
    ConfigError,
    ConflictError,
    DeployError,
    ForbiddenError,
    NotDeployedError,
    OtherModelError,
    SeveralModelsError,
)
from erless.progress import Silent
from erless.specs.config import Config
from erless.specs.plan import Tier
from tests.conftest import Cli
from tests.deploy.desired import IMAGES, desired, digest_of
from tests.deploy.fake_cluster import MIN_SCALE, PODS, REVISIONS, SERVICES, FakeCluster, Refused
from tests.releases import make_release

SPACE = "recs"
SCOPE = Scope(SPACE)
LOCK = SCOPE.lock
TIMEOUT_S = 30.0


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()
    yield fake
    fake.close()


def connection(cluster: FakeCluster, retry_s: float = 10.0) -> Api:
    return Api(client.ApiClient(client.Configuration(host=cluster.url)), retry_s)


def target(cluster: FakeCluster, **options: Any) -> KnativeTarget:
    model = options.pop("model", None)
    knative = {"images": IMAGES, "namespace": SPACE, "gateway_address": "127.0.0.1:9", **options}
    config = Config.model_validate({"targets": {"knative": knative, "model": model}})
    return KnativeTarget(config, api=connection(cluster))


def deploy(cluster: FakeCluster, version: str = "1", **options: Any) -> str:
    wanted = desired(version, **{k: options.pop(k) for k in ("changed",) if k in options})
    target(cluster, **options).deploy(wanted, Silent(), TIMEOUT_S)
    return wanted.release.digest


def traffic(cluster: FakeCluster) -> dict[str, int]:
    """Release (first digits) → percent, as the gateway's route has it."""
    lines = cluster.get(SERVICES, SPACE, GATEWAY)["status"]["traffic"]
    return {line["revisionName"].split("-")[2]: line["percent"] for line in lines}


def shard(tier: Tier, version: str = "1") -> str:
    return SCOPE.shard(digest_of(f"{tier.value}-{version}"))


def services(cluster: FakeCluster) -> set[str]:
    return {each["metadata"]["name"] for each in cluster.find(SERVICES, SPACE)}


def lowest(cluster: FakeCluster, name: str) -> str:
    revision = cluster.get(SERVICES, SPACE, name)["status"]["latestReadyRevisionName"]
    notes = cluster.get(REVISIONS, SPACE, revision)["metadata"]["annotations"]
    return str(notes[MIN_SCALE])


def test_deploy_then_again_changes_nothing(cluster: FakeCluster) -> None:
    release = deploy(cluster)
    assert traffic(cluster) == {release[:16]: 100}
    found = target(cluster).deployments()
    assert [(each.release, each.current) for each in found] == [(release, True)]
    versions = {
        name: cluster.get(SERVICES, SPACE, name)["metadata"]["generation"]
        for name in services(cluster)
    }
    deploy(cluster)
    assert versions == {
        name: cluster.get(SERVICES, SPACE, name)["metadata"]["generation"]
        for name in services(cluster)
    }
    assert {each.action for each in target(cluster).diff(desired("1"))} == {"keep"}


def test_next_release_keeps_what_did_not_change_and_rests_the_old(cluster: FakeCluster) -> None:
    old = deploy(cluster, "1", changed=(Tier.HOT,))
    kept = cluster.get(SERVICES, SPACE, shard(Tier.COLD))["status"]["latestReadyRevisionName"]
    new = deploy(cluster, "2", changed=(Tier.HOT,))
    assert traffic(cluster) == {new[:16]: 100}
    # the unchanged shard is the same revision; the old hot shard still answers, at rest
    live = cluster.get(SERVICES, SPACE, shard(Tier.COLD))["status"]
    assert live["latestReadyRevisionName"] == kept
    assert lowest(cluster, shard(Tier.HOT, "1")) == "0"
    assert lowest(cluster, shard(Tier.HOT, "2")) == "2"
    found = target(cluster).deployments()
    assert [(each.release, each.current) for each in found] == [(new, True), (old, False)]


def test_rollback_moves_the_pointer_and_revives_what_it_needs(cluster: FakeCluster) -> None:
    old = deploy(cluster, "1", changed=(Tier.HOT,))
    new = deploy(cluster, "2", changed=(Tier.HOT,))
    cluster.idle(SPACE)
    back = target(cluster).rollback(None, Silent(), TIMEOUT_S)
    assert back.release == old
    assert traffic(cluster) == {old[:16]: 100}
    assert lowest(cluster, shard(Tier.HOT, "1")) == "2"
    assert lowest(cluster, shard(Tier.HOT, "2")) == "0"
    with pytest.raises(NotDeployedError, match="before the current"):
        target(cluster).rollback(None, Silent(), TIMEOUT_S)
    assert target(cluster).rollback(new[:12], Silent(), TIMEOUT_S).release == new
    with pytest.raises(NotDeployedError, match="no kept release begins with"):
        target(cluster).rollback("feed", Silent(), TIMEOUT_S)
    again = deploy(cluster, "1", changed=(Tier.HOT,))  # a kept revision is found, not made twice
    assert traffic(cluster) == {again[:16]: 100}


def test_cold_functions_are_awake_when_traffic_moves_and_may_sleep_after(
    cluster: FakeCluster,
) -> None:
    """Group prewarm: at the cut-over no function of the new release is at zero."""
    deploy(cluster, "1")
    cluster.idle(SPACE)
    scale: dict[str, int] = {}

    def look(method: str, path: str, body: dict[str, Any]) -> None:
        lines = body.get("spec", {}).get("traffic", []) if path.endswith(GATEWAY) else []
        if method == "PATCH" and len(lines) == 1 and not scale:
            for each in cluster.find("podautoscalers.autoscaling.internal.knative.dev", SPACE):
                labels = each["metadata"]["labels"]
                name = labels["serving.knative.dev/service"]
                scale[name] = max(scale.get(name, 0), each["status"]["actualScale"])

    cluster.before = look
    deploy(cluster, "2")
    called = {shard(Tier.HOT), shard(Tier.FROZEN), shard(Tier.COLD, "2"), GATEWAY}
    assert {name for name in called if not scale[name]} == set()
    assert lowest(cluster, shard(Tier.FROZEN)) == "0"  # and may sleep again


def test_old_releases_go_with_their_shards_when_none_needs_them(cluster: FakeCluster) -> None:
    for version in "1234":
        deploy(cluster, version, keep_releases=2)
    kept = {shard(Tier.COLD, "3"), shard(Tier.COLD, "4")}
    assert {name for name in services(cluster) if name.startswith("erless-s-")} == kept | {
        shard(Tier.HOT),
        shard(Tier.FROZEN),
    }
    gateways = [
        each["metadata"]["name"]
        for each in cluster.find(REVISIONS, SPACE)
        if each["metadata"]["name"].startswith(GATEWAY)
    ]
    assert len(gateways) == 2


def test_canary_gets_its_share_until_the_next_deploy_completes_it(cluster: FakeCluster) -> None:
    old = deploy(cluster, "1")
    new = deploy(cluster, "2", canary_percent=10)
    assert traffic(cluster) == {old[:16]: 90, new[:16]: 10}
    assert [each.release for each in target(cluster).deployments()] == [old]
    assert shard(Tier.COLD, "1") in services(cluster)
    deploy(cluster, "2")
    assert traffic(cluster) == {new[:16]: 100}


def test_a_dry_run_of_a_canary_shows_the_shares_that_the_deploy_will_give(
    cluster: FakeCluster,
) -> None:
    old = deploy(cluster, "1")
    checked = target(cluster, canary_percent=10).validate(desired("2"))
    (gateway,) = [
        each
        for each in checked.objects
        if each["apiVersion"] == KSERVICE.api and each["metadata"]["name"] == GATEWAY
    ]
    shown = {line["revisionName"]: line["percent"] for line in gateway["spec"]["traffic"]}
    assert {
        percent: name.startswith(f"{GATEWAY}-{old[:16]}") for name, percent in shown.items()
    } == {
        90: True,
        10: False,
    }
    new = deploy(cluster, "2", canary_percent=10)
    assert traffic(cluster) == {old[:16]: 90, new[:16]: 10}


def test_another_model_takes_the_place_of_the_served_one_only_when_told_to(
    cluster: FakeCluster,
) -> None:
    deploy(cluster, "1")
    wanted = desired("2")
    model = wanted.release.model.model_copy(update={"name": "other"})
    release = wanted.release.model_copy(update={"model": model})
    other = replace(wanted, release=release)
    with pytest.raises(OtherModelError, match="model 'ranker' answers queries here, not 'other'"):
        target(cluster).deploy(other, Silent(), TIMEOUT_S)
    assert served_model(target(cluster).deployments()) == "ranker"
    target(cluster).deploy(replace(other, replace_model=True), Silent(), TIMEOUT_S)
    assert served_model(target(cluster).deployments()) == "other"


def test_two_models_live_in_one_namespace_and_know_nothing_of_each_other(
    cluster: FakeCluster,
) -> None:
    """Content that both hold is not shared: each has its own functions, secret and policies."""
    recs, ads = desired("1"), desired("1", model="ads")
    first, second = target(cluster), target(cluster, model="ads")
    first.deploy(recs, Silent(), TIMEOUT_S)
    with pytest.raises(OtherModelError, match="'ranker' answers queries here, not 'ads'"):
        first.deploy(ads, Silent(), TIMEOUT_S)
    first_objects = set(cluster.objects)
    second.deploy(ads, Silent(), TIMEOUT_S)
    named = {key for key in set(cluster.objects) - first_objects if key[0] != PODS}
    assert all("ads" in key[2] for key in named)
    assert {"erless-gateway-ads", "erless-secret-ads"} <= {key[2] for key in named}
    policy = cluster.get("networkpolicies.networking.k8s.io", SPACE, "erless-shards-ads")
    assert policy["spec"]["podSelector"]["matchLabels"]["erless.dev/model"] == "ads"
    callers = policy["spec"]["ingress"][0]["from"]
    assert callers[-1]["podSelector"]["matchLabels"]["erless.dev/model"] == "ads"

    with pytest.raises(SeveralModelsError, match="'ads', 'ranker'|'ranker', 'ads'"):
        target(cluster).status()
    by_model = {served_model(each.deployments()): each for each in target(cluster).by_model()}
    assert by_model["ads"].status().release == ads.release.digest
    assert by_model["ranker"].status().release == recs.release.digest
    with pytest.raises(NotDeployedError, match="'adz' is not deployed here"):
        target(cluster, model="adz").status()

    # the next releases find their own, and a rollback of one leaves the other
    target(cluster).deploy(desired("2"), Silent(), TIMEOUT_S)
    target(cluster, keep_releases=2, model="ads").deploy(
        desired("2", model="ads"), Silent(), TIMEOUT_S
    )
    second.rollback(None, Silent(), TIMEOUT_S)
    kept = {name: each.deployments() for name, each in by_model.items()}
    assert [each.current for each in kept["ads"]] == [False, True]
    assert [each.current for each in kept["ranker"]] == [True, False]

    second.destroy(Silent(), TIMEOUT_S)
    assert not [key for key in cluster.objects if "ads" in key[2]]
    assert cluster.get("serviceaccounts", SPACE, "erless-functions")
    assert target(cluster).status().release == desired("2").release.digest
    target(cluster).destroy(Silent(), TIMEOUT_S)
    assert [key for key in cluster.objects if SPACE in key] == []


def trouble(**state: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "user-container", "image": "sparse", **state}]}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (
            trouble(
                state={"waiting": {"reason": "ImagePullBackOff", "message": "manifest unknown"}}
            ),
            "cannot be pulled: manifest unknown",
        ),
        (
            trouble(
                state={"waiting": {"reason": "CrashLoopBackOff"}},
                lastState={"terminated": {"reason": "OOMKilled", "exitCode": 137}},
            ),
            "out of memory",
        ),
        (
            trouble(
                state={
                    "terminated": {
                        "exitCode": 65,
                        "message": '{"level":"error","message":"shard 12: altered"}',
                    }
                }
            ),
            "an artifact is damaged or missing.*shard 12: altered",
        ),
        (
            trouble(
                state={
                    "waiting": {
                        "reason": "CreateContainerConfigError",
                        "message": 'secret "keys" not found',
                    }
                }
            ),
            'secret "keys" not found',
        ),
        (
            {
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "lastTransitionTime": "2020-01-01T00:00:00Z",
                        "message": "0/1 nodes are available: 1 Insufficient memory.",
                    }
                ]
            },
            "no node takes it: 0/1 nodes are available: 1 Insufficient memory",
        ),
    ],
)
def test_a_pod_that_will_not_run_says_why_and_the_old_release_serves_on(
    cluster: FakeCluster, status: dict[str, Any], reason: str
) -> None:
    old = deploy(cluster, "1")
    cluster.pod_trouble = {shard(Tier.COLD, "2"): status}
    with pytest.raises(DeployError, match=reason):
        deploy(cluster, "2")
    assert traffic(cluster) == {old[:16]: 100}
    # mended, the next deploy makes the failed revision again and completes
    cluster.pod_trouble = {}
    new = deploy(cluster, "2")
    assert traffic(cluster) == {new[:16]: 100}


def test_time_runs_out_with_the_reason_that_is_known(cluster: FakeCluster) -> None:
    cluster.ready_after_s = 60
    with pytest.raises(DeployError, match="not ready within 1 s"):
        target(cluster).deploy(desired(), Silent(), 1.0)


def stop_at(cluster: FakeCluster, count: int) -> None:
    """The connection is gone from the `count`-th change on: as if the deploy had been killed."""
    left = [count]

    def check(method: str, path: str, body: dict[str, Any]) -> None:
        if method in ("PATCH", "POST", "PUT", "DELETE") and LOCK not in path + str(body):
            left[0] -= 1
            if left[0] < 0:
                raise Refused(403, "killed")

    cluster.before = check


def test_interrupted_anywhere_either_release_serves_and_a_second_deploy_completes(
    cluster: FakeCluster,
) -> None:
    old = deploy(cluster, "1", changed=(Tier.HOT,))
    cluster.idle(SPACE)
    new = desired("2", changed=(Tier.HOT,)).release.digest
    for count in range(40):
        stop_at(cluster, count)
        try:
            deploy(cluster, "2", changed=(Tier.HOT,))
        except DeployError:
            served = traffic(cluster)
            assert served.get(old[:16], 0) + served.get(new[:16], 0) == 100, count
            assert 100 in served.values(), count
            continue
        break
    else:
        pytest.fail("it never completed")
    assert count > 8  # there was something to interrupt
    cluster.before = lambda *_: None
    deploy(cluster, "2", changed=(Tier.HOT,))
    assert traffic(cluster) == {new[:16]: 100}
    assert lowest(cluster, shard(Tier.HOT, "1")) == "0"


def test_watches_that_drop_and_versions_that_expire_lose_nothing(cluster: FakeCluster) -> None:
    cluster.watch_limit = 1
    cluster.ready_after_s = 0.3
    deploy(cluster, "1")

    def expire(method: str, path: str, body: dict[str, Any]) -> None:
        cluster.forgotten = cluster.version if cluster.watches % 2 else 0

    cluster.before = expire
    before = cluster.lists
    new = deploy(cluster, "2")
    assert traffic(cluster) == {new[:16]: 100}
    assert cluster.lists > before


def test_too_many_requests_are_asked_again_when_the_server_says_so(cluster: FakeCluster) -> None:
    refused: list[float] = []

    def busy(method: str, path: str, body: dict[str, Any]) -> None:
        if method == "PATCH" and len(refused) < 3:
            refused.append(time.monotonic())
            raise Refused(429, "too many requests", retry_after=1)

    cluster.before = busy
    release = deploy(cluster)
    assert traffic(cluster) == {release[:16]: 100}
    assert refused[1] - refused[0] > 0.7


def test_a_field_of_somebody_else_is_not_taken_over(cluster: FakeCluster) -> None:
    deploy(cluster)
    key = (SERVICES, SPACE, GATEWAY)
    patch = {"spec": {"template": {"spec": {"timeoutSeconds": 300}}}}
    cluster.merge(key, patch)
    cluster.owners[key]["kubectl-edit"] = {("spec", "template", "spec", "timeoutSeconds")}
    cluster.owners[key]["erless"].discard(("spec", "template", "spec", "timeoutSeconds"))
    with pytest.raises(ConflictError, match=r"timeoutSeconds belongs to kubectl-edit"):
        deploy(cluster, "2")


def test_one_deploy_at_a_time_and_a_dead_one_blocks_nobody(cluster: FakeCluster) -> None:
    deploy(cluster)
    api = connection(cluster)
    with locked(api, SCOPE), pytest.raises(ConflictError, match=f"deploys to namespace {SPACE}"):
        deploy(cluster)
    assert api.get(LEASE, SPACE, LOCK) is None
    dead = {
        "metadata": {"name": LOCK, "namespace": SPACE},
        "spec": {"holderIdentity": "gone", "leaseDurationSeconds": 1, "renewTime": "x"},
    }
    cluster.store(("leases.coordination.k8s.io", SPACE, LOCK), dead)
    deploy(cluster)


def test_destroy_removes_what_is_ours_and_spares_what_is_not(cluster: FakeCluster) -> None:
    deploy(cluster)
    target(cluster).destroy(Silent(), TIMEOUT_S)
    assert [key for key in cluster.objects if SPACE in key] == []
    target(cluster).destroy(Silent(), TIMEOUT_S)  # nothing there: nothing to do
    with pytest.raises(NotDeployedError):
        target(cluster).status()

    cluster.store(("namespaces", "", "theirs"), {"metadata": {"name": "theirs"}})
    secret = ("secrets", "theirs", "keys")
    cluster.store(secret, {"metadata": {"name": "keys", "namespace": "theirs"}})
    deploy(cluster, namespace="theirs")
    assert "labels" not in cluster.get("namespaces", "", "theirs")["metadata"]
    target(cluster, namespace="theirs").destroy(Silent(), TIMEOUT_S)
    assert {key for key in cluster.objects if "theirs" in key} == {
        secret,
        ("namespaces", "", "theirs"),
    }


def test_destroy_needs_no_right_to_what_is_not_deployed(cluster: FakeCluster) -> None:
    """A server says 403 to a deployer even of a kind that it does not have."""
    deploy(cluster)
    cluster.denied = {("list", "podmonitors")}
    with pytest.raises(ForbiddenError, match="podmonitors"):
        target(cluster, pod_monitor=True).destroy(Silent(), TIMEOUT_S)
    cluster.denied.add(("delete", "namespaces"))
    target(cluster).destroy(Silent(), TIMEOUT_S)
    assert [key for key in cluster.objects if SPACE in key] == [("namespaces", "", SPACE)]


def test_what_the_functions_are_told_to_use_must_be_there(cluster: FakeCluster) -> None:
    with pytest.raises(DeployError, match="no Secret store-keys"):
        deploy(cluster, credentials_secret="store-keys")  # noqa: S106
    cluster.remove(
        ("customresourcedefinitions.apiextensions.k8s.io", "", "services.serving.knative.dev")
    )
    with pytest.raises(DeployError, match="no Knative Serving"):
        deploy(cluster)


def test_status_tells_zero_from_waking_and_failing(cluster: FakeCluster) -> None:
    release = deploy(cluster)
    cluster.idle(SPACE)
    pod = {
        "metadata": {
            "name": "p",
            "namespace": SPACE,
            "labels": {
                "app.kubernetes.io/managed-by": "erless",
                "serving.knative.dev/revision": f"{shard(Tier.HOT)}-00001",
                "serving.knative.dev/service": shard(Tier.HOT),
            },
        },
        "spec": {"containers": [{"resources": {"requests": {"memory": "200Mi"}}}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
    cluster.store((PODS, SPACE, "p"), pod)
    status = target(cluster).status()
    assert status.release == release
    states = {each.name: each.state for each in status.functions}
    assert states["cold-0"] is FunctionState.AT_ZERO
    assert states["hot-0"] is FunctionState.IDLE
    assert status.memory_bytes == 200 * 2**20
    assert status.model_wise_bytes > 128_000_000


def test_a_deploy_tells_of_a_public_gateway_that_nobody_outside_reaches(
    cluster: FakeCluster,
) -> None:
    knative = {"images": IMAGES, "namespace": SPACE, "gateway_address": "127.0.0.1:9"}
    document = {"targets": {"knative": knative}, "gateway": {"visibility": "public"}}
    public = KnativeTarget(Config.model_validate(document), api=connection(cluster))
    assert public.deploy(desired(), Silent(), TIMEOUT_S).note == ""
    cluster.domain = "svc.cluster.local"
    note = public.deploy(desired("2"), Silent(), TIMEOUT_S).note
    assert "answers 404; `erless cluster init --domain DOMAIN`" in note
    assert target(cluster).deploy(desired(), Silent(), TIMEOUT_S).note == ""  # not public
    growing = desired()
    scaling = growing.plan.gateway.scaling.model_copy(update={"autoscaler": "status"})
    gateway = growing.plan.gateway.model_copy(update={"scaling": scaling})
    growing = replace(growing, plan=growing.plan.model_copy(update={"gateway": gateway}))
    note = target(cluster).deploy(growing, Silent(), TIMEOUT_S).note
    assert "Knative's KPA scales replicas of the planned size" in note


def test_status_gives_the_pods_own_reason_before_knatives(cluster: FakeCluster) -> None:
    deploy(cluster)
    name = shard(Tier.HOT)
    labels = {
        "app.kubernetes.io/managed-by": "erless",
        "serving.knative.dev/revision": f"{name}-00001",
        "serving.knative.dev/service": name,
    }
    killed = trouble(
        state={"waiting": {"reason": "CrashLoopBackOff"}},
        lastState={"terminated": {"reason": "OOMKilled", "exitCode": 137}},
        resources={"limits": {"memory": "200Mi"}},
    )
    meta = {"name": "p", "namespace": SPACE, "labels": labels}
    cluster.store((PODS, SPACE, "p"), {"metadata": meta, "spec": {}, "status": killed})

    def look() -> FunctionStatus:
        return next(each for each in target(cluster).status().functions if each.name == "hot-0")

    # Knative still calls the revision ready: it was, once
    assert (look().state, look().reason) == (
        FunctionState.FAILING,
        "out of memory: it took more than 200Mi",
    )
    service = cluster.get(SERVICES, SPACE, name)
    missing = {"reason": "RevisionMissing", "message": "Configuration has no ready revision"}
    service["status"]["conditions"] = [{"type": "Ready", "status": "False", **missing}]
    assert look().reason == "out of memory: it took more than 200Mi"
    cluster.remove((PODS, SPACE, "p"))
    assert look().reason.startswith("RevisionMissing: ")


def test_a_pod_that_waits_for_a_volume_says_so(cluster: FakeCluster) -> None:
    """Only an event tells of a folder that its node lacks, or of a Secret that is not there."""
    deploy(cluster, "1")
    name = shard(Tier.COLD, "2")
    cluster.pod_trouble = {name: trouble(state={"waiting": {"reason": "ContainerCreating"}})}

    def tell(_: str, path: str, __: object) -> None:
        for pod in cluster.find(PODS, SPACE) if path.endswith("/events") else ():
            about = pod["metadata"]["name"]
            event = {
                "metadata": {"name": f"{about}.1", "namespace": SPACE},
                "involvedObject": {"name": about},
                "reason": "FailedMount",
                "message": "hostPath type check failed: /srv/releases is not a directory",
            }
            cluster.store(("events", SPACE, f"{about}.1"), event)

    cluster.before = tell
    with pytest.raises(DeployError, match="FailedMount: hostPath type check failed"):
        target(cluster).deploy(desired("2"), Silent(), 4.0)
    waiting = "FailedMount: hostPath type check failed: /srv/releases is not a directory"
    assert waiting in reasons(cluster)
    cluster.denied = {("list", "events")}  # they may be read or not: nothing ends for want of them
    assert waiting not in reasons(cluster)


def reasons(cluster: FakeCluster) -> list[str]:
    """What status says of functions that fail, and of those that are on their way."""
    return [function.reason for function in target(cluster).status().functions]


def test_a_mended_cause_is_enough_though_old_pods_still_tell_of_it(cluster: FakeCluster) -> None:
    """A real cluster keeps refused pods, with their ImagePullBackOff, for a while."""
    deploy(cluster, "1")
    waiting = {"reason": "ImagePullBackOff", "message": "no basic auth credentials"}
    cluster.pod_trouble = {shard(Tier.COLD, "2"): trouble(state={"waiting": waiting})}
    with pytest.raises(DeployError, match="no basic auth"):
        deploy(cluster, "2")
    cluster.pod_trouble = {}
    cluster.stale_pods = True
    cluster.ready_after_s = 0.5
    new = deploy(cluster, "2")
    assert cluster.find(PODS, SPACE)  # they were there all the time
    assert traffic(cluster) == {new[:16]: 100}


def test_objects_are_tried_on_the_server_and_nothing_is_written(cluster: FakeCluster) -> None:
    before = dict(cluster.objects)
    checked = target(cluster).validate(desired())
    assert checked.by == "server"
    assert cluster.objects == before
    assert {each.action for each in target(cluster).diff(desired())} == {"create"}
    changes = {each.what: each for each in _after_change(cluster)}
    assert "cpu" in changes["hot-0"].detail
    cluster.close()
    gone = KnativeTarget(
        Config.model_validate({"targets": {"knative": {"images": IMAGES}}}), api=connection(cluster)
    )
    assert gone.validate(desired()).by == "schemas"


def test_a_dry_run_may_come_before_the_images(cluster: FakeCluster) -> None:
    none = Config.model_validate({"targets": {"knative": {"namespace": SPACE}}})
    bare = KnativeTarget(none, api=connection(cluster))
    checked = bare.validate(desired(dense=True))
    assert checked.missing == (
        "image of gateway functions",
        "image of sparse functions",
        "image of dense functions",
    )
    assert checked.objects == bare.validate(desired(dense=True)).objects
    with pytest.raises(ConfigError, match="no image for sparse"):
        bare.deploy(desired(), Silent(), TIMEOUT_S)
    assert target(cluster).validate(desired()).missing == ()


def _after_change(cluster: FakeCluster) -> Any:
    deploy(cluster)
    return target(cluster, cpu_overcommit=2).diff(desired())


def test_record_and_pointer_are_one_write(cluster: FakeCluster) -> None:
    """Whoever reads the gateway's Service at any moment sees a record that fits the traffic."""
    wrong: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            with cluster.changed:
                live = cluster.objects.get((SERVICES, SPACE, GATEWAY))
                if live and HISTORY in live["metadata"]["annotations"]:
                    record = live["metadata"]["annotations"][HISTORY]
                    lines = [line for line in live["spec"]["traffic"] if line["percent"] == 100]
                    if record != "[]" and lines[0]["revisionName"] not in record:
                        wrong.append(record)
            time.sleep(0.002)

    reader = threading.Thread(target=watch)
    reader.start()
    for version in "12":
        deploy(cluster, version)
    stop.set()
    reader.join()
    assert wrong == []
    assert connection(cluster).get(KSERVICE, SPACE, GATEWAY) is not None


def test_pruning_a_store_keeps_what_is_deployed(
    cluster: FakeCluster, tmp_path: Path, cli: Cli
) -> None:
    first = make_release(tmp_path, store=str(tmp_path / "store"))
    target(cluster).deploy(load_desired(first.store), Silent(), TIMEOUT_S)
    second = make_release(tmp_path / "two", store=str(tmp_path / "store"), seed=1)
    cluster.kubeconfig(tmp_path)
    options = {"kubeconfig": "kubeconfig", "namespace": SPACE, "gateway_address": "127.0.0.1:9"}
    config = {"store": "store", "targets": {"knative": options}}
    (tmp_path / "erless.yaml").write_text(json.dumps(config))

    def prune(*more: str) -> list[str]:
        done = cli(
            "releases",
            "prune",
            "--keep-last",
            1,
            "--grace-hours",
            0,
            "--dry-run",
            "-o",
            "json",
            *more,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout)["releases_removed"])

    newest = second.release.digest
    assert prune() == [first.release.digest] != [newest]
    assert prune("--target", "knative") == []
