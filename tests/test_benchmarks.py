"""Each benchmark starts: what it imports is there, and it tells how to use it."""

from __future__ import annotations

import subprocess
import sys
import time
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
