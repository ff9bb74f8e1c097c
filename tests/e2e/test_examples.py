"""`erless example` through every stage, as a user types them, over remote shards."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli
from tests.movielens import write_movielens

CONFIG = """\
model: model
profile: profile
store: store
targets:
  local: {state: state, poll_s: 0.2, window_s: 3, grace_s: 0.5}
"""
Verb = Callable[..., Any]


@pytest.fixture
def verb(cli: Cli, tmp_path: Path) -> Iterator[Verb]:
    """Run a verb in a project of its own: what it says as JSON."""
    (tmp_path / "erless.yaml").write_text(CONFIG)

    def run(*arguments: object) -> Any:
        done = cli(*arguments, "-o", "json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout or "null")

    yield run
    run("destroy", "--yes")


def through_every_stage(verb: Verb, folder: Path, log: str, shards: int) -> tuple[Any, Any]:
    """Serve `folder/model` by `shards` remote shards: what predict and loadtest tell."""
    verb("profile", "--log", f"model/{log}")
    plan = verb("plan", "--shards", shards, "--qps", 20, "--resident-share", 0.1)
    tiers = [shard["tier"] for shard in plan["shards"]]
    assert len(tiers) - tiers.count("resident") == shards
    verb("pack")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    verb("deploy", "--port", port)
    queries = "model/queries.safetensors"
    answers = verb("predict", queries, "--against", "model")
    expected = verb("predict", queries, "--monolith", "model")
    (folder / "expected.json").write_text(json.dumps(expected))
    measured = verb(
        *("loadtest", "--queries", queries, "--expected", "expected.json", "--duration", 2),
        *("--traffic", "step:10", "--out", "measured"),
    )
    verb("report", "measured", "--out", "report.html")
    page = (folder / "report.html").read_text()
    assert "<svg" in page and "p95" in page
    return answers, measured


def check_answers(measured: Any) -> None:
    """Every query of a load test was answered, rightly."""
    assert measured["answered"] == measured["queries"] > 0
    assert measured["prediction"]["checked"] > 0
    assert measured["prediction"]["wrong"] == 0


def test_dlrmv2_over_four_remote_shards(verb: Verb, tmp_path: Path) -> None:
    """MLPerf's tables and tower, at one two-thousandth."""
    made = verb(
        *("example", "dlrmv2", "--scale", 0.0005, "--out", "model"),
        *("--queries", 8, "--batch", 4, "--log-samples", 512),
    )
    assert made["tables"] == 26
    answers, measured = through_every_stage(verb, tmp_path, "access.parquet", 4)
    assert answers["max_relative_error"] <= 1e-5
    assert len(answers["predictions"]) == 32
    check_answers(measured)


def test_sequence_over_remote_shards(verb: Verb, tmp_path: Path) -> None:
    """A model of histories that share the target's table, with two outputs."""
    data = tmp_path / "data"
    data.mkdir()
    trained = verb(
        *("example", "sequence", "--data", write_movielens(data), "--out", "model"),
        *("--epochs", 10),
    )
    assert trained["auc"] > 0.6
    model = json.loads((tmp_path / "model/model.json").read_text())["model"]
    assert [output["name"] for output in model["outputs"]] == ["like", "stars"]
    shared = [feature["pooling"] for feature in model["features"] if feature["table"] == "items"]
    assert shared == ["none", "none"]
    answers, measured = through_every_stage(verb, tmp_path, trained["access_log"][6:], 3)
    assert answers["max_relative_error"] <= 1e-5
    check_answers(measured)
