"""A signal that arrives while an extension module starts up is not lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Like Cython's start-up code: whatever is raised in here is swallowed.
SWALLOWS = """
import os, signal
try:
    os.kill(os.getpid(), signal.{name})
    for _ in range(1000):
        pass
except BaseException:
    pass
"""
PROGRAM = """
import time
from erless.cli.signals import unwind_on_signals
unwind_on_signals()
import swallows
time.sleep(20)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -2), (signal.SIGTERM, 143)])
def test_a_signal_inside_an_import_comes_after_it(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (tmp_path / "swallows.py").write_text(SWALLOWS.format(name=number.name))
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}"},
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == code, run.stderr
