"""One function on several cores: a parent that owns the socket, and a worker process for each.

A worker is the whole function, as it runs alone (`erless.serve.process.process`). All map the same
files, so the rows lie in memory once, however many workers there are: that is what makes a shard
that grows by a vCPU cheaper than a second copy of it.
The kernel hands each connection to one of them.

The parent binds, forks and waits. It passes SIGTERM on, replaces a worker that crashes, and ends
with the exit code of a worker that cannot load. A worker whose parent is gone drains and ends.

Workers publish their counts in memory that they share, so that any of them answers /metrics for
all. They become ready together: until then one of them answers probes, and afterwards a worker that
replaces another accepts connections once it has loaded.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import mmap
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from erless.serve.logs import Log
from erless.serve.metrics import Metrics

__all__ = ["Board", "Worker", "run_workers"]

SLOT_BYTES = 16 << 10
PUBLISH_S = 0.25
POLL_S = 0.02  # between two looks at the others while they load
READS = 100  # of a slot that is being written
RETRY_S = (0.1, 10.0)  # back-off before a crashed worker is replaced: first, longest
SOUND_S = 10.0  # a worker that ran so long begins the back-off anew
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
_PR_SET_PDEATHSIG = 1
_REFUSALS = {os.EX_DATAERR, os.EX_IOERR, os.EX_CONFIG}


class Board:
    """Shared memory with one slot per worker, for a JSON document each.

    Args:
        workers: number of slots.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._memory = mmap.mmap(-1, workers * SLOT_BYTES)

    def publish(self, slot: int, document: dict[str, Any]) -> None:
        """Replace the document of `slot`; only its worker calls this."""
        text = json.dumps(document).encode()
        begin = slot * SLOT_BYTES
        self._memory[begin : begin + 4] = bytes(4)  # a reader that comes now tries again
        self._memory[begin + 4 : begin + 4 + len(text)] = text
        self._memory[begin : begin + 4] = len(text).to_bytes(4, "little")

    def read(self, slot: int) -> dict[str, Any]:
        """The document that `slot` published last; empty where it has published none."""
        begin = slot * SLOT_BYTES
        for _ in range(READS):
            size = int.from_bytes(self._memory[begin : begin + 4], "little")
            try:
                document = json.loads(self._memory[begin + 4 : begin + 4 + size])
            except ValueError:
                time.sleep(0)
                continue
            return dict(document)
        return {}

    def others(self, slot: int) -> list[dict[str, Any]]:
        """The documents that the workers of all other slots published last."""
        return [document for n in range(self.workers) if n != slot and (document := self.read(n))]


@dataclass(slots=True)
class Worker:
    """What a worker has from its parent. The worker of slot 0 is the first to serve."""

    listener: socket.socket
    board: Board
    slot: int
    serving: bool = False

    @property
    def greets(self) -> bool:
        """Whether it answers probes while the function loads: only slot 0, until it serves."""
        return self.slot == 0 and not self.board.read(0).get("serving")

    async def wait_for_others(self, stop: asyncio.Event) -> None:
        """Wait until all are loaded (slot 0), or until slot 0 serves (the others), or for `stop`.

        So no worker says that it is ready while slot 0 still answers probes with "loading".
        """
        slots = range(self.board.workers) if self.slot == 0 else (0,)
        flag = "ready" if self.slot == 0 else "serving"
        while not stop.is_set() and not all(self.board.read(slot).get(flag) for slot in slots):
            await asyncio.sleep(POLL_S)

    def share(self, metrics: Metrics, loop: asyncio.AbstractEventLoop) -> None:
        """Note that all is loaded: count on from the worker before, and publish the counts."""
        before = self.board.read(self.slot)
        self.serving = bool(before.get("serving"))
        metrics.resume_from(before)
        metrics.others = lambda: self.board.others(self.slot)

        def publish_again() -> None:
            self._publish(metrics)
            loop.call_later(PUBLISH_S, publish_again)

        publish_again()

    def serve(self, metrics: Metrics) -> None:
        """Publish that this worker serves."""
        self.serving = True
        self._publish(metrics)

    def _publish(self, metrics: Metrics) -> None:
        counts = metrics.counts()
        self.board.publish(self.slot, {**counts, "ready": True, "serving": self.serving})


Work = Callable[[socket.socket, Board, int], int]


class _Parent:
    """The workers of one function.

    Args:
        listener: bound and listening.
        workers: how many.
        log: of the parent.
        work: what a worker does, given the socket, the board and its slot; its exit code.
    """

    def __init__(self, listener: socket.socket, workers: int, log: Log, work: Work) -> None:
        self._listener, self._log, self._work = listener, log, work
        self._board = Board(workers)
        self._slots: dict[int, tuple[int, float]] = {}  # pid → slot, when it began
        self._due: dict[int, float] = {}  # slot → when it is started again
        self._crashes = [0] * workers
        self._worst: int | None = None  # the exit code, once we are stopping

    def run(self) -> int:
        """Run until a signal, or until a worker cannot load; returns the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for slot in range(self._board.workers):
            self._fork(slot)
        while self._slots or self._worst is None:
            pause = min(self._due.values(), default=time.monotonic() + 1) - time.monotonic()
            received = signal.sigtimedwait(_SIGNALS, max(0.0, pause))
            if received is not None and received.si_signo != signal.SIGCHLD:
                self._stop(0)
            self._reap()
            for slot in [slot for slot, due in self._due.items() if due <= time.monotonic()]:
                del self._due[slot]
                self._fork(slot)
        return self._worst

    def _fork(self, slot: int) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self._slots[pid] = slot, time.monotonic()
            return
        code = 1
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            if os.getppid() == parent:
                code = self._work(self._listener, self._board, slot)
        except BaseException as error:
            self._log.error(f"worker {slot}: {type(error).__name__}: {error}")
        finally:
            os._exit(code)

    def _stop(self, code: int) -> None:
        """Let all workers drain; the parent ends when they have."""
        self._worst = max(self._worst or 0, code)
        self._due.clear()
        for pid in self._slots:
            os.kill(pid, signal.SIGTERM)
        self._listener.close()  # else it would take connections that no worker accepts any more

    def _reap(self) -> None:
        while self._slots:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            slot, began = self._slots.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            if self._worst is not None:
                self._worst = max(self._worst, code if code >= 0 else 1)
            elif code in _REFUSALS or not self._board.read(slot).get("ready"):
                self._log.error(f"worker {slot} did not get ready", exit_code=code)
                self._stop(code if code > 0 else 1)
            else:
                self._replace(slot, code, time.monotonic() - began)

    def _replace(self, slot: int, code: int, ran_s: float) -> None:
        self._crashes[slot] = 0 if ran_s > SOUND_S else self._crashes[slot] + 1
        wait = min(RETRY_S[0] * 2 ** self._crashes[slot], RETRY_S[1])
        self._due[slot] = time.monotonic() + wait
        self._log.error(f"worker {slot} ended and is replaced", exit_code=code, wait_s=wait)


def run_workers(listener: socket.socket, workers: int, log: Log, work: Work) -> int:
    """Run `workers` processes that serve `listener`; returns the exit code. See `_Parent`."""
    return _Parent(listener, workers, log, work).run()
