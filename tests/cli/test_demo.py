"""`erless demo` at a small scale: everything in it is real, and nothing is left behind."""

from __future__ import annotations

import html
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from erless.cli.demo.stage import _woken
from erless.deploy.target import FunctionState
from tests.conftest import Cli

KEYS = {
    "verdict",
    "assumptions",
    "memory_reduction",
    "memory_bytes",
    "model_wise_memory_bytes",
    "spike_memory_reduction",
    "tax",
    "memory_utility",
    "p95_ms",
    "model_wise_p95_ms",
    "report",
}


def test_the_demo_shows_all_of_it_and_cleans_up(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, project = tmp_path / "temporary", tmp_path / "project"
    own.mkdir()
    project.mkdir()
    monkeypatch.setenv("TMPDIR", str(own))
    done = cli("demo", "--rows", 10_000, "--seconds", 3, "-o", "json", cwd=project)
    assert done.returncode == 0, done.stderr
    told = [line.split(" s  ")[1] for line in done.stderr.splitlines() if " s  " in line]
    begun = [line.split()[0] for line in told if line.split()[0].endswith("ing")]
    assert begun[:4] == ["building", "profiling", "predicting", "planning"], done.stderr
    assert begun[4:] == ["packing", "measuring", "deploying"], done.stderr
    assert "whole model: " in done.stderr
    found = json.loads(done.stdout)
    assert found.keys() >= KEYS
    assert found["max_relative_error"] <= 1e-5
    assert found["queries_checked"] >= 1000
    assert found["queries_failed"] == 0
    assert found["functions"] == 4
    assert found["functions_at_zero_when_idle"] == found["functions_woken"] == 2
    assert 0 < found["memory_utility"] <= 1
    assert found["cold_start_ms"] > 0
    page = (project / found["report"]).read_text()
    assert page.startswith("<!doctype html>")
    assert found["model_wise_processes"] >= 1
    late = found["model_wise_p95_ms"] is None or found["model_wise_p95_ms"] > found["sla_p95_ms"]
    said = next(line for line in found["assumptions"] if line.startswith("Compared with"))
    assert ("not within" in said.split(". ")[0]) == late  # on a busy machine it may be
    assert found["zero_share"]["frozen"] > 0.8  # nobody asks for its rows until the last query
    # one set of numbers: what the table and the JSON say stands on the page
    ratio = found["memory_reduction"]
    assert f"{ratio if ratio >= 1 else 1 / ratio:.2f}×" in page
    assert f"{found['tax']:.2f}×" in page  # both of one number, rounded once
    for line in (*found["assumptions"], found["verdict"]):
        assert html.escape(line) in page
    whole = found["model_wise_memory_bytes"] / found["memory_bytes"]
    assert ratio == pytest.approx(whole, abs=2e-3)
    assert "http" not in page.replace("http://www.w3.org", "")  # self-contained
    assert [each.name for each in project.iterdir()] == [found["report"]]
    assert list(own.iterdir()) == []


def test_an_answer_quicker_than_its_news_names_what_it_woke() -> None:
    """The first statuses after the answer still have everything at zero, then half of it."""
    told = [("at zero", "at zero"), ("serving", "waking"), ("serving", "serving")]

    class Target:
        def status(self) -> Any:
            states = told.pop(0) if len(told) > 1 else told[0]
            return SimpleNamespace(
                functions=[
                    SimpleNamespace(
                        name=name, state=FunctionState(state), ready=int(state == "serving")
                    )
                    for name, state in zip(("cold-0", "frozen"), states, strict=True)
                ]
            )

    target: Any = Target()  # of a target, only the status is asked for
    assert _woken(target, {"cold-0", "frozen"}) == ("cold-0", "frozen")
