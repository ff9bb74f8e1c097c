"""Locks that name the one process that holds them: of the supervisor, and of its watchdog.

A lock ends with its process, whatever ended that. The file says who holds it, in a field of fixed
width that is written over in place: on a full disk it can still be written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

__all__ = ["LOCK", "WATCHDOG_LOCK", "holds_path", "lock_holder", "take_lock"]

LOCK = "lock"
WATCHDOG_LOCK = "watchdog.lock"
PID_WIDTH = 20
TRIES, TRY_S = 5, 0.02


def take_lock(path: Path) -> int | None:
    """Hold the lock in `path` until this process ends; its descriptor, or None where it is taken.

    Raises:
        OSError: the system refused.
    """
    tries = TRIES
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if not (tries := tries - 1):
                return None
            time.sleep(TRY_S)  # it may only be somebody who looks
            continue
        if holds_path(descriptor, path):
            break
        os.close(descriptor)  # whoever held it before has removed the file meanwhile
    with contextlib.suppress(OSError):
        os.pwrite(descriptor, f"{os.getpid():<{PID_WIDTH}}\n".encode(), 0)
    return descriptor


def lock_holder(path: Path) -> int | None:
    """The pid of the process that holds the lock in `path`; None where nobody does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, PID_WIDTH, 0).strip()
        return int(text) if text.isdigit() and int(text) > 1 else None
    else:
        return None
    finally:
        os.close(descriptor)


def holds_path(descriptor: int, path: Path) -> bool:
    """The lock file behind `descriptor` is still the one that `path` names: nobody removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
