"""How often a CPU limit held a function up, from both versions of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from erless.serve.metrics import Metrics
from erless.serve.process.quota import export_throttling, throttling


@pytest.mark.parametrize("folder", [".", "cpu"])
def test_periods_are_told_where_the_group_counts_them(tmp_path: Path, folder: str) -> None:
    metrics = Metrics("sparse", "a" * 64, "", "1", lambda: 0.0)
    export_throttling(metrics, tmp_path)
    assert throttling(tmp_path) is None and b"cpu_periods" not in metrics.render()
    (tmp_path / folder).mkdir(exist_ok=True)
    stat = tmp_path / folder / "cpu.stat"
    stat.write_text("usage_usec 5\nnr_periods 20\nnr_throttled 15\n")
    export_throttling(metrics, tmp_path)
    stat.write_text("nr_periods 40\nnr_throttled 16\n")
    lines = metrics.render().decode().splitlines()
    assert "erless_cpu_periods 40" in lines and "erless_cpu_throttled_periods 16" in lines
