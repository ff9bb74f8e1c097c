"""The comparison: its table, and its measurements of a small model, without Ray."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

from erless.observe.loadtest.monolith import MonolithServer
from loadtests.peers.compare import measure, over, table
from loadtests.systems import System, Traffic, local
from tests.conftest import Cli
from tests.releases import Made


def test_table() -> None:
    rows = [
        {
            "system": "erless",
            "qps": 500.0,
            "cpu_ms_per_query": 2.0,
            "p50_ms": 1.0,
            "p99_ms": 2.0,
            "memory_bytes": 4e8,
        },
        {
            "system": "monolith",
            "qps": 900.0,
            "cpu_ms_per_query": 1.0,
            "p50_ms": 0.5,
            "p99_ms": 1.0,
            "memory_bytes": 3e8,
        },
    ]
    lines = table(rows).splitlines()
    assert lines[2] == "| erless | 500 | 2.00 ms | 2.00\u00d7 | 1.0 ms | 2.0 ms | 400 MB |"
    assert "1.00\u00d7" in lines[3]


def test_only_rounds_that_both_had_are_compared() -> None:
    ours = System("erless", "", list, qps=[1.0, 100.0, 90.0], cpu_ms=[9.0, 1.0, 2.0])
    ray = System("Ray Serve", "", list, qps=[10.0, 10.0], cpu_ms=[20.0, 20.0])
    assert over(ours, ray) == {
        "peer": "Ray Serve",
        "qps_over_peer": 9.5,
        "qps_over_peer_rounds": [10.0, 9.0],
        "cpu_under_peer": 15.0,
    }


def test_wrong_answers_are_seen(packed_release: Made, tmp_path: Path) -> None:
    traffic = Traffic.read(packed_release.queries, _expected(tmp_path, 1e6))
    with MonolithServer(packed_release.bundle) as server:
        system = System("monolith", server.url, lambda: [server.pid])
        measure(system, traffic, 2, 0.5)
    assert system.largest_error > 0.1


def _expected(folder: Path, value: float) -> Path:
    path = folder / "expected.json"
    path.write_text(json.dumps({"predictions": [value] * 4096}))
    return path


def test_the_monolith_and_the_functions_answer_alike(
    packed_release: Made, tmp_path: Path, cli: Cli
) -> None:
    expected = tmp_path / "expected.json"
    told = cli("predict", "--monolith", packed_release.bundle, packed_release.queries, "-o", "json")
    expected.write_text(told.stdout)
    traffic = Traffic.read(packed_release.queries, expected)
    with ExitStack() as running:
        functions = running.enter_context(local(Path(packed_release.store), tmp_path / "state"))
        server = running.enter_context(MonolithServer(packed_release.bundle))
        systems = [functions, System("monolith", server.url, lambda: [server.pid])]
        for each in systems:
            measure(each, traffic, 2, 2.0)
    for row in (each.row() for each in systems):
        assert row["failed"] == 0
        assert row["largest_relative_error"] <= 1e-5
        assert row["qps"] > 1 and row["cpu_ms_per_query"] > 0.05
        assert row["memory_bytes"] > 2e7
