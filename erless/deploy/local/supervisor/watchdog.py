"""Brings a dead supervisor back: a small process that waits beside it.

    python -m erless.deploy.local.supervisor.watchdog STATE_FOLDER

It looks at the supervisor's lock, which the kernel frees however the supervisor ended. While the
folder holds a deployment, a missing supervisor is started, and one that was stopped by a signal, or
that has not answered for long, is killed and started. Where its own lock file was removed, the
folder is not its to watch any more, and it ends. The supervisor in turn starts its watchdog
where there is none: either one survives the death of the other.

Nothing heavy is imported: the process sleeps in 10 MB.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from erless.deploy.local.supervisor.folder.locks import (
    LOCK,
    WATCHDOG_LOCK,
    holds_path,
    lock_holder,
    take_lock,
)

__all__ = ["end_watchdog", "main", "start_watchdog"]

MODULE = "erless.deploy.local.supervisor.watchdog"
SUPERVISOR = "erless.deploy.local.supervisor"
POLL_S = 0.5
STOPPED_S = 2.0  # a supervisor that was stopped is killed after so long
PING_S = 10.0  # it is asked so often whether it answers
SILENCE_S = 60.0  # one that does not answer is killed after so long
STEADY_S = 60.0  # one that lived so long did not crash-loop
LONGEST_WAIT_S = 30.0  # between two starts of one that ends at once
STATE = "state.json"


def start_watchdog(state: Path, environment: dict[str, str]) -> None:
    """Start a watchdog for the folder `state` where none lives; it outlives this process.

    Args:
        state: the folder.
        environment: what a supervisor that it starts shall have.

    Raises:
        OSError: the system refused.
    """
    if lock_holder(state / WATCHDOG_LOCK) is not None:
        return
    subprocess.run(
        [sys.executable, "-m", MODULE, str(state)],
        stdin=subprocess.DEVNULL,
        check=True,
        cwd="/",
        start_new_session=True,
        timeout=LONGEST_WAIT_S,
        env=environment,
    )


def end_watchdog(state: Path) -> None:
    """End the watchdog of the folder `state`, and wait until it has ended."""
    while (pid := lock_holder(state / WATCHDOG_LOCK)) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


class _Watch:
    """What the watchdog knows of the supervisor of one folder."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._started_s = -STEADY_S
        self._wait_s = 0.0
        self._stopped_since_s: float | None = None
        self._asked_s = self._heard_s = time.monotonic()

    @property
    def deployed(self) -> bool:
        """The folder holds a deployment."""
        return (self._state / STATE).is_file()

    def look(self) -> None:
        """Start the supervisor where it is gone; end it where it hangs."""
        now_s = time.monotonic()
        pid = lock_holder(self._state / LOCK)
        if pid is None:
            self._start(now_s)
        elif self._hangs(pid, now_s):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _start(self, now_s: float) -> None:
        since_s = now_s - self._started_s
        if since_s < self._wait_s:
            return
        steady = since_s >= STEADY_S
        self._wait_s = 0.0 if steady else min(max(1.0, 2 * self._wait_s), LONGEST_WAIT_S)
        self._started_s = self._heard_s = now_s
        self._stopped_since_s = None
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                [sys.executable, "-m", SUPERVISOR, str(self._state)],
                stdin=subprocess.DEVNULL,
                check=True,
                cwd="/",
                start_new_session=True,
                timeout=LONGEST_WAIT_S,
            )
        time.sleep(POLL_S)  # until it holds the lock

    def _hangs(self, pid: int, now_s: float) -> bool:
        if _is_stopped(pid):
            self._stopped_since_s = self._stopped_since_s or now_s
            return now_s - self._stopped_since_s >= STOPPED_S
        self._stopped_since_s = None
        if now_s - self._asked_s >= PING_S:
            self._asked_s = now_s
            if _answers(self._state):
                self._heard_s = time.monotonic()
        return now_s - self._heard_s > SILENCE_S


def _is_stopped(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return text.rpartition(b")")[2].split()[:1] == [b"T"]


def _answers(state: Path) -> bool:
    """The supervisor answers at its control socket, or has none at the moment."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
        opened.settimeout(PING_S)
        try:
            run = os.open(state / "run", os.O_RDONLY | os.O_DIRECTORY)
            try:
                opened.connect(f"/proc/self/fd/{run}/control")
            finally:
                os.close(run)
            opened.sendall(b'{"do": "ping"}\n')
            return bool(opened.recv(1))
        except TimeoutError:
            return False
        except OSError:  # it makes its socket anew by itself where somebody removed it
            return True


def main() -> None:
    """Detach, then watch the folder named on the command line until nothing is deployed there."""
    state = Path(sys.argv[1])
    if os.fork():
        os._exit(0)
    os.setsid()
    lock = take_lock(state / WATCHDOG_LOCK)
    if lock is None:
        return
    watch = _Watch(state)
    while watch.deployed and holds_path(lock, state / WATCHDOG_LOCK):
        watch.look()
        time.sleep(POLL_S)


if __name__ == "__main__":
    main()
