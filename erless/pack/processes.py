"""Portions made by processes of this machine, so many at a time."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress

from erless.errors import WorkerError
from erless.pack.job import PackJob
from erless.pack.portions import PackStep
from erless.pack.worker import FINAL

__all__ = ["Processes"]

ATTEMPTS = 3  # of one portion: a process may be killed, a bucket may be away


class Processes:
    """Runs `erless.pack.worker` for one portion after the other.

    A process makes portions until one fails: starting one takes 0.6 CPU seconds.

    Args:
        job: what they do.
        workers: processes at a time.
    """

    def __init__(self, job: PackJob, workers: int) -> None:
        self._job, self._workers = job.line, workers
        self._running: set[_Process] = set()
        self._idle: deque[_Process] = deque()
        self._stop = threading.Event()

    def run(self, step: PackStep, numbers: Sequence[int], done: Callable[[int], None]) -> None:
        """Make the portions `numbers` of `step`.

        Raises:
            WorkerError: one of them failed, again and again.
        """
        try:
            with ThreadPoolExecutor(self._workers, "pack") as pool:
                self._run(pool, step, numbers, done)
        finally:
            while self._idle:
                self._end(self._idle.pop())

    def _run(
        self,
        pool: ThreadPoolExecutor,
        step: PackStep,
        numbers: Sequence[int],
        done: Callable[[int], None],
    ) -> None:
        pending = {pool.submit(self._make, step, number): number for number in numbers}
        try:
            for made in as_completed(pending):
                made.result()
                done(pending[made])
        except BaseException:  # Ctrl-C too: what was made is kept, the rest made by the next run
            self._stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(self._running):
                process.terminate()
            raise

    def _make(self, step: PackStep, number: int) -> None:
        """Make one portion, in a few attempts."""
        for attempt in range(1, ATTEMPTS + 1):
            if self._stop.is_set():
                return
            process = self._take()
            if process.make(step, number):
                self._idle.append(process)
                return
            code, last = self._end(process)
            if self._stop.is_set():
                return
            if code == FINAL or attempt == ATTEMPTS:
                how = f"was killed by signal {-code}" if code < 0 else f"exited {code}"
                times = f" {attempt} times" if attempt > 1 else ""
                raise WorkerError(f"portion {number} to {step} {how}{times}: {last}")

    def _take(self) -> _Process:
        """A process that has nothing to do; one at a time for each of the pool's threads."""
        with suppress(IndexError):
            return self._idle.pop()
        process = _Process(self._job)
        self._running.add(process)
        return process

    def _end(self, process: _Process) -> tuple[int, str]:
        """Let it end; its exit code and last line."""
        try:
            return process.end()
        finally:
            self._running.discard(process)


class _Process:
    """One process that makes portions.

    Args:
        job: as a line.
    """

    def __init__(self, job: bytes) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "erless.pack.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._tell(job)

    def make(self, step: PackStep, number: int) -> bool:
        """Whether it made the portion; otherwise it ends."""
        assert self._process.stdout is not None  # noqa: S101
        return self._tell(f"{step} {number}\n".encode()) and bool(self._process.stdout.readline())

    def _tell(self, line: bytes) -> bool:
        """Write a line to it; False where it has ended."""
        assert self._process.stdin is not None  # noqa: S101
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def terminate(self) -> None:
        """Have it stop where it is."""
        self._process.terminate()

    def end(self) -> tuple[int, str]:
        """Wait until it has nothing more to do; its exit code and last line."""
        with self._process:
            _, errors = self._process.communicate()
        lines = errors.decode(errors="replace").strip().splitlines()
        return self._process.returncode, lines[-1] if lines else "it said nothing"
