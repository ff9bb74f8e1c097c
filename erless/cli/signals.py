"""Ctrl-C and SIGTERM unwind the running verb, so that staged files go away.

What a handler raises while an extension module initialises is lost: Cython's start-up code swallows
it, and the verb would run on. So a signal that arrives inside an import is delivered after it.
"""

from __future__ import annotations

import atexit
import signal
from types import FrameType

__all__ = ["unwind_on_signals"]

RETRY_S = 0.02
_IMPORT = "<frozen importlib"


def unwind_on_signals() -> None:
    """SIGINT raises KeyboardInterrupt, SIGTERM SystemExit(143); both outside imports only.

    A signal that was put off when the verb ended is dropped: once Python has given up its handlers,
    the timer would kill a process that has done its work.
    """
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGINT, _unwind)
    signal.signal(signal.SIGTERM, _unwind)


def _unwind(number: int, frame: FrameType | None) -> None:
    if _importing(frame):
        signal.signal(signal.SIGALRM, lambda _, later: _unwind(number, later))
        signal.setitimer(signal.ITIMER_REAL, RETRY_S)
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_IMPORT):
            return True
        frame = frame.f_back
    return False
