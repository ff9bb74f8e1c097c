"""What a command took, with all that it starts: wall and CPU seconds.

CPU is that of all processes of the command's session, as /proc tells while they live.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["measured"]

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
LOOK_S = 0.1


def measured(command: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Wall and CPU seconds of a command with all that it starts, and what it printed."""
    begin = time.monotonic()
    cpu: dict[int, float] = {}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        while run.poll() is None:
            cpu |= _cpu_of(run.pid)
            time.sleep(LOOK_S)
        out, told = run.communicate()
    if run.returncode:
        raise SystemExit(told)
    return {"wall_s": time.monotonic() - begin, "cpu_s": sum(cpu.values())}, out


def _cpu_of(session: int) -> dict[int, float]:
    """CPU seconds of each process of a session, so far."""
    spent = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text(encoding="ascii").rpartition(")")[2].split()
            except (OSError, UnicodeDecodeError):  # it is gone
                continue
            if int(fields[3]) == session:
                spent[int(folder.name)] = TICK_S * (int(fields[11]) + int(fields[12]))
    return spent
