"""Portions made by processes of this machine, so many at a time."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from erless.errors import WorkerError
from erless.pack.job import PackJob
from erless.pack.portions import PackStep
from erless.pack.worker import FINAL

__all__ = ["Processes"]

ATTEMPTS = 3  # of one portion: a process may be killed, a bucket may be away


class Processes:
    """Runs `erless.pack.worker` for one portion after the other.

    Args:
        job: what they do.
        workers: processes at a time.
    """

    def __init__(self, job: PackJob, workers: int) -> None:
        self._text, self._workers = job.text, workers
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stop = threading.Event()

    def run(self, step: PackStep, numbers: Sequence[int], done: Callable[[int], None]) -> None:
        """Make the portions `numbers` of `step`.

        Raises:
            WorkerError: one of them failed, again and again.
        """
        with ThreadPoolExecutor(self._workers, "pack") as pool:
            pending = {pool.submit(self._make, step, number): number for number in numbers}
            try:
                for made in as_completed(pending):
                    made.result()
                    done(pending[made])
            except (
                BaseException
            ):  # Ctrl-C too: what was made is kept, the rest made by the next run
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
            code, last = self._start(step, number)
            if code == 0 or self._stop.is_set():
                return
            if code == FINAL or attempt == ATTEMPTS:
                how = f"was killed by signal {-code}" if code < 0 else f"exited {code}"
                times = f" {attempt} times" if attempt > 1 else ""
                raise WorkerError(f"portion {number} to {step} {how}{times}: {last}")

    def _start(self, step: PackStep, number: int) -> tuple[int, str]:
        """Run one process; its exit code and last line."""
        command = [sys.executable, "-m", "erless.pack.worker", step, "--number", str(number)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            self._running.add(process)
            try:
                _, errors = process.communicate(self._text)
            finally:
                self._running.discard(process)
        lines = errors.decode(errors="replace").strip().splitlines()
        return process.returncode, lines[-1] if lines else "it said nothing"
