"""One replica: a process that inherits the function's socket, and an admin socket of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from erless.deploy.local.supervisor.folder.logs import last_words, log_file
from erless.deploy.local.supervisor.folder.state_folder import ALERTS_SOCKET, StateFolder
from erless.deploy.local.supervisor.replica import cgroups
from erless.deploy.local.supervisor.replica.admin import Counters, get_admin, parse_counters
from erless.deploy.local.supervisor.replica.liveness import Liveness, read_process
from erless.deploy.local.supervisor.replica.orphans import FUNCTION_MARK, RECORD, STATE_MARK
from erless.deploy.local.supervisor.replica.spawner import Child, Spawner
from erless.deploy.local.supervisor.spec import FunctionSpec, Timing
from erless.errors import DeployError, ServeError
from erless.specs.alerts import Alert

__all__ = ["Replica", "ReplicaContext", "ReplicaPhase"]

READY_PATH = "/v2/health/ready"
SECRET_VARIABLE = "ERLESS_SECRET_FILE"  # noqa: S105 - a name; see docs/functions.md
ALERTS_VARIABLE = "ERLESS_ALERTS_SOCKET"
HTTP_OK = 200


class ReplicaPhase(StrEnum):
    """The phases that a replica goes through, in this order only."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class ReplicaContext:
    """What all replicas of a deployment are started with.

    environment: the supervisor's, on top of which the function's own comes; shared, and read at
    every start. limit: hold replicas to the vCPU and memory of their plan. raise_alert: tells of
    a touch that the supervisor saw itself.
    """

    folder: StateFolder
    spawner: Spawner
    timing: Timing
    environment: dict[str, str]
    limit: bool = False
    raise_alert: Callable[[Alert], None] = lambda alert: None


