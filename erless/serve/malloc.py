"""The C library's heap: kept between queries, given back after a burst.

A query's buffers have some 100 KB each. glibc would take each of them from the kernel and give it
back, page fault by page fault, for every query: `keep_heap` has it keep some megabytes.

While many queries wait, the heap grows by what each holds; afterwards the C library keeps the free
pages in between for itself. A gateway that has seen one spike would look as large ever after.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

__all__ = ["HeapTrimmer", "keep_heap"]

KEPT_BYTES = 16 << 20  # free at the end of the heap before it shrinks
ALONE_BYTES = 8 << 20  # a block this large is the kernel's
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h

BURST = 32  # queries at once; fewer hold too little to be worth it
CALM = 4  # the burst is over when so few times fewer are there
EVERY_S = 10.0  # trimming 100 MB takes some 5 ms


def keep_heap() -> bool:
    """Keep free memory for the next query; False where this is not glibc. For all of a process.

    Called once what is loaded is there: tables that are freed while loading go to the kernel.
    """
    try:
        option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    option.argtypes, option.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    return bool(option(M_TRIM_THRESHOLD, KEPT_BYTES) and option(M_MMAP_THRESHOLD, ALONE_BYTES))


def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim(3), where this is glibc."""
    try:
        function = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = [ctypes.c_size_t], ctypes.c_int
    return function


class HeapTrimmer:
    """Trims the heap after bursts.

    Args:
        trim: what does it; None: the C library.
    """

    def __init__(self, trim: Callable[[int], int] | None = None) -> None:
        self._trim = trim or _malloc_trim()
        self._most = 0
        self._last = -EVERY_S

    def observe(self, in_flight: int) -> None:
        """Note how many queries are in flight."""
        self._most = max(self._most, in_flight)

    def sweep(self, in_flight: int, now: float) -> bool:
        """Trim if a burst is over; returns whether it did. To be called now and then."""
        if self._trim is None or self._most < BURST or in_flight * CALM > self._most:
            return False
        if now - self._last < EVERY_S:
            return False
        self._trim(0)
        self._most, self._last = in_flight, now
        return True
