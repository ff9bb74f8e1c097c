"""Each benchmark starts: what it imports is there, and it tells how to use it."""

from __future__ import annotations

import subprocess
import sys

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