class Replica:
    """A running process of a function.

    Args:
        spec: what to run.
        slot: its place among the function's replicas; names its log.
        listen_fd: the function's public socket.
        context: what it is started with.
        addresses: variables with the addresses of other functions.
        on_exit: called once, when the process has ended.

    Raises:
        DeployError: the system refused to start a process.
    """

    def __init__(
        self,
        spec: FunctionSpec,
        slot: int,
        listen_fd: int,
        context: ReplicaContext,
        addresses: dict[str, str],
        on_exit: Callable[[Replica], None],
    ) -> None:
        self.spec, self.slot, self.phase = spec, slot, ReplicaPhase.STARTING
        self.counters = Counters()
        self.exit_code: int | None = None
        self.drained = False  # it ended because it was told to
        self.started_s = time.monotonic()
        self.ready_s: float | None = None
        self.fault = ""  # why the supervisor replaces it
        self._on_exit = on_exit
        self._folder, self._timing = folder, timing = context.folder, context.timing
        self._liveness = Liveness(timing, self.started_s)
        self._probing = False
        self._admin_name = f"{spec.key}.{slot}"
        self.admin = folder.socket_path(self._admin_name)
        self.log = log_file(folder.logs, spec.key, slot)
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._record_name = f"{self._admin_name}{RECORD}"
        environment = {**context.environment, **addresses}
        self._process = self._spawn(context.spawner, listen_fd, environment)
        self.pid = self._process.pid
        self._group = cgroups.confine(spec, folder.path, slot, self.pid) if context.limit else ()
        self._vcpu, self._throttling = spec.largest_vcpu, (0, 0)
        self._pidfd = os.pidfd_open(self.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._ended)
        self._killer: asyncio.TimerHandle | None = None

    def _spawn(self, spawner: Spawner, listen_fd: int, environment: dict[str, str]) -> Child:
        admin = self._folder.listen(self._admin_name)
        try:
            self.log.parent.mkdir(exist_ok=True)
            with self.log.open("ab") as log:
                return spawner.spawn(
                    (self.spec.module, self.spec.kind),
                    {
                        **environment,
                        **self.spec.env,
                        STATE_MARK: str(self._folder.path),
                        FUNCTION_MARK: self.spec.key,
                        SECRET_VARIABLE: str(self._folder.secret.path),
                        ALERTS_VARIABLE: ALERTS_SOCKET,
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
        """The replica serves queries, or will once it has started."""
        return self.phase in (ReplicaPhase.STARTING, ReplicaPhase.READY)

    async def check_ready(self) -> bool:
        """Ask once whether it is ready."""
        try:
            status, _ = await get_admin(self.admin, READY_PATH, self._timing.answer_s)
        except ServeError:
            return False
        now_s = time.monotonic()
        self._liveness.heard(now_s)
        if status == HTTP_OK and self.phase is ReplicaPhase.STARTING:
            self.phase, self.ready_s = ReplicaPhase.READY, now_s
        return self.phase is ReplicaPhase.READY

    async def probe(self) -> None:
        """Ask a ready replica whether it still is; start its successor where it is not.

        One question is under way at a time. It waits as long as a hung replica is given, so a
        replica that answers late has still answered.
        """
        if self._probing or self.phase is not ReplicaPhase.READY:
            return
        self._probing = True
        try:
            status, text = await get_admin(self.admin, READY_PATH, self._timing.silence_s)
        except ServeError as error:
            self._liveness.unanswered = True
            if not self._folder.has_socket(self._admin_name):
                self.replace(f"its admin socket is gone: {error}")
            return
        finally:
            self._probing = False
        self._liveness.heard(time.monotonic())
        if status != HTTP_OK and self.phase is ReplicaPhase.READY:
            self.replace(_not_ready_reason(text))

    def watch(self) -> None:
        """Look at the process; kill it where it hangs."""
        sample = read_process(self.pid)
        if sample is None or self.phase is ReplicaPhase.GONE:
            return
        now_s = time.monotonic()
        self._liveness.unanswered |= self._probing
        fault = self._liveness.judge(sample, now_s, answers=self.phase is ReplicaPhase.READY)
        silent_s = now_s - self._liveness.heard_s
        if self.phase is ReplicaPhase.STARTING and silent_s > self._timing.start_silence_s:
            fault = fault or f"no answer for {silent_s:.0f} s after its start"
        if fault:
            self.fault = fault
            self.kill()

    def replace(self, fault: str) -> None:
        """Let it answer what it has, and end; a new one is started in its place."""
        if self.phase is not ReplicaPhase.READY:
            return
        self.fault = fault
        self.stop()

    async def poll(self) -> tuple[Counters, Counters] | None:
        """Read its counters: those read before, and those of now; None where it did not answer."""
        try:
            status, text = await get_admin(self.admin, "/metrics", self._timing.answer_s)
        except ServeError:
            return None
        if status != HTTP_OK:
            return None
        self._liveness.heard(time.monotonic())
        before, self.counters = self.counters, parse_counters(text)
        return before, self.counters

    def resize(self, vcpu: float) -> None:
        """Let it use `vcpu` from now on, where it is limited."""
        if vcpu != self._vcpu and cgroups.resize(self._group, vcpu):
            self._vcpu = vcpu

    def throttling(self) -> tuple[int, int]:
        """CFS periods since the last call, and how many of them were throttled."""
        before, self._throttling = self._throttling, cgroups.throttling(self._group)
        periods, throttled = (new - old for new, old in zip(self._throttling, before, strict=True))
        return max(0, periods), max(0, throttled)

    def stop(self) -> None:
        """Let it answer what it has, and end; kill it where that takes too long."""
        if not self.active:
            return
        # one that still loads ends at once; or it has become ready since it was asked, and drains
        self.phase = ReplicaPhase.DRAINING
        self._signal(signal.SIGTERM)
        self._killer = asyncio.get_running_loop().call_later(self._timing.drain_s, self.kill)

    def kill(self) -> None:
        """End the process at once, and its workers, which may hang as it does."""
        if self.phase is not ReplicaPhase.GONE:
            with suppress(
                ProcessLookupError
            ):  # a group whose leader is not reaped is still its own
                os.killpg(self.pid, signal.SIGKILL)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.phase is not ReplicaPhase.GONE:
            signal.pidfd_send_signal(self._pidfd, number)

    def _ended(self) -> None:
        """The process has ended: reap it, remove its sockets, and call `on_exit`."""
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
        """Seconds since the replica became ready; 0 where it never was."""
        return 0.0 if self.ready_s is None else time.monotonic() - self.ready_s

    def last_words(self) -> str:
        """Why it ended, in its own words where it left some."""
        words = last_words(self.log, self._log_start)
        code = self.exit_code or 0
        if self.fault:
            return self.fault
        if code < 0:
            name = signal.Signals(-code).name
            return f"killed by {name}" + (f"; it said last: {words}" if words else "")
        return words or f"ended with exit code {code} without a word"

    def facts(self) -> dict[str, Any]:
        """What `status` shows of the replica."""
        facts = {
            "pid": self.pid,
            "phase": self.phase.value,
            "slot": self.slot,
            "age_s": round(time.monotonic() - self.started_s, 3),
        }
        return {**facts, "vcpu": self._vcpu} if self._group else facts


def _not_ready_reason(text: str) -> str:
    """Why a replica that was ready says that it is not, in its own words where it has some."""
    try:
        document = json.loads(text)
    except ValueError:
        document = {}
    words = document if isinstance(document, dict) else {}
    reason = words.get("reason") or words.get("error") or words.get("state") or "without a reason"
    return f"it is not ready any more: {reason}"
