"""The comparison: its table, and the whole command without Ray, on a small model."""

from __future__ import annotations

import json
import subprocess
import sys

from loadtests.peers.compare import table
from tests.conftest import ROOT


def test_table() -> None:
    rows = [
        {"system": "erless", "qps": 500.0, "cpu_ms_per_query": 2.0, "p50_ms": 1.0, "p99_ms": 2.0,
         "memory_bytes": 4e8},
        {"system": "monolith", "qps": 900.0, "cpu_ms_per_query": 1.0, "p50_ms": 0.5, "p99_ms": 1.0,
         "memory_bytes": 3e8},
    ]  # fmt: skip
    lines = table(rows).splitlines()
    assert lines[2] == "| erless | 500 | 2.00 ms | 2.00\u00d7 | 1.0 ms | 2.0 ms | 400 MB |"
    assert "1.00\u00d7" in lines[3]


def test_the_command_without_ray() -> None:
    command = [sys.executable, "-m", "loadtests.peers.compare", "--rows", "2000", "--rounds", "1",
               "--seconds", "2", "--shards", "2", "--ray-python", "/bin/false", "--output",
               "json"]  # fmt: skip
    run = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert [row["system"] for row in result["systems"]] == ["erless", "monolith"]
    for row in result["systems"]:
        assert row["failed"] == 0
        assert row["largest_relative_error"] <= 1e-5
        assert row["qps"] > 1 and row["cpu_ms_per_query"] > 0.05
        assert row["memory_bytes"] > 2e7
