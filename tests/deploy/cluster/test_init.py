"""`erless cluster init` against an API server on loopback."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from erless.deploy.cluster.init import Applied, ClusterInit
from erless.deploy.cluster.manifests import KNATIVE, in_order, read_manifest_file
from erless.deploy.cluster.settings import (
    HOST_PATH_FEATURE,
    KOURIER,
    MESH,
    access,
    settings,
)
from erless.deploy.knative.limits import public_domains
from erless.deploy.kubernetes.api import connect
from erless.errors import ArtifactError, ConflictError, DeployError
from tests.conftest import Cli
from tests.deploy.bare_cluster import BareCluster, serving
from tests.deploy.infra_outputs import VALUE, write_outputs

# As short as a release's files can be, with what makes their order matter.
CORE = """
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: config.webhook.serving.knative.dev}
webhooks: [{name: config.webhook.serving.knative.dev, rules: []}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: controller, namespace: knative-serving}
spec: {replicas: 1}
---
apiVersion: caching.internal.knative.dev/v1alpha1
kind: Image
metadata: {name: queue-proxy, namespace: knative-serving}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: config-network, namespace: knative-serving}
data: {_example: "…"}
---
---
apiVersion: v1
kind: Namespace
metadata: {name: knative-serving}
"""
CRDS = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: images.caching.internal.knative.dev}
spec:
  group: caching.internal.knative.dev
  names: {kind: Image, plural: images}
  versions: [{name: v1alpha1}]
"""


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "core.yaml").write_text(CORE)
    (tmp_path / "crds.yaml").write_text(CRDS)
    return [tmp_path / "core.yaml", tmp_path / "crds.yaml"]


@pytest.fixture
def cluster() -> BareCluster:
    return BareCluster()


@pytest.fixture
def kubeconfig(cluster: BareCluster, tmp_path: Path) -> Iterator[Path]:
    with serving(cluster, tmp_path) as path:
        yield path


def run(kubeconfig: Path, files: list[Path], **more: Any) -> list[Applied]:
    sources = [read_manifest_file(str(each)) for each in files]
    return ClusterInit(
        connect(kubeconfig), sources, settings(), access("recs"), **{"timeout_s": 60.0, **more}
    ).run()


def test_knative_is_installed_and_set(
    cluster: BareCluster, kubeconfig: Path, files: list[Path]
) -> None:
    done = run(kubeconfig, files)
    assert {each.action for each in done if each.name != "config-network"} == {"create"}
    serving_space = "/api/v1/namespaces/knative-serving"
    features = cluster.objects[f"{serving_space}/configmaps/config-features"]["data"]
    assert features["kubernetes.podspec-nodeselector"] == "enabled"
    assert features["kubernetes.podspec-tolerations"] == "enabled"
    network = cluster.objects[f"{serving_space}/configmaps/config-network"]["data"]
    assert network == {"_example": "…", "ingress-class": KOURIER, MESH: "disabled"}
    assert MESH not in settings("istio.ingress.networking.knative.dev")[2]["data"]
    scaler = cluster.objects[f"{serving_space}/configmaps/config-autoscaler"]["data"]
    assert scaler["allow-zero-initial-scale"] == "true"
    binding = cluster.objects[
        "/apis/rbac.authorization.k8s.io/v1/namespaces/recs/rolebindings/erless-deployers"
    ]
    assert binding["subjects"][0]["name"] == "erless:deployers"


def test_a_second_namespace_takes_no_rights_from_the_first() -> None:
    """Cluster-wide objects have one name for all namespaces, so they may not depend on one."""
    wide = [
        [each for each in access(space) if each["kind"].startswith("ClusterRole")]
        for space in ("recs", "ads")
    ]
    assert wide[0] == wide[1]


def test_deployers_may_look_where_the_ingress_is(
    cluster: BareCluster, kubeconfig: Path, cli: Cli, tmp_path: Path
) -> None:
    """The address of a gateway whose name is in no DNS is that of the ingress' Service."""
    kourier = "apiVersion: v1\nkind: Namespace\nmetadata: {name: kourier-system}\n"
    (tmp_path / "core.yaml").write_text(f"{CORE}\n---\n{kourier}")
    (tmp_path / "crds.yaml").write_text(CRDS)
    manifests = [f"--knative={tmp_path / name}" for name in ("core.yaml", "crds.yaml")]
    cli("cluster", "init", *manifests, f"--kubeconfig={kubeconfig}")
    rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces"
    role = cluster.objects[f"{rbac}/kourier-system/roles/erless-deployer"]
    assert role["rules"] == [{"apiGroups": [""], "resources": ["services"], "verbs": ["list"]}]
    assert f"{rbac}/kourier-system/rolebindings/erless-deployers" in cluster.objects
    assert f"{rbac}/istio-system/roles/erless-deployer" not in cluster.objects  # not there


def test_the_order_is_what_others_stand_on(
    cluster: BareCluster, kubeconfig: Path, files: list[Path]
) -> None:
    run(kubeconfig, files)
    names = [path.rpartition("/")[2] for path in cluster.applied]
    assert names[:3] == ["images.caching.internal.knative.dev", "knative-serving", "config-network"]
    assert names.index("controller") < names.index("config.webhook.serving.knative.dev")
    assert names.index("config.webhook.serving.knative.dev") < names.index("config-features")


