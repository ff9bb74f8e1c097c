"""One function: its public socket, its replicas, and the autoscaler that decides how many.

At zero the supervisor watches the socket itself. A connection makes it readable, which wakes the
function; the connection waits in the kernel until a replica is ready and accepts it.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import Any

from erless.autoscale.kpa import Observation
from erless.deploy.local.supervisor.callers import connection_alert
from erless.deploy.local.supervisor.folder.events import log_event
from erless.deploy.local.supervisor.folder.logs import rotate
from erless.deploy.local.supervisor.refusals import Refusals
from erless.deploy.local.supervisor.replica.admin import Counters
from erless.deploy.local.supervisor.replica.memory import pss_bytes
from erless.deploy.local.supervisor.replica.replica import Replica, ReplicaContext, ReplicaPhase
from erless.deploy.local.supervisor.scaler import FunctionScaler
from erless.deploy.local.supervisor.spec import FunctionSpec
from erless.deploy.target import FunctionState
from erless.errors import DeployError
from erless.specs.functions import GATEWAY

__all__ = ["LocalFunction"]


class LocalFunction:
    """Runs as many replicas as its autoscaler wants, while it is active.

    Args:
        spec: what to run and how to scale it.
        opened: its public listening socket.
        context: what its replicas are started with.
        addresses: variables with the addresses of the other functions, for replicas.
    """

    def __init__(
        self,
        spec: FunctionSpec,
        opened: socket.socket,
        context: ReplicaContext,
        addresses: dict[str, str] | None = None,
    ) -> None:
        self.spec, self.socket = spec, opened
        self.replicas: list[Replica] = []
        self.active = self.proven = False
        self.hold = 0  # a deploy wants at least so many until they have been ready
        self._added = 0  # above what the autoscaler wants, for a while
        self.failures, self.reason = 0, ""
        self.failed_starts = 0  # since a replica was last ready
        self.restarts = 0
        self.decision = ""
        self._context, self._addresses = context, addresses or {}
        self.timing = context.timing
        self._loop = asyncio.get_running_loop()
        self._scaler = FunctionScaler(spec, self._loop.time())
        self._totals = Counters()
        self._observed = Counters()  # what the last observation had counted
        self._observed_s = self._loop.time()
        self._history: deque[tuple[float, Counters]] = deque()
        self._waiting = self._watching = False
        self._retry_s = 0.0
        self._retry: asyncio.TimerHandle | None = None
        self._refusals = Refusals(opened, lambda: self.reason, spec.identity)
        self._orphaned_until_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    # State

    @property
    def port(self) -> int:
        """The port of the function's public socket, on loopback."""
        port: int = self.socket.getsockname()[1]
        return port

    @property
    def ready(self) -> int:
        """The number of replicas that serve."""
        return sum(replica.phase is ReplicaPhase.READY for replica in self.replicas)

    @property
    def wanted(self) -> int:
        """The number of replicas that should serve, by the autoscaler or a deploy."""
        return max(self._scaler.wanted, self.hold) + self._added if self.active else 0

    @property
    def settled(self) -> bool:
        """As many replicas are ready as are wanted."""
        return self.ready >= self.wanted

    def state(self, rps: float) -> FunctionState:
        """Where the function stands, at `rps` requests per second."""
        if self.ready:
            failing = self.failures > 1 and self.ready < self.wanted
            if failing:
                return FunctionState.FAILING
            return FunctionState.SERVING if rps > 0 else FunctionState.IDLE
        if self.wanted and self.failures:
            return FunctionState.FAILING
        if self.wanted:
            return FunctionState.WAKING
        return FunctionState.DRAINING if self.replicas else FunctionState.AT_ZERO

    def facts(self) -> dict[str, Any]:
        """What `status` shows of the function. Reads /proc, so it is not for every tick."""
        rps, p95_ms = self.rates()
        return {
            "key": self.spec.key,
            "name": self.spec.name,
            "kind": self.spec.kind,
            "tier": self.spec.tier,
            "digest": self.spec.digest,
            "port": self.port,
            "ready": self.ready,
            "wanted": self.wanted,
            "rps": rps,
            "p95_ms": p95_ms,
            "memory_bytes": sum(pss_bytes(replica.pid) for replica in self.replicas),
            "disk_bytes": self.spec.disk_bytes * self.ready,
            "disk_reads_s": self.disk_reads_s() if self.spec.disk_bytes else None,
            "state": self.state(rps).value,
            "reason": self.reason,
            "decision": self.decision,
            "vcpu": self._scaler.vcpu,
            "restarts": self.restarts,
            "requests": self._totals.requests,
            "load_s": max((replica.counters.load_s for replica in self.replicas), default=0.0),
            "replicas": [replica.facts() for replica in self.replicas],
        }

    def rates(self) -> tuple[float, float | None]:
        """Requests/s and p95 in ms over the last rate window."""
        if len(self._history) < 2:
            return 0.0, None
        (begin, first), (end, last) = self._history[0], self._history[-1]
        return (last.requests - first.requests) / (end - begin), last.quantile_ms(0.95, first)

    def replica_facts(self) -> dict[str, Any]:
        """Which replicas there are; cheap enough to be asked for many times a second."""
        return {
            "key": self.spec.key,
            "name": self.spec.name,
            "kind": self.spec.kind,
            "wanted": self.wanted,
            "replicas": [replica.facts() for replica in self.replicas],
        }

    def disk_reads_s(self) -> float:
        """Reads/s of the disk over the last rate window."""
        if len(self._history) < 2:
            return 0.0
        (begin, first), (end, last) = self._history[0], self._history[-1]
        return (last.disk_reads - first.disk_reads) / (end - begin)

    # Commands

    def activate(self, spec: FunctionSpec, ready: int = 0, orphans_s: float = 0.0) -> None:
        """Scale by `spec` from now on, as if `ready` replicas served already.

        orphans_s: replicas of a supervisor that was killed may serve at our port for so long.
        """
        self.spec = spec
        if self.active:
            self._scaler.follow(spec, self._loop.time(), self.replicas)
        else:
            self._scaler = FunctionScaler(spec, self._loop.time(), ready)
            self.active = True
            self.failures, self.reason, self._retry_s = 0, "", 0.0
            self.failed_starts = 0
            self._orphaned_until_s = self._loop.time() + orphans_s
        self.converge()

    def add(self, seconds: float) -> None:
        """Run one replica more for so long; it then drains as one that is not wanted any more."""
        self._added += 1
        self._loop.call_later(seconds, self._give_back)
        self.converge()

    def _give_back(self) -> None:
        self._added -= 1
        self.converge()

    def pause(self) -> None:
        """Let all replicas drain, and start none again until `activate`."""
        self.active, self.hold, self.failures, self.reason = False, 0, 0, ""
        self._watch(False)
        self._refusals.refuse(False)
        for replica in self.replicas:
            replica.stop()

    async def gone(self) -> None:
        """Wait until no replica is left."""
        while self.replicas:
            await asyncio.sleep(self.timing.ready_poll_s)

    def kill(self) -> None:
        """End all replicas at once."""
        self.pause()
        for replica in self.replicas:
            replica.kill()

    def close(self) -> None:
        """Give up the socket; the replicas must be gone."""
        self._watch(False)
        self._refusals.refuse(False)
        if self._retry is not None:
            self._retry.cancel()
        self.socket.close()

    # Actions

    def converge(self) -> None:
        """Start what is missing, stop what is too much, watch the socket at zero."""
        if not self.active:
            return
        alive = [replica for replica in self.replicas if replica.active]
        missing = self.wanted - len(alive)
        if missing > 0 and self._loop.time() >= self._retry_s:
            for _ in range(missing):
                self._start()
        for replica in self._spare(alive)[: max(0, -missing)]:
            replica.stop()
        self._watch(self.wanted == 0 and not any(replica.active for replica in self.replicas))
        self._refuse_if_hopeless()

    def _refuse_if_hopeless(self) -> None:
        """Answer in place of replicas that keep failing to start, so that no query waits for them.

        A first failure is followed by a new start at once, which queries wait for. A gateway's
        socket is shared with the gateway of the release before, which may serve: it is left alone.
        """
        hopeless = (
            self.failed_starts > 1
            and not self.ready
            and not self._watching
            and self.spec.kind != GATEWAY
            and self._loop.time() >= self._orphaned_until_s
        )
        if hopeless != self._refusals.refusing:
            log_event("refuses" if hopeless else "no longer refuses", self.spec.name)
            self._waiting = self._waiting and not hopeless
            self._refusals.refuse(hopeless)

    @staticmethod
    def _spare(alive: list[Replica]) -> list[Replica]:
        """Replicas in the order of being spared: those not ready yet, then the youngest."""
        return sorted(
            alive, key=lambda replica: (replica.phase is ReplicaPhase.READY, -replica.started_s)
        )

    def _start(self) -> None:
        slots = {replica.slot for replica in self.replicas}
        slot = next(number for number in range(len(slots) + 1) if number not in slots)
        try:
            replica = Replica(
                self.spec,
                slot,
                self.socket.fileno(),
                self._context,
                self._addresses,
                self._on_exit,
            )
        except (DeployError, OSError) as error:
            self._failed(str(error))
            return
        self.replicas.append(replica)
        task = self._loop.create_task(self._await_ready(replica))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _await_ready(self, replica: Replica) -> None:
        while replica.phase is ReplicaPhase.STARTING:
            if await replica.check_ready():
                self.proven, self._waiting, self.failed_starts = True, False, 0
                self._scaler.started(replica)
                self._refuse_if_hopeless()
                if self.settled:
                    self.reason = ""
                return
            await asyncio.sleep(self.timing.ready_poll_s)

    def _on_exit(self, replica: Replica) -> None:
        self.replicas.remove(replica)
        if (replica.drained and not replica.fault) or not self.active:
            self.converge()
            return
        self.restarts += 1
        self.failed_starts += replica.ready_s is None
        log_event("crashed", self.spec.name, replica=replica.slot, reason=replica.last_words())
        if replica.lived_s >= self.timing.steady_s:
            self.failures = 0
        self._failed(replica.last_words())

    def _failed(self, reason: str) -> None:
        """Back off: at once after the first failure, then longer and longer."""
        self.failures, self.reason = self.failures + 1, reason
        delay_s = 0.0
        if self.failures > 1:
            delay_s = self.timing.backoff_s * 2.0 ** min(self.failures - 2, 16)
        delay_s = min(delay_s, self.timing.backoff_most_s)
        self._retry_s = self._loop.time() + delay_s
        if self._retry is not None:
            self._retry.cancel()
        self._retry = self._loop.call_at(self._retry_s, self.converge)
        self._refuse_if_hopeless()

    def _watch(self, watching: bool) -> None:
        if watching and not self._watching:
            self._loop.add_reader(self.socket.fileno(), self._wake)
        elif self._watching and not watching:
            self._loop.remove_reader(self.socket.fileno())
        self._watching = watching

    def _wake(self) -> None:
        """Start a replica: a connection waits, and there is none."""
        log_event("woken", self.spec.name)
        if self.spec.decoy:
            self._alert()
        self._watch(False)
        self._waiting = True
        self._observe((0.0, 0.0))
        self.converge()

    def _alert(self) -> None:
        """Tell who connected to a decoy, as soon as that is known."""

        async def tell() -> None:
            self._context.raise_alert(await connection_alert(self.spec, self.port))

        task = self._loop.create_task(tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def tick(self) -> None:
        """Read the counters of all replicas, ask the autoscaler, and start or stop replicas."""
        polled = await asyncio.gather(*(replica.poll() for replica in self.replicas))
        for pair in polled:
            if pair is not None:
                self._totals.add(pair[1], pair[0])
        now = self._loop.time()
        self._history.append((now, self._totals.copy()))
        while self._history and now - self._history[0][0] > self.timing.rate_window_s:
            self._history.popleft()
        if self.ready and self._steady():
            self.failures, self.reason = 0, ""
        if self.active:
            self._observe(self._load(now) if any(polled) or not self.ready else None)
            self.converge()

    def watch(self) -> None:
        """Look at all replicas' processes, and replace those that hang."""
        for replica in list(self.replicas):
            replica.watch()

    async def probe(self) -> None:
        """Ask all ready replicas whether they still are."""
        await asyncio.gather(*(replica.probe() for replica in self.replicas))
        self.converge()

    def _steady(self) -> bool:
        return self.settled and all(
            replica.lived_s >= self.timing.steady_s for replica in self.replicas if replica.active
        )

    def _load(self, now: float) -> tuple[float, float]:
        """The autoscaler's metric, and requests/s, averaged since the last observation of them."""
        before, self._observed = self._observed, self._totals.copy()
        seconds, self._observed_s = now - self._observed_s, now
        if seconds <= 0:
            return 0.0, 0.0
        requests_s = (self._totals.requests - before.requests) / seconds
        if self.spec.scaling.metric == "rps":
            return requests_s, requests_s
        return (self._totals.concurrency_s - before.concurrency_s) / seconds, requests_s

    def _observe(self, load: tuple[float, float] | None) -> None:
        """Decide; `load` as `_load` has it, None where no replica told its counters."""
        value, requests_s = load or (None, None)
        observation = Observation(
            self._loop.time(),
            value,
            self.ready,
            waiting=self._waiting and not self.ready,
            requests_s=requests_s,
        )
        before = self._scaler.wanted
        decision = self._scaler.observe(observation, self.replicas)
        self.decision = decision.reason
        if decision.wanted != before:
            log_event("scales", self.spec.name, to=decision.wanted, was=before, why=decision.reason)

    def rotate_logs(self) -> None:
        """Rotate the logs of all replicas where they have grown too long."""
        for replica in self.replicas:
            rotate(replica.log)
