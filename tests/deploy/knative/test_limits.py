"""What Knative would refuse is told before anything is applied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client

from erless.deploy.knative.limits import refused_hosts
from erless.deploy.knative.target import KnativeTarget
from erless.deploy.kubernetes.api import Api
from erless.errors import DeployError
from erless.progress import Silent
from erless.specs.config import Config
from tests.deploy.desired import IMAGES, desired
from tests.deploy.fake_cluster import FakeCluster

SERVING = "knative-serving"
LONG = "recommendations-of-the-shop-in-the-south-west"  # 45 characters
FLAT = "{{.Name}}-{{.Namespace}}.{{.Domain}}"


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()
    set_config(fake, "domain", {"recs.example.com": ""})
    yield fake
    fake.close()


def set_config(cluster: FakeCluster, name: str, data: dict[str, str]) -> None:
    name = f"config-{name}"
    cluster.store(("configmaps", SERVING, name), {"metadata": {"name": name}, "data": data})


def deploy(cluster: FakeCluster, **options: Any) -> None:
    knative = {"images": IMAGES, "namespace": LONG, "gateway_address": "127.0.0.1:9", **options}
    config = Config.model_validate(
        {"gateway": {"visibility": "public"}, "targets": {"knative": knative}}
    )
    api = Api(client.ApiClient(client.Configuration(host=cluster.url)), 10.0)
    KnativeTarget(config, api=api).deploy(desired(), Silent(), 20.0)


@pytest.mark.parametrize(
    ("namespace", "network", "refused"),
    [
        (LONG, {}, 0),
        (LONG[:40], {"domain-template": FLAT}, 0),
        (LONG[:44], {"domain-template": FLAT}, 1),  # under the tag `next` alone
        ("n" * 60, {"domain-template": FLAT}, 2),
        (
            LONG,
            {"tag-template": "{{.Tag}}-" + "o" * 50 + "-{{.Name}}"},
            1,
        ),
        (LONG, {"domain-template": '{{.Name}}-{{index .Labels "team"}}.{{.Domain}}'}, 0),
    ],
)
def test_a_label_of_a_host_has_63_characters(
    namespace: str, network: dict[str, str], refused: int
) -> None:
    found = list(refused_hosts("erless-gateway", namespace, network, ["recs.example.com"]))
    assert len(found) == refused, found
    assert all("63 are allowed" in each for each in found)


def test_a_host_has_253_characters() -> None:
    domain = ".".join(["d" * 60] * 4)
    found = list(refused_hosts("erless-gateway", "recs", {}, [domain]))
    assert all("253 are allowed" in each for each in found) and len(found) == 2


def test_deploy_refuses_a_long_name_with_the_numbers(cluster: FakeCluster) -> None:
    set_config(cluster, "network", {"domain-template": "{{.Name}}-{{.Namespace}}.{{.Domain}}"})
    with pytest.raises(DeployError, match=r"erless-gateway-recomm\S+ .* has 64 characters, 63"):
        deploy(cluster, namespace=f"{LONG}-2nd", min_window_s=10)
    assert ("namespaces", "", f"{LONG}-2nd") not in cluster.objects


def test_deploy_refuses_a_cold_start_that_the_cluster_would_cut_off(cluster: FakeCluster) -> None:
    """115 MB at 0.15 MB/s; with 50 MB/s that is 38 GB."""
    slow = {"load_mb_per_s": 0.15, "max_timeout_s": 900}
    with pytest.raises(DeployError, match=r"need 7\d\d s .* the cluster allows 600 s"):
        deploy(cluster, **slow)
    assert ("namespaces", "", LONG) not in cluster.objects
    set_config(cluster, "defaults", {"max-revision-timeout-seconds": "900"})
    deploy(cluster, **slow)


def test_settings_that_may_not_be_read_stop_nobody(cluster: FakeCluster) -> None:
    cluster.denied = {("get", "configmaps")}
    deploy(cluster)
