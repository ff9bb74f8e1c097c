"""Each benchmark starts: what it imports is there, and it tells how to use it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(
    each.name for each in FOLDER.glob("*.py") if "__main__" in each.read_text(encoding="utf-8")
)


def test_there_are_benchmarks() -> None:
    assert "serving.py" in SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_starts(script: str) -> None:
    told = subprocess.run(
        [sys.executable, str(FOLDER / script), "--help"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert told.returncode == 0, told.stderr
    assert "usage:" in told.stdout
