"""Dashboards and rules name metrics that functions have, and Prometheus takes them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from erless.cli.main import app
from erless.deploy.monitoring.objects import DASHBOARDS, dashboard, monitoring_objects, rules
from erless.serve.metrics import Metrics
from tests.deploy.desired import IMAGES
from tests.releases import Made
from tests.serve.functions import Fleet

TESTS = Path(__file__).with_name("rules_test.yaml")
METRIC = re.compile(r"\berless_[a-z_]+")
SUFFIXES = ("_bucket", "_count", "_sum")


@pytest.fixture(scope="module")
def served(packed_release: Made, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every metric in the /metrics of a gateway with all switched on, and of its shards."""
    counted = Metrics("gateway", "", "", "", lambda: 0.0)
    counted.alerted("canary")  # nobody sends any
    counted.unknown_ids({"user": 1})  # only a graph's features have rules that know ids
    pages = [counted.render()]
    folder = tmp_path_factory.mktemp("fleet")
    with Fleet(packed_release, folder, ERLESS_FOLLOW_S="1", ERLESS_SAMPLE="1") as fleet:
        pages += [function.get("/metrics")[1] for function in fleet.functions]
    return {found for page in pages for found in METRIC.findall(page.decode())}


@pytest.mark.parametrize("name", [*DASHBOARDS, "rules"])
def test_every_metric_exists(name: str, served: set[str]) -> None:
    document = rules(100.0) if name == "rules" else dashboard(name)
    named = set(METRIC.findall(json.dumps(document))) - {"erless_dashboard"}
    assert len(named) >= 5
    assert named <= served


def test_render_writes_them_with_the_pod_monitor(
    packed_release: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"traffic": {"sla_p95_ms": 40}, "targets": {"knative": {"images": IMAGES}}}
    (tmp_path / "erless.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    command = ["render", "--store", packed_release.store, "--namespace", "recs", "--monitoring"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    objects = [each for each in yaml.safe_load_all(done.stdout) if each]
    kinds = [each["kind"] for each in objects]
    assert kinds.count("PodMonitor") == kinds.count("PrometheusRule") == 1
    boards = [json.loads(text) for each in objects for text in each.get("data", {}).values()]
    assert [board["uid"] for board in boards] == [f"erless-{name}" for name in DASHBOARDS]
    rule = next(each for each in objects if each["kind"] == "PrometheusRule")
    assert 'le="0.05"' in json.dumps(rule).replace("\\", "") and "@SLA@" not in done.stdout
    assert {each["metadata"]["namespace"] for each in objects if each["kind"] != "Namespace"} == {
        "recs"
    }


def test_objects_are_stable() -> None:
    first, second = (list(monitoring_objects("a" * 64, "recs", 100.0)) for _ in range(2))
    assert json.dumps(first) == json.dumps(second)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("command", ["check", "test"])
def test_prometheus_takes_the_rules(command: str, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules(100.0)))
    shutil.copy(TESTS, tmp_path)
    file = "rules.yaml" if command == "check" else TESTS.name
    done = subprocess.run(
        ["promtool", command, "rules", file],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
