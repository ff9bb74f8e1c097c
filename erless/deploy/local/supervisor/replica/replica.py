"""One replica: a process that inherits the function's socket, and an admin socket of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from erless.deploy.local.supervisor.folder.logs import last_words, log_file
from erless.deploy.local.supervisor.folder.state_folder import StateFolder
from erless.deploy.local.supervisor.replica import cgroups
from erless.deploy.local.supervisor.replica.admin import Counters, get_admin, parse_counters
from erless.deploy.local.supervisor.replica.orphans import FUNCTION_MARK, RECORD, STATE_MARK
from erless.deploy.local.supervisor.replica.spawner import Child, Spawner
from erless.deploy.local.supervisor.spec import FunctionSpec, Timing
from erless.errors import DeployError, ServeError

__all__ = ["Replica", "ReplicaPhase"]


class ReplicaPhase(StrEnum):
    """A replica's life goes one way through these."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"


class Replica:
    """A running process of a function.

    Args:
        spec: what to run.
        slot: its place among the function's replicas; names its log.
        folder: of the state.
        spawner: starts processes.
        listen_fd: the function's public socket.
        environment: the supervisor's, on top of which the function's comes.
        timing: how often, how long.
        on_exit: called once, when the process has ended.
        limit: hold it to the vCPU and memory of its plan.

    Raises:
        DeployError: the system refused to start a process.
    """

    def __init__(
        self,
        spec: FunctionSpec,
        slot: int,
        folder: StateFolder,
        spawner: Spawner,
        listen_fd: int,
        environment: dict[str, str],
        timing: Timing,
        on_exit: Callable[[Replica], None],
        limit: bool = False,
    ) -> None:
        self.spec, self.slot, self.phase = spec, slot, ReplicaPhase.STARTING
        self.counters = Counters()
        self.exit_code: int | None = None
        self.drained = False  # it ended because it was told to
        self.started_s = self.heard_s = time.monotonic()
        self.ready_s: float | None = None
        self._folder, self._timing, self._on_exit = folder, timing, on_exit
        self._admin_name = f"{spec.key}.{slot}"
        self.admin = folder.socket_path(self._admin_name)
        self.log = log_file(folder.logs, spec.key, slot)
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._record_name = f"{self._admin_name}{RECORD}"
        self._process = self._spawn(spawner, listen_fd, environment)
        self.pid = self._process.pid
        self._group = cgroups.confine(spec, folder.path, slot, self.pid) if limit else ()
        self._pidfd = os.pidfd_open(self.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._ended)
        self._killer: asyncio.TimerHandle | None = None

    def _spawn(self, spawner: Spawner, listen_fd: int, environment: dict[str, str]) -> Child:
        admin = self._folder.listen(self._admin_name)
        try:
            with self.log.open("ab") as log:
                return spawner.spawn(
                    (self.spec.module, self.spec.kind),
                    {
                        **environment,
                        **self.spec.env,
                        STATE_MARK: str(self._folder.path),
                        FUNCTION_MARK: self.spec.key,
                    },
                    {"ERLESS_LISTEN_FD": listen_fd, "ERLESS_ADMIN_FD": admin.fileno()},
                    log.fileno(),
                    self._folder.run / self._record_name,
                )
        except OSError as error:
            self._folder.forget(self._admin_name)
            raise DeployError(f"cannot start {self.spec.name}: {error.strerror}") from error
        finally:
            admin.close()

    @property
    def active(self) -> bool:
        """It serves, or will."""
        return self.phase in (ReplicaPhase.STARTING, ReplicaPhase.READY)

    async def check_ready(self) -> bool:
        """Ask once whether it is ready."""
        try:
            status, _ = await get_admin(self.admin, "/v2/health/ready", self._timing.answer_s)
        except ServeError:
            return False
        self.heard_s = time.monotonic()
        if status == 200 and self.phase is ReplicaPhase.STARTING:
            self.phase, self.ready_s = ReplicaPhase.READY, time.monotonic()
        return self.phase is ReplicaPhase.READY

    async def poll(self) -> tuple[Counters, Counters] | None:
        """(before, now) of what it has counted; None where it did not answer."""
        try:
            status, text = await get_admin(self.admin, "/metrics", self._timing.answer_s)
        except ServeError:
            if time.monotonic() - self.heard_s > self._timing.silence_s and self.active:
                self.kill()
            return None
        if status != 200:
            return None
        self.heard_s = time.monotonic()
        before, self.counters = self.counters, parse_counters(text)
        return before, self.counters

    def stop(self) -> None:
        """Let it answer what it has, and end; kill it where that takes too long."""
        if not self.active:
            return
        # one that still loads ends at once; or it has become ready since it was asked, and drains
        self.phase = ReplicaPhase.DRAINING
        self._signal(signal.SIGTERM)
        self._killer = asyncio.get_running_loop().call_later(self._timing.drain_s, self.kill)

    def kill(self) -> None:
        """At once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.phase is not ReplicaPhase.GONE:
            signal.pidfd_send_signal(self._pidfd, number)

    def _ended(self) -> None:
        """The process has become a zombie: reap it, clean up, tell."""
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.exit_code = self._process.wait()
        self.drained = self.phase is ReplicaPhase.DRAINING
        self.phase = ReplicaPhase.GONE
        if self._killer is not None:
            self._killer.cancel()
        self._folder.forget(self._admin_name)
        self._folder.forget(self._record_name)
        cgroups.release(self._group)
        self._on_exit(self)

    @property
    def lived_s(self) -> float:
        """Since it became ready; 0 where it never was."""
        return 0.0 if self.ready_s is None else time.monotonic() - self.ready_s

    def last_words(self) -> str:
        """Why it ended, in its own words where it left some."""
        words = last_words(self.log, self._log_start)
        code = self.exit_code or 0
        if code < 0:
            name = signal.Signals(-code).name
            return f"killed by {name}" + (f"; it said last: {words}" if words else "")
        return words or f"ended with exit code {code} without a word"

    def facts(self) -> dict[str, Any]:
        """For `status`."""
        return {"pid": self.pid, "phase": self.phase.value, "slot": self.slot}
