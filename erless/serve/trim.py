"""Give back the memory of a burst.

While many queries wait, the heap grows by what each holds; afterwards the C library keeps the free
pages in between for itself. A gateway that has seen one spike would look as large ever after.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

__all__ = ["Trimmer"]

BURST = 32  # queries at once; fewer hold too little to be worth it
CALM = 4  # the burst is over when so few times fewer are there
EVERY_S = 10.0  # trimming 100 MB takes some 5 ms


def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim(3), where this is glibc."""
    try:
        found = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    found.argtypes, found.restype = [ctypes.c_size_t], ctypes.c_int
    return found


class Trimmer:
    """Trims the heap after bursts.

    Args:
        trim: what does it; None: the C library.
    """

    def __init__(self, trim: Callable[[int], int] | None = None) -> None:
        self._trim = trim or _malloc_trim()
        self._most = 0
        self._last = -EVERY_S

    def saw(self, in_flight: int) -> None:
        """So many queries are here now."""
        self._most = max(self._most, in_flight)

    def sweep(self, in_flight: int, now: float) -> bool:
        """Called now and then: trim, if a burst is over. Returns whether it did."""
        if self._trim is None or self._most < BURST or in_flight * CALM > self._most:
            return False
        if now - self._last < EVERY_S:
            return False
        self._trim(0)
        self._most, self._last = in_flight, now
        return True
