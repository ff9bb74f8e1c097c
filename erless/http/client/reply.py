"""What a call gets: an answer, or the reason why there is none, and an answer while it arrives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from erless.errors import ErlessError

__all__ = [
    "ANSWER_GENERAL",
    "ANSWER_INCOMPLETE",
    "MAX_BODY_BYTES",
    "AddAnswer",
    "CallError",
    "Callback",
    "Reply",
    "ReplyHead",
]

MAX_BODY_BYTES = 256 << 20
ANSWER_INCOMPLETE = -1  # the rest of the answer is still to come, and has room in the buffer
ANSWER_GENERAL = -2  # the answer has to be read as HTTP


class CallError(ErlessError):
    """A call got no usable answer.

    unanswered: the connection died before one was whole. silent: we closed it, since no answer
    came on it for long (`Endpoint.distrust`).
    """

    def __init__(self, message: str, *, unanswered: bool = False, silent: bool = False) -> None:
        super().__init__(message)
        self.unanswered, self.silent = unanswered, silent


@dataclass(slots=True)
class Reply:
    """An answer.

    Args:
        status: of HTTP.
        headers: names in lower case.
        body: may lie in the connection's buffer, and is valid only while the callback runs.
        took_s: seconds since the request was made.
        up_ms: milliseconds that the function has been ready; infinite where it does not say.
        added: the call's `add_answer` has dealt with the answer; headers and body are empty.
    """

    status: int
    headers: dict[bytes, bytes]
    body: memoryview
    took_s: float = 0.0
    up_ms: float = math.inf
    added: bool = False


Callback = Callable[["Reply | CallError"], None]
# Deals with a whole answer that is known at first sight: (buffer, where the answer begins, where
# the received bytes end, whether no other answer may follow) → (milliseconds that the function has
# been ready, where the answer ends), or ANSWER_INCOMPLETE or ANSWER_GENERAL in the first place.
AddAnswer = Callable[[bytearray, int, int, bool], tuple[int, int]]


class ReplyHead:
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
        """Stop the parser at a second answer behind a chunked one."""
        if self.ended:
            raise ValueError

    def on_headers_complete(self) -> None:
        """Note whether the connection is kept."""
        self.keep = self.parser.should_keep_alive()  # forgotten once the message is complete

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep one header."""
        self.headers[name.lower()] = value

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body."""
        self.received += len(data)
        if self.received <= MAX_BODY_BYTES:
            self.chunks.append(data)

    def on_message_complete(self) -> None:
        """Note that the answer is whole."""
        self.ended = True
