"""What comes back of a call: the answer, why there is none, and the answer while it arrives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from erless.errors import ErlessError

__all__ = ["MAX_BODY_BYTES", "CallError", "Callback", "Head", "Reply", "Take"]

MAX_BODY_BYTES = 256 << 20


class CallError(ErlessError):
    """A call got no usable answer. `unanswered`: the connection died before any byte of one."""

    def __init__(self, message: str, *, unanswered: bool = False) -> None:
        super().__init__(message)
        self.unanswered = unanswered


@dataclass(slots=True)
class Reply:
    """An answer. `took_s` since the request was written; header names in lower case.

    `body` may lie in the connection's buffer: it is valid while the callback runs. Where `taken`,
    the call's `take` has dealt with the answer, and neither headers nor body are told.
    """

    status: int
    headers: dict[bytes, bytes]
    body: memoryview
    took_s: float
    up_ms: float = math.inf
    taken: bool = False


Callback = Callable[["Reply | CallError"], None]
# The connection's buffer, where in it an answer begins, where what came ends, whether no other may
# follow → milliseconds that the function has been ready, or ANSWER_INCOMPLETE or ANSWER_GENERAL
# (kernels.h, `answer_add`), and where the answer ends.
Take = Callable[[bytearray, int, int, bool], tuple[int, int]]


class Head:
    """What llhttp calls while it parses an answer; the body is kept up to MAX_BODY_BYTES."""

    __slots__ = ("chunks", "ended", "headers", "keep", "parser", "received")

    def __init__(self) -> None:
        self.keep = True
        self.parser: Any = None
        self.headers: dict[bytes, bytes] = {}
        self.chunks: list[bytes] = []
        self.received = 0
        self.ended = False

    def on_message_begin(self) -> None:
        """A second answer behind a chunked one is not for this head: stops the parser."""
        if self.ended:
            raise ValueError

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self.keep = self.parser.should_keep_alive()  # forgotten once the message is complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self.headers[name.lower()] = value

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self.received += len(data)
        if self.received <= MAX_BODY_BYTES:
            self.chunks.append(data)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        self.ended = True
