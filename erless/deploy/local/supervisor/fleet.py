"""All functions of the kept releases, and which release is current.

The one place that changes `state.json`. A change (deploy, rollback, destroy) excludes every other
until the old release has drained.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any

from erless.deploy.local.supervisor.alerts import AlertDesk
from erless.deploy.local.supervisor.folder.events import log_event
from erless.deploy.local.supervisor.folder.state_folder import StateFolder
from erless.deploy.local.supervisor.function import LocalFunction
from erless.deploy.local.supervisor.guardian import Guardian
from erless.deploy.local.supervisor.replica.liveness import STOPPED, read_process
from erless.deploy.local.supervisor.replica.memory import pss_bytes
from erless.deploy.local.supervisor.replica.orphans import Orphan, find_orphans
from erless.deploy.local.supervisor.replica.replica import ReplicaContext
from erless.deploy.local.supervisor.replica.spawner import Spawner
from erless.deploy.local.supervisor.sockets import LOOPBACK, listen
from erless.deploy.local.supervisor.spec import FunctionSpec, ReleaseSpec, StoredState
from erless.errors import (
    ConflictError,
    DeployError,
    ErlessError,
    StorageError,
    SupervisorEndedError,
)
from erless.specs.functions import GATEWAY

__all__ = ["LocalFleet", "Report"]

Report = Callable[[str, int, int], None]  # label, done, total
REPLACE_S = 120.0  # orphans serve at most so long after their replacements were started
LOG_TICKS = 15  # logs are measured every so many ticks


class LocalFleet:
    """Functions by key, of all kept releases.

    Args:
        folder: of the state, locked by us.
        environment: what replicas inherit.
    """

    def __init__(self, folder: StateFolder, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.state: StoredState = folder.load()
        self.functions: dict[str, LocalFunction] = {}
        self.alerts = AlertDesk(folder, lambda: self.state)
        self.spawner = Spawner(folder.path)
        self.guardian = Guardian(folder.path)
        self.public: socket.socket | None = None
        self.problem = ""  # why there is no public socket
        self.changing = ""
        self.abandoned = False  # whoever asked for the change has gone: it is undone, or completed
        self.owner: asyncio.Task[Any] | None = None  # the task that makes the change
        self.destroyed = False
        self._background: asyncio.Task[None] | None = None
        self._replacing: asyncio.Task[None] | None = None
        self._finishing: set[asyncio.Task[None]] = set()

    # Sockets and functions

    def open_public(self, port: int, takeover: bool = False) -> socket.socket:
        """The gateway's socket, opened at the first call and kept.

        Raises:
            DeployError: the port is taken.
        """
        if self.public is None:
            try:
                self.public = listen(port, takeover=takeover)
            except DeployError as error:
                self.problem = str(error)
                raise
            self.problem = ""
        return self.public

    def open(self, spec: FunctionSpec, takeover: bool = False) -> LocalFunction:
        """The function `spec` (not a gateway), with its socket, made where it is not there yet."""
        if spec.key not in self.functions:
            port = self.state.ports.get(spec.key, 0)
            try:
                opened = listen(port, takeover=takeover)
            except DeployError:  # taken while we were away: gateways get the new port
                opened = listen(0)
            self.functions[spec.key] = self._function(spec, opened)
        return self.functions[spec.key]

    def open_gateway(self, release: ReleaseSpec) -> LocalFunction:
        """The gateway of `release`, whose other functions are open."""
        spec = release.gateway
        if spec.key not in self.functions:
            ports = {spec.key: self.functions[spec.key].port for spec in release.behind}
            urls = {
                spec.digest: f"{spec.scheme}://{LOOPBACK}:{ports[spec.key]}"
                for spec in release.behind
                if spec.kind == "sparse" and not spec.decoy
            }
            env = {"ERLESS_SHARD_URLS": json.dumps(urls)}
            for behind in release.behind:
                if behind.kind == "dense":
                    env["ERLESS_DENSE_URL"] = f"{behind.scheme}://{LOOPBACK}:{ports[behind.key]}"
            public = self.open_public(self.state.port)
            self.functions[spec.key] = self._function(spec, public.dup(), env)
        return self.functions[spec.key]

    def _function(
        self, spec: FunctionSpec, opened: socket.socket, addresses: dict[str, str] | None = None
    ) -> LocalFunction:
        self._identify([*(function.spec for function in self.functions.values()), spec])
        context = ReplicaContext(
            self.folder,
            self.spawner,
            self.state.timing,
            self.environment,
            self.state.limits,
            self.alerts.raise_alert,
        )
        return LocalFunction(spec, opened, context, addresses)

    def _identify(self, specs: Iterable[FunctionSpec]) -> None:
        """Keep the certificates of `specs` valid, where they speak mutual TLS.

        Raises:
            StorageError: the disk refused.
        """
        uris = {spec.identity.name: spec.uri for spec in specs if spec.identity}
        for name in self.folder.identities.keep(uris, self.state.timing.identity_s):
            log_event("certificate made", name)

    def drop(self, keys: Iterable[str]) -> None:
        """Close functions whose replicas are gone."""
        for key in list(keys):
            self.functions.pop(key).close()

    # Start, supervision and end

    async def restore(self) -> None:
        """Run what `state.json` says; what a killed supervisor left serves until that is ready."""
        orphans = find_orphans(self.folder.path)
        self.spawner.warm()
        log_event("supervises", release=self.state.current, orphans=len(orphans))
        release = self.state.release(self.state.current)
        current_keys = {function.key for function in release.functions} if release else set()
        for orphan in orphans:
            if orphan.function not in current_keys:
                orphan.send(signal.SIGTERM)
        if release is not None:
            try:
                self.open_public(self.state.ports.get(GATEWAY, self.state.port), bool(orphans))
            except DeployError:
                pass  # `status` shows it; `tick` tries again
            else:
                self._start(release, orphans)
        if orphans:
            work = self._replace(orphans, release)
            self._replacing = asyncio.get_running_loop().create_task(work)

    def _start(self, release: ReleaseSpec, orphans: list[Orphan]) -> None:
        for spec in release.behind:
            self.open(spec, takeover=bool(orphans))
        self.open_gateway(release)
        for spec in release.functions:
            function = self.functions[spec.key]
            function.proven = True
            ready = sum(orphan.function == spec.key for orphan in orphans)
            function.activate(spec, ready, REPLACE_S if ready else 0.0)
        if self._ports() != self.state.ports:
            with suppress(StorageError):  # a full disk: the next restart picks ports again
                self.commit(self.state)

    def _ports(self) -> dict[str, int]:
        ports = {
            key: function.port
            for key, function in self.functions.items()
            if function.spec.kind != GATEWAY
        }
        if self.public is not None:
            ports[GATEWAY] = self.public.getsockname()[1]
        return ports

    async def _replace(self, orphans: list[Orphan], release: ReleaseSpec | None) -> None:
        """End orphans, the gateways first, once all that is wanted in their place is ready."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + REPLACE_S
        keys = {function.key for function in release.functions} if release else set()
        while loop.time() < deadline and not all(
            key in self.functions and self.functions[key].settled for key in keys
        ):
            await asyncio.sleep(self.state.timing.ready_poll_s)
        orphans.sort(key=lambda orphan: not orphan.function.startswith(GATEWAY))
        for orphan in orphans:
            sample = read_process(orphan.pid)
            stopped = sample is not None and sample.state == STOPPED
            orphan.send(signal.SIGKILL if stopped else signal.SIGTERM)
            if orphan.function.startswith(GATEWAY):
                await self._ended(orphan)
        for orphan in orphans:
            await self._ended(orphan)
            orphan.send(signal.SIGKILL)
            os.close(orphan.pidfd)

    async def _ended(self, orphan: Orphan) -> None:
        deadline = asyncio.get_running_loop().time() + self.state.timing.drain_s
        while orphan.alive and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(self.state.timing.ready_poll_s)

    async def run(self) -> None:
        """Scale, probe and watch all functions until this task is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._every("poll_s", self._tick_all))
            tasks.create_task(self._every("probe_s", self._probe_all))
            tasks.create_task(self._every("sample_s", self._watch_all))

    async def _every(self, period: str, act: Callable[[int], Awaitable[None]]) -> None:
        """Call `act` for ever, at the `Timing` field `period`, which a deploy may change."""
        count = 0
        while True:
            await asyncio.sleep(getattr(self.state.timing, period))
            count += 1
            await act(count)

    async def _tick_all(self, count: int) -> None:
        await self._guarded(LocalFunction.tick, list(self.functions.values()))
        with suppress(StorageError):  # those that are there last on; the next tick tries again
            self._identify(function.spec for function in self.functions.values())
        if count % LOG_TICKS == 0:
            for function in self.functions.values():
                function.rotate_logs()
        if self.problem and not self.changing:
            self._try_again()
        if self.state.current is not None and not self.destroyed and self.folder.owned:
            if not self.folder.exists:  # somebody removed it
                with suppress(ErlessError):
                    self.folder.save(self.state)
            await self.guardian.keep(self.environment)

    async def _probe_all(self, _: int) -> None:
        await self._guarded(LocalFunction.probe, self._with_replicas())

    async def _watch_all(self, _: int) -> None:
        for function in self._with_replicas():
            try:
                function.watch()
            except Exception as error:
                self._log_fault(function, error)

    def _with_replicas(self) -> list[LocalFunction]:
        return [function for function in self.functions.values() if function.replicas]

    @staticmethod
    async def _guarded(
        act: Callable[[LocalFunction], Awaitable[None]], functions: Iterable[LocalFunction]
    ) -> None:
        """Do something with functions; a fault in one does not stop that of the others."""

        async def guard(function: LocalFunction) -> None:
            try:
                await act(function)
            except Exception as error:
                LocalFleet._log_fault(function, error)

        await asyncio.gather(*(guard(function) for function in functions))

    @staticmethod
    def _log_fault(function: LocalFunction, error: Exception) -> None:
        trace = "".join(traceback.format_exception(error))
        log_event("tick failed", function.spec.name, reason=repr(error), trace=trace)

    def _try_again(self) -> None:
        """Open the gateway's port, which was taken at the start, if it is free now."""
        release = self.state.release(self.state.current)
        try:
            self.open_public(self.state.ports.get(GATEWAY, self.state.port))
        except ErlessError:
            return
        if release is not None:
            self._start(release, [])

    async def stop(self) -> None:
        """Drain everything, gateways first, so that no query fails."""
        gateways = [
            function for function in self.functions.values() if function.spec.kind == GATEWAY
        ]
        others = [function for function in self.functions.values() if function.spec.kind != GATEWAY]
        for group in (gateways, others):
            for function in group:
                function.pause()
            await asyncio.gather(*(function.gone() for function in group))
        self.drop(self.functions)
        self.spawner.close()
        if self.public is not None:
            self.public.close()
            self.public = None

    # Changes

    async def begin(self, change: str) -> None:
        """Exclude other changes. One that its client has left is first undone, or completed.

        Raises:
            ConflictError: one is under way.
            SupervisorEndedError: the deployment was destroyed meanwhile.
        """
        while self.changing and self.abandoned:
            await asyncio.sleep(self.state.timing.ready_poll_s)
        if self.destroyed:
            raise SupervisorEndedError(f"the deployment in {self.folder.path} was destroyed")
        if self.changing:
            raise ConflictError(f"a {self.changing} is under way in {self.folder.path}")
        self.changing, self.abandoned, self.owner = change, False, asyncio.current_task()

    async def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work` to its end, even where the client that asked for it goes away."""
        task = asyncio.get_running_loop().create_task(work)
        self._finishing.add(task)
        await asyncio.shield(task)

    def end(self) -> None:
        """Let others change again, as soon as nothing of this change is unfinished."""
        unfinished, self._finishing = self._finishing, set()

        async def later() -> None:
            await asyncio.gather(*unfinished, return_exceptions=True)
            self.changing = ""

        if all(task.done() for task in unfinished):
            self.changing = ""
        else:
            self._background = asyncio.get_running_loop().create_task(later())

    def commit(self, state: StoredState) -> None:
        """Make `state` the one that a restart begins with.

        Raises:
            StorageError: the disk refused; nothing has changed.
        """
        state = state.model_copy(update={"ports": self._ports()})
        self.folder.save(state)
        self.state = state

    # Status

    def replicas(self) -> list[dict[str, Any]]:
        """The replicas of the current release, function by function, without decoys."""
        functions = self._current_functions()
        return [each.replica_facts() for each in functions if not each.spec.decoy]

    def add(self, name: str, seconds: float) -> None:
        """Run one replica of a function more for so long.

        Raises:
            DeployError: the current release has no such function.
        """
        for function in self._current_functions():
            if function.spec.name == name:
                log_event("adds", name, seconds=seconds)
                function.add(seconds)
                return
        raise DeployError(f"the current release has no function {name!r}")

    def _current_functions(self) -> list[LocalFunction]:
        release = self.state.release(self.state.current)
        keys = [function.key for function in release.functions] if release else []
        return [self.functions[key] for key in keys if key in self.functions]

    def status(self) -> dict[str, Any]:
        """Everything that `erless status` shows."""
        release = self.state.release(self.state.current)
        shown = self._current_functions()
        shown += [
            function
            for function in self.functions.values()
            if function not in shown and function.replicas
        ]
        helpers = (self.spawner.zygote_pid, self.guardian.watchdog_pid)
        pids = [os.getpid(), *(pid for pid in helpers if pid is not None)]
        return {
            "current": self.state.current,
            "release": release.release if release else None,
            "full_copy_bytes": release.full_copy_bytes if release else 0,
            "scheme": release.gateway.scheme if release else "http",
            "port": self.public.getsockname()[1] if self.public else None,
            "problem": self.problem,
            "changing": self.changing,
            "functions": [function.facts() for function in shown],
            "supervisor": {"pids": pids, "memory_bytes": sum(map(pss_bytes, pids))},
        }
