"""A systemd user unit that keeps the supervisor of one state folder, where systemd is there.

It does what the watchdog does, and starts the supervisor after a reboot as well (for a user who is
not logged in then: `loginctl enable-linger`). Functions outlive the supervisor under systemd too:
`KillMode=process` ends only the process that was started.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from erless.deploy.programs import run_program
from erless.errors import DeployError
from erless.storage.atomic import replace_file

__all__ = [
    "obstacle",
    "remove_unit",
    "runs",
    "start_unit",
    "unit_file",
    "unit_text",
    "write_unit",
]

SUPERVISOR = "erless.deploy.local.supervisor"
ANSWER_S = 30.0  # of systemctl


def unit_file(state: Path) -> Path:
    """The unit of the state folder `state`, whether it is there or not."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    mark = hashlib.sha256(str(state).encode()).hexdigest()[:8]
    return config / "systemd" / "user" / f"erless-{mark}.service"


def unit_text(state: Path) -> str:
    """The unit: started with the user's other services, and again whenever it fails."""
    root = Path(__file__).resolve().parents[3]
    command = f"{_quoted(sys.executable)} -m {SUPERVISOR} --foreground {_quoted(str(state))}"
    return f"""[Unit]
Description=erless supervisor
StartLimitIntervalSec=0

[Service]
Type=exec
Environment={_quoted(f"PYTHONPATH={root}")} ERLESS_SUPERVISOR_UNIT=1
ExecStart={command}
Restart=on-failure
RestartSec=200ms
KillMode=process
TimeoutStopSec=120

[Install]
WantedBy=default.target
"""


def _quoted(word: str) -> str:
    """A word of a unit file: systemd expands % and $, and reads C escapes in quotes."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def obstacle() -> str:
    """Why units of this user cannot be started here; empty where they can."""
    try:
        _systemctl("show-environment")
    except DeployError as error:
        return str(error)
    return ""


def write_unit(state: Path) -> None:
    """Make systemd start the supervisor of `state` with this user's services from now on.

    Raises:
        DeployError: systemd refused.
        StorageError: the disk refused.
    """
    file = unit_file(state)
    text = unit_text(state).encode()
    if not file.exists() or file.read_bytes() != text:
        replace_file(file, text)
        _systemctl("daemon-reload")
    _systemctl("enable", file.name)


def start_unit(state: Path) -> None:
    """Start the supervisor of `state` by its unit.

    Raises:
        DeployError: systemd refused.
    """
    _systemctl("start", unit_file(state).name)


def runs(state: Path, pid: int) -> bool:
    """The process `pid` is the one that the unit of `state` has started."""
    name = unit_file(state).name
    return _systemctl("show", "--property=MainPID", "--value", name).strip() == str(pid)


def remove_unit(state: Path) -> None:
    """Forget the unit of `state`, where there is one; its supervisor has ended.

    Raises:
        DeployError: systemd refused.
    """
    file = unit_file(state)
    if file.exists():
        _systemctl("disable", file.name)
        file.unlink(missing_ok=True)
        _systemctl("daemon-reload")


def _systemctl(*words: str) -> str:
    """What systemctl prints.

    Raises:
        DeployError: it is not there, or refused.
    """
    command = ["systemctl", "--user", *words]
    done = run_program(command, ANSWER_S, DeployError)
    if done.returncode:
        raise DeployError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
