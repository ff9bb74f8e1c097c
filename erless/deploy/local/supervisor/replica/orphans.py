"""Replicas that outlived their supervisor.

Each carries the state folder in its environment (one that was forked, in its zygote's), so it is
found by what it is, not by a pid that was written down and may have been reused; one started in the
instant of a kill -9 is found as well. Which function a forked one is, it wrote into a file itself.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FUNCTION_MARK", "RECORD", "STATE_MARK", "Orphan", "end_all", "find_orphans"]

STATE_MARK = "ERLESS_LOCAL_STATE"
FUNCTION_MARK = "ERLESS_LOCAL_FUNCTION"
RECORD = ".pid"  # of files in run/: FUNCTION.SLOT.pid
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Orphan:
    """A process of ours; `pidfd` stays valid whatever becomes of the pid. Close it after use."""

    pid: int
    pidfd: int
    function: str

    def send(self, number: signal.Signals) -> None:
        """Signal it, if it is still there."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return

    @property
    def alive(self) -> bool:
        """The process has not ended; one that is not reaped yet has."""
        return not select.select([self.pidfd], [], [], 0)[0]


def find_orphans(state: Path) -> list[Orphan]:
    """Live processes that were started for the state folder `state`, but for this process.

    A zygote is one of them, of no function.
    """
    orphans = []
    recorded = dict(_recorded(state))
    for pid in _pids():
        if pid == os.getpid() or STATE_MARK not in _environment(pid):
            continue
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        environment = _environment(pid)  # read again: now it is the process that pidfd holds
        if environment.get(STATE_MARK) == str(state):
            function = environment.get(FUNCTION_MARK) or recorded.get(pid, "")
            orphans.append(Orphan(pid, pidfd, function))
        else:
            os.close(pidfd)
    return orphans


def end_all(state: Path, drain_s: float) -> int:
    """Let all orphans drain, kill those left after `drain_s`, and return how many there were."""
    orphans = find_orphans(state)
    for orphan in orphans:
        orphan.send(signal.SIGTERM)
    deadline = time.monotonic() + drain_s
    while any(orphan.alive for orphan in orphans) and time.monotonic() < deadline:
        time.sleep(0.02)
    for orphan in orphans:
        orphan.send(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while any(orphan.alive for orphan in orphans) and time.monotonic() < deadline:
        time.sleep(0.02)
    for orphan in orphans:
        os.close(orphan.pidfd)
    return len(orphans)


def _recorded(state: Path) -> Iterator[tuple[int, str]]:
    """The pid and the function of each forked replica, from the file that it wrote."""
    for file in (state / "run").glob(f"*{RECORD}"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(file.read_text(encoding="ascii"))
            yield pid, file.name.removesuffix(RECORD).rpartition(".")[0]


def _pids() -> Iterator[int]:
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            yield int(entry.name)


def _environment(pid: int) -> dict[str, str]:
    """The environment of a process of this user; empty where it is another's, or has ended."""
    try:
        text = (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in os.fsdecode(text).split("\0") if "=" in entry)
    return {name: value for name, _, value in pairs}
