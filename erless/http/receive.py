"""Where what connections receive lies until it is understood.

A read and what becomes of it are one turn of the event loop, so connections can read into one
buffer, which stays in the processor's cache however many there are. Only what has to wait, the
beginning of a message whose rest is still to come, moves to a buffer of its connection's own.
"""

from __future__ import annotations

import asyncio

__all__ = ["BUFFER_BYTES", "Receiving", "shared_buffer"]

BUFFER_BYTES = 64 << 10  # a whole small message in one read


def shared_buffer() -> memoryview:
    """A buffer for all connections of a loop."""
    return memoryview(bytearray(BUFFER_BYTES))


class Receiving(asyncio.BufferedProtocol):
    """A connection; what it has received and not understood yet is `buffer[start:tail]`.

    Args:
        shared: the buffer of all connections of the loop.
    """

    __slots__ = ("_shared", "buffer", "start", "tail", "view")

    def __init__(self, shared: memoryview) -> None:
        self._shared = self.view = shared
        self.buffer: bytearray = shared.obj  # type: ignore[assignment]
        self.start = self.tail = 0

    def compact(self) -> None:
        """Move what is left to the buffer's front."""
        left = self.tail - self.start
        if self.start and left:
            self.buffer[:left] = self.buffer[self.start : self.tail]
        self.start, self.tail = 0, left

    def settle(self) -> None:
        """The turn ends: keep what is left from the next read, which may be another's."""
        if self.start < self.tail:
            if self.view is self._shared:
                own = bytearray(BUFFER_BYTES)
                own[: self.tail - self.start] = self.view[self.start : self.tail]
                self.buffer, self.view = own, memoryview(own)
                self.start, self.tail = 0, self.tail - self.start
            else:
                self.compact()
        elif self.view is not self._shared:
            self.view = self._shared
            self.buffer = self._shared.obj  # type: ignore[assignment]
            self.start = self.tail = 0
        else:
            self.start = self.tail = 0
