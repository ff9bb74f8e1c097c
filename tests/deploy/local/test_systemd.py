"""The systemd unit of a deployment: what systemd itself makes of it, and where it is not there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from erless.deploy.local.systemd import obstacle, unit_file, unit_text
from erless.deploy.local.target import LocalTarget
from erless.errors import DeployError
from erless.progress import Silent
from erless.specs.config import Config, LocalConfig, TargetsConfig
from tests.deploy.desired import desired
from tests.deploy.fleets import WAIT_S, Box, release


def test_systemd_finds_the_unit_valid(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    state = tmp_path / 'a "state" of 100 % $HOME'
    unit = tmp_path / unit_file(state).name
    unit.write_text(unit_text(state))
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(unit)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert str(unit.name) not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


def test_a_deploy_that_wants_systemd_says_why_there_is_none(tmp_path: Path) -> None:
    if not obstacle():
        pytest.skip("systemd serves this user")
    options = LocalConfig(state=tmp_path / "state", systemd=True)
    target = LocalTarget(Config(targets=TargetsConfig(local=options)))
    with pytest.raises(DeployError, match=r"targets.local.systemd: systemctl --user"):
        target.deploy(desired(store=str(tmp_path)), Silent(), 5.0)
    assert not (tmp_path / "state").exists()


def test_a_supervisor_in_the_foreground_follows_one_that_was_killed(tmp_path: Path) -> None:
    """What systemd does at a hand-over, without systemd."""
    box = Box(tmp_path / "state")
    try:
        box.deploy(release("one"))
        box.kill_watched()
        command = [sys.executable, "-m", "erless.deploy.local.supervisor", "--foreground"]
        process = subprocess.Popen(
            [*command, str(box.folder.path)],
            env={**os.environ, "ERLESS_SUPERVISOR_UNIT": "1"},
            stdin=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + WAIT_S
        while box.folder.supervisor_pid() != process.pid:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        box.until("gateway", lambda facts: facts["ready"] == 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    finally:
        box.end()
