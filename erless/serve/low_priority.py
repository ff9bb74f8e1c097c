"""Work that gives way to everything else on the machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["LowPriority"]

NICE = 15
T = TypeVar("T")


class LowPriority:
    """Runs one thing after the other in a thread of low priority. May be used from any thread.

    The thread ends with the process, whatever it is at.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._todo: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` once what was submitted before is done; its result, or what it raises."""
        done: Future[T] = Future()
        self._todo.put((work, done))
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        return done

    def _run(self) -> None:
        with suppress(OSError):  # where a sandbox forbids it, at the priority of all
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)  # Linux: of one thread
        while True:
            work, done = self._todo.get()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)
            del work, done  # what they hold is not kept until the next comes
