"""The supervisor's side of its watchdog: there is one while something is deployed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from pathlib import Path

from erless.deploy.local.supervisor.folder.events import log_event
from erless.deploy.local.supervisor.folder.locks import WATCHDOG_LOCK, lock_holder
from erless.deploy.local.supervisor.watchdog import end_watchdog, start_watchdog

__all__ = ["Guardian"]

UNDER_SYSTEMD = "ERLESS_SUPERVISOR_UNIT"  # set by our unit: systemd restarts what it started


class Guardian:
    """Keeps a watchdog for the state folder `state`."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._environment: dict[str, str] = {}
        self.watchdog_pid: int | None = None

    async def keep(self, environment: dict[str, str]) -> None:
        """Start a watchdog where none lives, or where its environment is not ours any more.

        A supervisor that the watchdog starts gets the watchdog's environment, and with it the
        credentials that functions read their store with.
        """
        if UNDER_SYSTEMD in environment:
            return
        if self.watchdog_pid is not None and environment != self._environment:
            self.end()
        pid = lock_holder(self._state / WATCHDOG_LOCK)
        if pid is not None and pid == self.watchdog_pid:
            return
        self._reap()
        if pid is not None:  # of the supervisor before us: its environment is not known
            end_watchdog(self._state)
        self._environment = dict(environment)
        try:
            await asyncio.to_thread(start_watchdog, self._state, self._environment)
        except (OSError, subprocess.SubprocessError) as error:
            log_event("no watchdog", reason=repr(error))
            return
        for _ in range(50):  # it detaches before it holds the lock
            self.watchdog_pid = lock_holder(self._state / WATCHDOG_LOCK)
            if self.watchdog_pid is not None:
                return
            await asyncio.sleep(0.02)

    def end(self) -> None:
        """End the watchdog: the supervisor is about to end, and shall stay ended."""
        end_watchdog(self._state)
        self._reap()

    def _reap(self) -> None:
        """A watchdog that has ended is our child where we are the one who adopts orphans."""
        if self.watchdog_pid is not None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.watchdog_pid, os.WNOHANG)
            self.watchdog_pid = None