def test_a_second_run_changes_nothing(
    cluster: BareCluster, kubeconfig: Path, files: list[Path]
) -> None:
    run(kubeconfig, files)
    before = json.dumps(cluster.objects, sort_keys=True)
    assert {each.action for each in run(kubeconfig, files)} == {"keep"}
    assert json.dumps(cluster.objects, sort_keys=True) == before


def test_the_rules_that_knative_wrote_stay(
    cluster: BareCluster, kubeconfig: Path, files: list[Path]
) -> None:
    run(kubeconfig, files)
    path = next(path for path in cluster.objects if "webhookconfigurations" in path)
    written = [{"name": "config.webhook.serving.knative.dev", "rules": [{"scope": "*"}]}]
    cluster.apply(
        path, {"metadata": {}, "webhooks": written}, {"fieldManager": "webhook", "force": "true"}
    )
    assert {each.action for each in run(kubeconfig, files)} == {"keep"}
    assert cluster.objects[path]["webhooks"] == written


def test_a_stopped_run_is_completed(
    cluster: BareCluster, kubeconfig: Path, files: list[Path]
) -> None:
    cluster.never = {"CustomResourceDefinition"}
    with pytest.raises(DeployError, match=r"definitions not ready after 0\.1 s: images\.caching"):
        run(kubeconfig, files, timeout_s=0.1)
    cluster.never = set()
    done = run(kubeconfig, files)
    assert [each.action for each in done[:2]] == ["keep", "create"]


def test_a_deployment_that_does_not_start_says_why(
    cluster: BareCluster, kubeconfig: Path, files: list[Path]
) -> None:
    cluster.never = {"Deployment"}
    with pytest.raises(
        DeployError, match=r"deployments not ready .* knative-serving/controller \(0 of 1 pods"
    ):
        run(kubeconfig, files, timeout_s=3)


def test_a_dry_run_changes_nothing(
    cluster: BareCluster, kubeconfig: Path, files: list[Path]
) -> None:
    done = run(kubeconfig, files, dry_run=True)
    assert not cluster.objects
    assert {each.action for each in done} == {"create"}
    assert len(done) == 6 + len(settings()) + len(access("recs"))
    run(kubeconfig, files)
    assert {each.action for each in run(kubeconfig, files, dry_run=True)} == {"keep"}


def test_somebody_elses_setting_is_left_until_told(
    cluster: BareCluster, kubeconfig: Path, files: list[Path]
) -> None:
    run(kubeconfig, files)
    path = "/api/v1/namespaces/knative-serving/configmaps/config-network"
    cluster.apply(
        path,
        {"metadata": {}, "data": {"ingress-class": "istio"}},
        {"fieldManager": "kubectl-edit", "force": "true"},
    )
    with pytest.raises(ConflictError, match=r"data\.ingress-class belongs to kubectl-edit"):
        run(kubeconfig, files)
    assert cluster.objects[path]["data"]["ingress-class"] == "istio"
    run(kubeconfig, files, force=True)
    assert cluster.objects[path]["data"]["ingress-class"] == KOURIER


def test_settings_need_knative(kubeconfig: Path, files: list[Path]) -> None:
    with pytest.raises(DeployError, match='namespaces "knative-serving" not found'):
        run(kubeconfig, [files[1]])


def test_an_unknown_kind_is_named(kubeconfig: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("apiVersion: a/v1\nkind: Odd\nmetadata: {name: x}\n")
    with pytest.raises(DeployError, match="a/v1 Odd: the cluster knows no such kind"):
        run(kubeconfig, [tmp_path / "odd.yaml"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not YAML"),
        ("", "no Kubernetes objects"),
        ("- 1", "document 1 is no Kubernetes object"),
        ("kind: Namespace\nmetadata: {name: x}", "document 1 is no Kubernetes object"),
        ("a: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_bad_manifests_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(DeployError, match=said) as error:
        read_manifest_file(str(path))
    assert str(path) in str(error.value)


def test_manifests_come_by_url(tmp_path: Path, files: list[Path]) -> None:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        assert (
            read_manifest_file(f"{url}/core.yaml").objects
            == read_manifest_file(str(files[0])).objects
        )
        with pytest.raises(DeployError, match="the server answered 404"):
            read_manifest_file(f"{url}/absent.yaml")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(DeployError, match="cannot fetch"):
        read_manifest_file(f"{url}/core.yaml")
    with pytest.raises(DeployError, match="only https is fetched"):
        read_manifest_file("http://example.com/core.yaml")
    with pytest.raises(ArtifactError, match=r"absent\.yaml does not exist"):
        read_manifest_file(str(tmp_path / "absent.yaml"))


def test_a_real_cluster_takes_the_settings() -> None:
    """Checked by the API server and Knative's own webhooks; nothing is changed."""
    given = os.environ.get("ERLESS_TEST_KUBECONFIG")
    if not given:
        pytest.skip("ERLESS_TEST_KUBECONFIG names no cluster with Knative")
    api = connect(Path(given))
    init = ClusterInit(api, [], settings(), access("erless-cluster-init-test"), dry_run=True)
    done = init.run()
    assert len(done) == len(settings()) + len(access("x"))
    assert {each.action for each in done if each.kind == "ConfigMap"} <= {"keep", "update"}


def test_the_default_release_is_pinned() -> None:
    assert all(each.startswith("https://github.com/knative") for each in KNATIVE)
    assert all("/knative-v1." in each and "latest" not in each for each in KNATIVE)


def test_lists_are_unpacked(tmp_path: Path) -> None:
    items = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}]
    path = tmp_path / "list.yaml"
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items}))
    assert in_order([read_manifest_file(str(path))]) == items


