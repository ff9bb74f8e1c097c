"""Certificates of gateway and functions on Kubernetes, and what is refused without them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from kubernetes import client

from erless.deploy.cluster.checks.examination import Examination
from erless.deploy.cluster.doctor import examine
from erless.deploy.kubernetes.api import Api
from erless.deploy.kubernetes.kinds import CERTIFICATES
from erless.deploy.kubernetes.render.rendered import Rendered
from erless.deploy.kubernetes.schema import check_objects
from erless.deploy.plain_kubernetes.render import render
from erless.deploy.plain_kubernetes.scaling_apis import ScalingApis
from erless.deploy.plain_kubernetes.target import KubernetesTarget
from erless.errors import DeployError
from erless.progress import Silent
from erless.serve.identity import function_name
from erless.serve.settings import read_settings
from erless.specs.config import Config
from tests.deploy.desired import IMAGES, desired, plain_settings
from tests.deploy.fake_cluster import FakeCluster

SPACE = "erless"
CRD = ("customresourcedefinitions.apiextensions.k8s.io", "", CERTIFICATES)


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    fake = FakeCluster()
    yield fake
    fake.close()


@pytest.fixture(scope="module")
def rendered() -> Rendered:
    settings = replace(plain_settings(pod_monitor=True), mutual_tls=True)
    return render(desired(dense=True), settings, ScalingApis(zero=True))


def of_kind(rendered: Rendered, kind: str) -> dict[str, dict[str, Any]]:
    return {
        each["metadata"]["name"]: each["spec"] for each in rendered.objects if each["kind"] == kind
    }


def variables(deployment: dict[str, Any]) -> dict[str, str]:
    (container,) = deployment["template"]["spec"]["containers"]
    return {each["name"]: each.get("value", "") for each in container["env"]}


def test_every_function_has_a_certificate_with_its_own_uri(rendered: Rendered) -> None:
    check_objects(rendered.objects)
    uris = {}
    for name, certificate in of_kind(rendered, "Certificate").items():
        if certificate.get("isCA"):
            assert certificate["issuerRef"]["name"] == "erless-root"
            continue
        assert certificate["issuerRef"]["name"] == "erless-authority"
        assert certificate["privateKey"]["rotationPolicy"] == "Always"
        assert {"server auth", "client auth"} <= set(certificate["usages"])
        (uris[certificate["secretName"]],) = certificate["uris"]
        assert certificate["secretName"] == f"{name}-tls"
    mounted = {}
    for deployment in of_kind(rendered, "Deployment").values():
        spec, env = deployment["template"]["spec"], variables(deployment)
        (volume,) = [each["secret"] for each in spec["volumes"] if each["name"] == "identity"]
        (container,) = spec["containers"]
        mount = next(each for each in container["volumeMounts"] if each["name"] == "identity")
        assert (mount["mountPath"], mount["readOnly"]) == (env["ERLESS_IDENTITY"], True)
        kind = deployment["template"]["metadata"]["labels"]["app.kubernetes.io/component"]
        settings = read_settings(kind, env)
        assert settings.open_reads == (kind != "gateway")
        scheme = "HTTP" if kind == "gateway" else "HTTPS"
        for probe in ("readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["scheme"] == scheme
        digest = deployment["template"]["metadata"]["annotations"]["erless.dev/digest"]
        mounted[volume["secretName"]] = settings.identity_prefix + function_name(kind, digest)
    assert mounted == uris
    assert "spiffe://erless/erless/gateway" in uris.values()


def test_the_gateway_calls_all_functions_by_https(rendered: Rendered) -> None:
    (gateway,) = [
        deployment
        for name, deployment in of_kind(rendered, "Deployment").items()
        if "gateway" in name
    ]
    env = variables(gateway)
    urls = [*json.loads(env["ERLESS_SHARD_URLS"]).values(), env["ERLESS_DENSE_URL"]]
    services = of_kind(rendered, "Service")
    for url in urls:
        assert url.startswith("https://")
        (port,) = services[url.removeprefix("https://").partition(".")[0]]["ports"]
        assert (port["port"], port["targetPort"]) == (443, 8080)
    assert not of_kind(rendered, "HTTPScaledObject")  # what wakes functions speaks HTTP
    plain, secured = of_kind(rendered, "PodMonitor")["erless"]["podMetricsEndpoints"]
    assert ("scheme" in plain, secured["scheme"]) == (False, "https")


def test_without_cert_manager_it_is_refused_before_anything_is_applied(
    cluster: FakeCluster,
) -> None:
    section = {"images": IMAGES, "gateway_address": "127.0.0.1:9"}
    config = Config.model_validate(
        {"security": {"mutual_tls": True}, "targets": {"kubernetes": section}}
    )
    api = Api(client.ApiClient(client.Configuration(host=cluster.url)), 10.0)
    target = KubernetesTarget(config, api=api)
    examination = Examination(api, target.settings, None)

    def level() -> str:
        return next(each.level for each in examine(examination) if each.what == "cert-manager")

    assert level() == "fail"
    with pytest.raises(DeployError, match="has no cert-manager"):
        target.deploy(desired(), Silent(), 20.0)
    assert ("namespaces", "", SPACE) not in cluster.objects
    cluster.store(CRD, {"metadata": {"name": CERTIFICATES}})
    assert level() == "pass"
    target.deploy(desired(), Silent(), 20.0)
    assert len(cluster.find("certificates.cert-manager.io", SPACE)) == 5
    target.destroy(Silent(), 20.0)
    assert not cluster.find("certificates.cert-manager.io", SPACE)
    assert not cluster.find("issuers.cert-manager.io", SPACE)
