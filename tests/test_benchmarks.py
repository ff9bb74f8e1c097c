"""Each benchmark starts: what it imports is there, and it tells how to use it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(
    path.stem for path in FOLDER.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
)


def test_there_are_benchmarks() -> None:
    assert "serving" in SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_starts(script: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{script}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert shown.returncode == 0, shown.stderr
    assert "usage:" in shown.stdout


def test_clients_of_the_chaos_run_go_on_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed client stays closed: one failure counted as thousands, and 92 % had failed."""
    import numpy as np

    from benchmarks import chaos
    from erless.errors import ServeError

    class Client:
        def __init__(self, *_: object, **__: object) -> None:
            self.asked, self.closed = 0, False

        def predict(self, _: object) -> SimpleNamespace:
            self.asked += 1
            if self.closed or self.asked == 1:
                raise ServeError("no answer")
            return SimpleNamespace(predictions=np.ones(1))

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(chaos, "QueryClient", Client)
    load = chaos.Load("http://127.0.0.1:9", [None], [np.ones(1)])  # type: ignore[list-item]
    with load.running(400.0):
        while len(load.sent) < 5 * chaos.CLIENTS:
            time.sleep(0.005)
    failed = [sent for sent in load.sent if sent.fault]
    assert len(failed) == chaos.CLIENTS  # each client's first


def test_the_tower_s_report_from_a_gpu_is_what_a_profile_and_a_plan_read(tmp_path: Path) -> None:
    """The small form on a CPU: the same points, ways and curves, the served function among them."""
    import json

    from benchmarks.gpu_tower import main
    from erless.plan.costs.measured import MeasuredSpeed
    from erless.plan.planner import Planner
    from erless.plan.request import PlanRequest
    from erless.plan.source import workload_tables
    from erless.profile.curves import read_gpu_towers

    out = tmp_path / "gpu.json"
    main(["--device", "cpu", "--small", "--models", "rm1", "--out", str(out)])
    report = json.loads(out.read_text())
    assert {(point["batch"], point["precision"]) for point in report["points"]} == {
        (batch, precision) for batch in (32, 64) for precision in ("fp32", "bf16")
    }
    assert all(point["roofline_share"] > 0 for point in report["points"])
    for served in report["served"]:
        assert served["loaded"]["qps"] > 0 and served["alone"]["p99_s"] > 0
        assert served["loaded"]["cpu_s"] > 0
    curves = read_gpu_towers(out)
    assert [(curve.name, curve.precision) for curve in curves] == [("rm1", "fp32"), ("rm1", "bf16")]
    model, tables = workload_tables("rm1", 0.9, 32)
    request = PlanRequest(qps=2000.0, dense="gpu")
    measured = [curve.model_copy(update={"sample_s": 1e-6}) for curve in curves]
    times = [
        Planner(model, tables, request, measured=MeasuredSpeed(gpus=tuple(known))).places[0].dense
        for known in ([], measured)
    ]
    assert times[0] is not None and "shipped default" in times[0].source
    assert times[1] is not None and times[1].source == f"measured on {curves[0].gpu}"
    expected = curves[0].overhead_s * 32 / 256 + 32e-6
    assert times[1].service_s == pytest.approx(expected)
