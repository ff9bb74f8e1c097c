"""`erless drill` breaks a deployment on this machine: no query fails, none is answered wrongly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from erless.observe.results import read_result
from tests.conftest import Cli
from tests.releases import TIERS, Made, make_release

CONFIG = "store: {store}\ntargets:\n  local: {{state: state, window_s: 30}}\n"
CHURN = "kill:1s,hang:2.5s,add:2s,gateway:2s,drain:3s"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_release(tmp_path_factory.mktemp("drill"), tiers=TIERS[:2] + TIERS[3:])


@pytest.fixture
def deployed(cli: Cli, made: Made, tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "erless.yaml").write_text(CONFIG.format(store=made.store))
    run = cli("deploy", "--release", made.release.digest, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    yield tmp_path
    assert cli("destroy", "--yes", cwd=tmp_path).returncode == 0


def test_a_drill_loses_no_query(deployed: Path, made: Made, cli: Cli) -> None:
    """Each function has one replica: whoever asks meanwhile waits for the next."""
    words = ("drill", "--queries", made.queries, "--churn", CHURN, "--duration", 6, "--calm", 2)
    planned = cli(*words, "--against", made.bundle, "--last", "--dry-run", cwd=deployed)
    assert planned.returncode == 0, planned.stderr
    assert "  kill         6 times" in planned.stdout
    refused = cli(*words, "--against", made.bundle, cwd=deployed)
    assert refused.returncode == 1 and "--last` breaks a function's only replica" in refused.stderr
    refused = cli(*words, "--last", cwd=deployed)
    assert refused.returncode == 1 and "what is right?" in refused.stderr

    run = cli(
        *words,
        *("--against", made.bundle, "--last", "--qps", 40, "--good-ms", 2000, "-o", "json"),
        cwd=deployed,
    )
    assert run.returncode == 0, run.stderr + run.stdout
    document = json.loads(run.stdout)
    assert document["failures"] == {}
    assert document["prediction"]["checked"] == document["queries"] > 300
    assert document["prediction"]["wrong"] == 0
    drill = document["drill"]
    kinds = [fault["kind"] for fault in drill["faults"]]
    assert {"kill", "hang", "add", "gateway", "drain"} <= set(kinds)
    for fault in drill["faults"]:
        assert fault["healed_s"] is not None or fault["kind"] == "add", fault
    events = {event.kind for event in read_result(deployed / "drill").events}
    assert "drill: hang" in events

    report = cli("report", deployed / "drill", "--out", deployed / "drill.html", cwd=deployed)
    assert report.returncode == 0, report.stderr
    page = (deployed / "drill.html").read_text()
    assert "failed / wrong while things broke" in page and "Until healed" in page