def test_the_verb(
    cli: Cli, cluster: BareCluster, kubeconfig: Path, files: list[Path], tmp_path: Path
) -> None:
    arguments = ["cluster", "init", "--kubeconfig", kubeconfig]
    for each in files:
        arguments += ["--knative", each]
    done = cli(*arguments, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "19 of 19 objects would be changed" in done.stdout
    assert not cluster.objects
    done = cli(*arguments, "-o", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert len(document["sources"][0]["sha256"]) == 64
    assert {each["action"] for each in document["objects"]} == {"create", "update"}
    assert "/api/v1/namespaces/erless" in cluster.objects


def test_the_verb_refuses_another_cluster_than_terraforms(
    cli: Cli, cluster: BareCluster, kubeconfig: Path, files: list[Path], tmp_path: Path
) -> None:
    infra = write_outputs(tmp_path / "infra.json")
    arguments = ["cluster", "init", "--kubeconfig", kubeconfig, "--knative", files[1]]
    done = cli(*arguments, "--infra", infra, cwd=tmp_path)
    assert done.returncode == 1
    assert "made the cluster recs at https://0123" in done.stderr
    assert not cluster.objects
    here = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    write_outputs(infra, {**VALUE, "cluster": {**VALUE["cluster"], "endpoint": here}})
    cluster.objects["/api/v1/namespaces/knative-serving"] = {"kind": "Namespace"}
    done = cli(*arguments, "--infra", infra, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_timeout_gives_the_cause_that_pods_and_events_tell(
    cluster: BareCluster, kubeconfig: Path, files: list[Path]
) -> None:
    cluster.never = {"Deployment"}
    space = "/api/v1/namespaces/knative-serving"
    waiting = {"reason": "ImagePullBackOff", "message": "connection refused"}
    cluster.listed[f"{space}/pods"] = [
        {
            "metadata": {"name": "controller-1"},
            "status": {
                "containerStatuses": [{"image": "gcr.io/controller", "state": {"waiting": waiting}}]
            },
        }
    ]
    cluster.listed[f"{space}/events"] = [
        {
            "type": "Warning",
            "reason": "FailedCreate",
            "message": "exceeded quota: memory",
            "lastTimestamp": "2026-01-01T00:00:00Z",
            "involvedObject": {"name": "webhook"},
        },
        {"type": "Normal", "reason": "Pulling", "message": "of no interest"},
    ]
    with pytest.raises(DeployError) as caught:
        run(kubeconfig, files, timeout_s=1.0)
    assert "pod controller-1: image gcr.io/controller cannot be pulled: connection" in str(
        caught.value
    )
    assert "webhook: FailedCreate: exceeded quota: memory" in str(caught.value)
    assert "of no interest" not in str(caught.value)


def test_a_domain_and_folders_of_the_node_are_set_where_asked_for(
    cluster: BareCluster, kubeconfig: Path, files: list[Path]
) -> None:
    run(kubeconfig, files)
    space = "/api/v1/namespaces/knative-serving/configmaps"
    features = cluster.objects[f"{space}/config-features"]["data"]
    assert HOST_PATH_FEATURE not in features
    assert f"{space}/config-domain" not in cluster.objects
    more = settings(domain="recs.example.com", host_path=True)
    ClusterInit(connect(kubeconfig), [], more, access("recs")).run()
    features = cluster.objects[f"{space}/config-features"]["data"]
    assert features[HOST_PATH_FEATURE] == "enabled"
    assert public_domains(cluster.objects[f"{space}/config-domain"]["data"]) == ["recs.example.com"]


def test_the_account_that_resizes_pods_may_do_nothing_else() -> None:
    more = [each for each in access("recs", resize=True) if each not in access("recs")]
    assert [each["kind"] for each in more] == ["ServiceAccount", "Role", "RoleBinding"]
    rights = {
        (kind, verb)
        for rule in more[1]["rules"]
        for kind in rule["resources"]
        for verb in rule["verbs"]
    }
    pods = {("pods", "list"), ("pods/proxy", "get"), ("pods/resize", "patch")}
    assert rights == pods | {("leases", verb) for verb in ("get", "create", "update", "delete")}
    assert all(each["metadata"]["namespace"] == "recs" for each in more)
    assert "labels" not in more[0]["metadata"]  # a destroy leaves it: it is the administrator's
    assert [each["kind"] for each in more[2]["subjects"]] == ["ServiceAccount"]
