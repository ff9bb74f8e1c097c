"""A kustomize base and a Helm chart hold exactly the objects, and the same bytes each time."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from erless.cli.main import app
from erless.deploy.knative.render import render
from erless.deploy.kubernetes.gitops import MARKER, helm_chart, kustomize_base, write_folder
from erless.deploy.monitoring.objects import monitoring_objects
from erless.errors import ArtifactError
from tests.deploy.desired import IMAGES, cluster_settings, desired
from tests.releases import Made

Object = dict[str, Any]
# Of kubernetes-sigs/kustomize api/types/kustomization.go those that a plain base needs.
KUSTOMIZATION = {"apiVersion", "kind", "resources"}
# Of helm/helm pkg/chart/metadata.go.
CHART = {"apiVersion", "name", "description", "type", "version", "appVersion"}
BRACES = '{{ "{{" }}'  # the only action in a template of an object: it prints two braces


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    """A release with its alerts, whose texts are templates of Prometheus and Grafana themselves."""
    rendered = render(desired(dense=True), cluster_settings(pod_monitor=True))
    return [*rendered.objects, *monitoring_objects(desired().release.digest, "erless", 80.0)]


def read_base(folder: Path) -> list[Object]:
    """The objects of a base, read as strictly as kustomize does."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert kustomization.keys() == KUSTOMIZATION
    assert kustomization["apiVersion"] == "kustomize.config.k8s.io/v1beta1"
    resources = kustomization["resources"]
    assert len(set(resources)) == len(resources)
    files = {path.name for path in folder.iterdir()} - {"kustomization.yaml", MARKER}
    assert files == set(resources)
    return [one_object(folder / name) for name in resources]


def one_object(path: Path) -> Object:
    (document,) = yaml.safe_load_all(path.read_text())
    found: Object = document
    return found


def read_chart(folder: Path) -> list[Object]:
    """The objects of a chart, as Helm's templates would give them."""
    chart = yaml.safe_load((folder / "Chart.yaml").read_text())
    assert chart.keys() == CHART
    assert chart["apiVersion"] == "v2"
    assert not (folder / "values.yaml").exists()
    found = []
    for path in sorted((folder / "templates").iterdir()):
        if path.name == "namespace.yaml":
            continue
        literal = path.read_text().split(BRACES)
        assert not any("{{" in part for part in literal)
        (document,) = yaml.safe_load_all("{{".join(literal))
        found.append(document)
    return found


def by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


def test_a_base_lists_every_object_once_in_the_order_of_applying(
    objects: list[Object], tmp_path: Path
) -> None:
    write_folder(kustomize_base(objects, "f" * 64), tmp_path / "base")
    assert read_base(tmp_path / "base") == objects


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl here")
def test_kustomize_reads_the_base(objects: list[Object], tmp_path: Path) -> None:
    write_folder(kustomize_base(objects, "f" * 64), tmp_path / "base")
    command = ["kubectl", "kustomize", str(tmp_path / "base")]
    built = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert by_name(list(yaml.safe_load_all(built))) == by_name(objects)


def test_a_chart_gives_every_object_back_but_the_namespace(
    objects: list[Object], tmp_path: Path
) -> None:
    assert sum("{{" in str(each) for each in objects) >= 2  # alerts and dashboards
    write_folder(helm_chart(objects, "f" * 64, "erless"), tmp_path / "chart")
    wanted = [each for each in objects if each["kind"] != "Namespace"]
    assert len(wanted) == len(objects) - 1
    assert by_name(read_chart(tmp_path / "chart")) == by_name(wanted)
    check = (tmp_path / "chart/templates/namespace.yaml").read_text()
    assert check.startswith('{{- if ne .Release.Namespace "erless" }}\n{{- fail "')


@pytest.mark.skipif(not shutil.which("helm"), reason="no helm here")
def test_helm_takes_the_chart(objects: list[Object], tmp_path: Path) -> None:
    write_folder(helm_chart(objects, "f" * 64, "erless"), tmp_path / "chart")

    def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["helm", arguments[0], str(tmp_path / "chart"), *arguments[1:]]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    linted = helm("lint", "--strict", "--namespace", "erless")
    assert linted.returncode == 0, linted.stdout + linted.stderr
    made = helm("template", "--namespace", "erless")
    assert made.returncode == 0, made.stderr
    found = [each for each in yaml.safe_load_all(made.stdout) if each]
    wanted = [each for each in objects if each["kind"] != "Namespace"]
    assert len(found) == len(wanted)
    assert by_name(found) == by_name(wanted)
    elsewhere = helm("template", "--namespace", "other")
    assert elsewhere.returncode != 0
    assert "rendered for namespace erless: pass --namespace erless" in elsewhere.stderr


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: []\n")
    with pytest.raises(ArtifactError, match="not erless's to replace"):
        write_folder(kustomize_base([], "f" * 64), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kustomization.yaml"]


def test_functions_of_the_release_before_stay_beside_the_new() -> None:
    """So a reconciler that prunes at once takes nothing from the gateway that still serves."""
    old, new = render(desired("1"), cluster_settings()), render(desired("2"), cluster_settings())
    both = list(new.with_functions_of([old]))
    names = [each["metadata"]["name"] for each in both if "serving" in each["apiVersion"]]
    assert set(names) == {each["metadata"]["name"] for each in (*old.functions, *new.functions)} | {
        new.gateway["metadata"]["name"]
    }
    assert names[-1] == new.gateway["metadata"]["name"]  # once every function is there
    assert new.gateway in both
    assert new.with_functions_of([new]) == new.objects == new.with_functions_of([])


@pytest.mark.parametrize(("layout", "read"), [("kustomize", read_base), ("helm", read_chart)])
def test_render_writes_a_folder_and_the_same_bytes_again(
    layout: str,
    read: Any,
    packed_release: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "erless.yaml").write_text(
        yaml.safe_dump({"targets": {"knative": {"images": IMAGES}}})
    )
    monkeypatch.chdir(tmp_path)
    command = ["render", "--store", packed_release.store, "--format", layout]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "name it with --out" in done.output
    written = []
    for _ in range(2):
        done = CliRunner().invoke(app, [*command, "--out", "out"])
        assert done.exit_code == 0, done.output
        files = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
        written.append({path.name: path.read_bytes() for path in files})
    assert written[0] == written[1]
    plain = CliRunner().invoke(app, command[:3])
    wanted = by_name([each for each in yaml.safe_load_all(plain.stdout) if each])
    if layout == "helm":
        wanted.pop(("Namespace", "erless"))
    assert by_name(read(tmp_path / "out")) == wanted
