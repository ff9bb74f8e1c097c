"""The locustfile as a user runs it: against a sink, a faulty server, and nothing at all."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from erless.dlrm.queries import Query, write_queries
from erless.observe.loadtest.record import read_record
from tests.loadtests.conftest import Locust


def test_closed_loop_with_nothing_but_a_url(sink: str, locust: Locust) -> None:
    run = locust("-u", 5, "-r", 5, "-t", "2s", "--host", sink)
    assert run.returncode == 0, run.stderr
    row = next(
        line
        for line in run.stderr.splitlines() + run.stdout.splitlines()
        if line.startswith("infer")
    )
    assert int(row.split()[2]) > 20 and row.split()[3].startswith("0(")


def test_an_ingress_that_the_dns_does_not_know(ingress: str, locust: Locust) -> None:
    run = locust(
        "-u", 4, "-r", 4, "-t", "2s", "--host", "http://erless.invalid", "--connect", ingress
    )
    assert run.returncode == 0, run.stderr
    assert "infer" in run.stdout + run.stderr
    run = locust("-u", 4, "-t", "2s", "--host", f"http://{ingress}")
    assert run.returncode == 1
    assert "HTTP 404" in run.stderr


def test_open_loop_is_a_poisson_process(sink: str, locust: Locust, tmp_path: Path) -> None:
    record = tmp_path / "r"
    run = locust(
        "-u", 20, "--host", sink, "--traffic", "step:50,150", "--duration", 6, "--record", record
    )
    assert run.returncode == 0, run.stderr
    log = read_record(record).log
    assert abs(len(log.due_s) - 600) < 120
    assert (log.due_s < 3).mean() < 0.4
    assert Counter(log.failure) == {"": len(log.due_s)}


def test_what_goes_wrong_is_counted(faulty: str, locust: Locust, tmp_path: Path) -> None:
    record = tmp_path / "r"
    run = locust(
        "-u",
        8,
        "--host",
        faulty,
        "--traffic",
        "constant:30",
        "--duration",
        4,
        "--deadline-ms",
        300,
        "--record",
        record,
    )
    assert run.returncode == 1
    found = Counter(read_record(record).log.failure)
    print(found)
    assert found["HTTP 503"] >= 5 and found["garbage"] >= 5 and found["timeout"] >= 5
    assert sum(found.values()) - found[""] >= 20
    assert found[""] > 40


def test_wrong_predictions_are_failures(sink: str, locust: Locust, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    lengths = np.full((3, 32), 2, np.int32)
    query = Query(
        generator.standard_normal((32, 8), np.float32),
        generator.integers(0, 1000, 192).astype(np.int32),
        lengths,
    )
    write_queries(tmp_path / "q.safetensors", query, ["table_0", "table_1", "table_2"], 16)
    expected = tmp_path / "expected.json"
    record = tmp_path / "r"
    options = (
        "-u",
        4,
        "-r",
        4,
        "-t",
        "2s",
        "--host",
        sink,
        "--queries",
        tmp_path / "q.safetensors",
        "--expected",
        expected,
        "--check-every",
        2,
        "--record",
        record,
    )
    expected.write_text(json.dumps({"predictions": [0.0] * 32}))
    assert locust(*options).returncode == 0
    right = read_record(record)
    assert len(right.errors) > 5 and right.errors.max() == 0
    record.unlink()
    expected.write_text(json.dumps({"predictions": [0.0] * 16 + [0.5] * 16}))
    assert locust(*options).returncode == 1
    found = read_record(record)
    assert Counter(found.log.failure)["wrong prediction"] > 3
    check = found.prediction(1e-5)
    assert check and check.wrong > 3 and check.max_relative_error == 1.0


def test_a_gateway_that_is_down(locust: Locust) -> None:
    run = locust("-u", 1, "-t", "20s", "--host", "http://127.0.0.1:9")
    assert run.returncode == 1
    assert "http://127.0.0.1:9/v2: no answer within 5 s" in run.stderr
    assert "Traceback" not in run.stderr


def test_bad_traffic_is_told_before_anything_is_sent(locust: Locust, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("t_s,qps\n")
    run = locust("--host", "http://127.0.0.1:9", "--traffic", tmp_path / "t.csv")
    assert run.returncode == 1
    assert f"error: {tmp_path / 't.csv'}: no rows" in run.stderr
