"""`erless loadtest` against a sink; Ctrl-C; the search; samples of a target."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from erless.errors import ArtifactError, DeployError, LoadTestError
from erless.observe.loadtest import highest
from erless.observe.loadtest.locust.process import Load
from erless.observe.loadtest.measure import Measuring, measure
from erless.observe.loadtest.record import read_record
from erless.observe.loadtest.sampler import FunctionSample, Sampler, usage_of
from erless.observe.loadtest.search import late_blocks, search
from erless.observe.queries import QueryOutcomes
from erless.observe.report.result import write_report
from erless.observe.results import read_result
from tests.authority import Authority
from tests.conftest import ROOT, Cli


def sample(ready: int, name: str = "hot") -> FunctionSample:
    return FunctionSample(name, "sparse", "hot", ready, ready, 1.0, 2.0, ready * 100)


def test_a_run_becomes_a_result(sink: str, tmp_path: Path) -> None:
    calls = []

    def probe() -> tuple[Sequence[FunctionSample], int]:
        calls.append(1)
        if len(calls) == 2:
            raise DeployError("the target is busy")
        return [sample(len(calls) % 2)], 1000

    load = Load(sink, 4.0, "constant:40", users=10)
    result = measure(load, tmp_path / "r", Measuring(probe=probe), sla_ms=500.0)
    assert result.queries > 100 and not result.interrupted
    assert result.queries == result.answered + result.failed
    assert result.model_wise and result.model_wise.memory_bytes.mean == 1000
    stored = read_result(tmp_path / "r")
    assert stored.document.notes == ("while sampling: the target is busy",)
    assert {each.kind for each in stored.events} == {"cold start"}
    write_report(tmp_path / "r", tmp_path / "r.html")


def test_usage_over_samples() -> None:
    with Sampler(lambda: ([sample(1), sample(0, "frozen")], 7), every_s=0.01) as sampler:
        end = time.monotonic() + 20
        while len(sampler.samples) < 3 and time.monotonic() < end:
            time.sleep(0.01)
    fields = usage_of(sampler.samples)
    assert fields["memory_bytes"].mean == 100
    assert [each.zero_share for each in fields["functions"]] == [0, 1]


def test_nothing_there(tmp_path: Path, cli: Cli) -> None:
    run = cli("loadtest", "--host", "http://127.0.0.1:9", "--duration", 2, "--out", tmp_path / "r")
    assert run.returncode == 1
    assert "http://127.0.0.1:9/v2: no answer within 5 s" in run.stderr
    assert not (tmp_path / "r").exists()
    run = cli("loadtest", "--out", tmp_path / "r", cwd=tmp_path)
    assert run.returncode == 1 and "nothing" in run.stderr and "erless deploy" in run.stderr


def test_an_https_gateway_is_trusted_by_its_authority(
    https_sink: str, authority: Authority, tmp_path: Path, cli: Cli
) -> None:
    words = ("loadtest", "--host", https_sink, "--duration", 2, "--users", 4)
    run = cli(*words, "--ca", authority.certificate, "--out", tmp_path / "r")
    assert run.returncode == 0, run.stderr
    result = read_result(tmp_path / "r").document
    assert result.answered > 10 and not result.failed
    run = cli(*words, "--out", tmp_path / "untrusted")
    assert run.returncode == 1
    assert "is not trusted" in run.stderr and "--ca FILE" in run.stderr
    assert not (tmp_path / "untrusted").exists()


def test_ctrl_c_keeps_what_was_measured(sink: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "erless",
        "loadtest",
        "--host",
        sink,
        "--traffic",
        "constant:50",
        "--duration",
        "300",
        "--out",
        str(tmp_path / "r"),
        "-o",
        "json",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        text=True,
    )
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        records = list(tmp_path.glob("erless-loadtest-*/queries.tsv"))
        if records and records[0].read_text().count("\n") > 100:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    document = json.loads(out)
    assert document["interrupted"] and document["queries"] > 50
    assert document["duration_s"] < 200
    stored = read_result(tmp_path / "r")
    assert stored.document.interrupted
    write_report(tmp_path / "r", tmp_path / "r.html")
    assert "Stopped early" in (tmp_path / "r.html").read_text()


def test_a_record_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "r"
    path.write_text("# start 10.5\n0.1\t0.002\t\tnan\t\n0.2\t0.5\ttimeout\tnan\t\n0.3\t0.0")
    record = read_record(path)
    assert record.started_s == 10.5
    assert record.log.failure == ["", "timeout"]
    assert np.isnan(record.log.latency_s).tolist() == [False, True]
    assert record.prediction(1e-5) is None


def queue(
    rate: float, capacity: float, seconds: int, generator: np.random.Generator
) -> QueryOutcomes:
    """One server that needs 1/capacity seconds per query."""
    due = np.sort(generator.random(generator.poisson(rate * seconds)) * seconds)
    free, took = 0.0, []
    for at in due:
        free = max(free, at) + 1 / capacity
        took.append(free - at)
    none = np.zeros(len(due), bool)
    return QueryOutcomes(due, np.array(took), [""] * len(due), none, none)


def test_search_finds_the_capacity() -> None:
    generator = np.random.default_rng(0)

    def blocks(rate: float) -> np.ndarray:
        return late_blocks(queue(rate, 400.0, 20, generator), 20.0, 20.0)

    # M/D/1 at 2.5 ms service: P(sojourn > 20 ms) = 5 % at about ρ = 0.83
    found = search(blocks, start_qps=20.0)
    assert 290 < found.qps < 365
    assert found.beyond / found.qps <= 1.051
    assert all(trial.high <= 0.05 for trial in found.trials if trial.met)


def test_the_highest_rate_becomes_a_result(
    sink: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real Locust against the sink; beyond 100 queries/s it is made to look late."""

    def late_beyond(log: QueryOutcomes, duration_s: float, sla_ms: float) -> np.ndarray:
        blocks = late_blocks(log, duration_s, sla_ms)
        return np.ones_like(blocks) if len(log.due_s) > 100 * duration_s else blocks

    monkeypatch.setattr(highest, "late_blocks", late_beyond)
    load = Load(sink, 4.0, users=10)
    found = highest.find_highest(load, tmp_path / "r", sla_ms=5000.0, start_qps=60.0)
    assert 60 <= found.qps < 110
    document = read_result(tmp_path / "r").document
    assert document.arrivals == f"constant:{found.qps:g}, Poisson"
    assert document.notes[0].startswith(f"p95 within 5000 ms up to {found.qps:.0f} queries/s (not")
    assert len(document.notes) == 1 + len(found.trials)


def test_what_cannot_be_kept_is_not_measured(sink: str, tmp_path: Path) -> None:
    """A result that is there, or a folder that is not ours, is told before anything is sent."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose me")
    begin = time.monotonic()
    with pytest.raises(ArtifactError, match="not erless's to replace"):
        measure(Load(sink, 60.0), tmp_path / "mine", Measuring(overwrite=True))
    with pytest.raises(ArtifactError, match="not erless's to replace"):
        highest.find_highest(Load(sink, 60.0), tmp_path / "mine", sla_ms=1.0, start_qps=1.0)
    assert time.monotonic() - begin < 30
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]


def test_search_where_nothing_meets_the_sla() -> None:
    with pytest.raises(LoadTestError, match="not met even at"):
        search(lambda rate: np.ones(5), start_qps=10.0)


def test_search_stops_at_ctrl_c() -> None:
    def blocks(rate: float) -> np.ndarray:
        if rate > 100:
            raise KeyboardInterrupt
        return np.zeros(5)

    found = search(blocks, start_qps=30.0)
    assert found.interrupted and found.qps == 60.0 and found.beyond == float("inf")
