"""Work in a thread that gives way."""

from __future__ import annotations

import os
import threading
import weakref

import pytest

from erless.serve.low_priority import NICE, LowPriority

WAIT_S = 20.0


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_one_after_the_other_at_low_priority() -> None:
    later, before = LowPriority("test"), priority()
    seen: list[int] = []
    first = later.submit(lambda: seen.append(1))
    assert later.submit(priority).result(WAIT_S) == NICE
    assert seen == [1]
    assert first.done()
    assert priority() == before, "only that thread's"


def test_what_fails_is_told_and_the_next_runs() -> None:
    later = LowPriority("test")
    failed = later.submit(lambda: 1 / 0)
    assert later.submit(lambda: 7).result(WAIT_S) == 7
    with pytest.raises(ZeroDivisionError):
        failed.result(WAIT_S)


def test_nothing_is_held_once_it_ran() -> None:
    class Rows:
        def work(self) -> None:
            pass

    later, rows = LowPriority("test"), Rows()
    gone = weakref.ref(rows)
    later.submit(rows.work).result(WAIT_S)
    later.submit(lambda: None).result(WAIT_S)  # the thread has come back for more
    del rows
    assert gone() is None
