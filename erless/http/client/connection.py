"""HTTP/1.1 between gateway, shards and clients: one connection of the gateway's half.

Requests that are started in one turn of the event loop may leave in one write on one connection
(`Endpoint`'s `batch`); their answers come in the same order. Only a connection without open calls
takes new ones, so no call waits behind one of an earlier turn.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol, cast

import httptools

from erless.errors import first_line
from erless.http.client.reply import (
    ANSWER_GENERAL,
    ANSWER_INCOMPLETE,
    MAX_BODY_BYTES,
    AddAnswer,
    Callback,
    CallError,
    Reply,
    ReplyHead,
)
from erless.http.messages import OUR_ANSWER, OUR_HEADERS, UP, Buffer, aligned, body_offset
from erless.http.receive import Receiving

__all__ = ["ClientConnection", "ConnectionOwner", "HttpCall"]

MAX_HEAD_BYTES = 16 << 10
SWITCHING = 101  # Switching Protocols, which no request of ours asks for
NO_HEADERS: dict[bytes, bytes] = {}
NO_BODY = memoryview(b"")
CLOSED = "the connection closed before an answer"


class ConnectionOwner(Protocol):
    """What keeps connections and hands calls to them."""

    shared: memoryview  # into which all of its connections read

    def now(self) -> float:
        """Seconds, monotonic."""

    def opened(self, connection: ClientConnection) -> None:
        """A connection is established."""

    def forget(self, connection: ClientConnection) -> None:
        """A connection is gone."""

    def answered(self, connection: ClientConnection, now: float, took_s: float) -> None:
        """An answer is whole, `took_s` after its request was made."""

    def unanswered(self, call: HttpCall, why: str) -> None:
        """The connection of `call` is gone and no byte of an answer came."""

    def observe_answer(self, direct: bool) -> None:
        """An answer has come, as our own server writes it or rewritten by a proxy."""


class HttpCall:
    """One request on its way. `abort` gives it up; the callback is then not called."""

    __slots__ = ("add_answer", "began", "buffers", "connection", "done", "retried", "task")

    def __init__(
        self,
        began: float,
        buffers: Sequence[Buffer],
        done: Callback,
        add_answer: AddAnswer | None,
    ) -> None:
        self.began, self.buffers, self.add_answer = began, buffers, add_answer
        self.done: Callback | None = done
        self.connection: ClientConnection | None = None
        self.task: asyncio.Task[None] | None = None
        self.retried = False

    @property
    def open(self) -> bool:
        """Neither answered nor given up."""
        return self.done is not None

    def finish(self, result: Reply | CallError) -> None:
        """Call back, once."""
        done, self.done = self.done, None
        self.connection = self.add_answer = None
        if done is not None:
            done(result)

    def abort(self) -> None:
        """Give up: an answer that still comes belongs to nobody."""
        self.done = self.add_answer = None
        if self.task is not None:
            self.task.cancel()
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close_if_unused()


class ClientConnection(Receiving):
    """One connection: requests out, answers in."""

    __slots__ = (
        "body",
        "born",
        "calls",
        "head",
        "keep",
        "owner",
        "parser",
        "received",
        "silent",
        "status",
        "succeeded",
        "transport",
        "unsent",
        "used",
    )

    def __init__(self, owner: ConnectionOwner) -> None:
        super().__init__(owner.shared)
        self.owner = owner
        self.transport: asyncio.Transport | None = None
        self.calls: deque[HttpCall] = deque()  # not answered yet, in the order of their requests
        self.unsent: list[Buffer] = []
        self.received = self.status = 0
        self.head: ReplyHead | None = None
        self.parser: Any = None
        self.body: memoryview | None = None
        self.keep = True
        self.succeeded = False  # another takes its place: it closes behind the last answer
        self.silent = False  # no answer has come for long: it takes no more calls
        self.born = self.used = owner.now()

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is established."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(0)  # uvloop then writes at once, if it can
        self.owner.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the calls that wait here be sent again: of a part of an answer nothing was used."""
        why = f": {first_line(exc)}" if exc else ""
        started = self.tail > self.start or self.head is not None
        first = "the connection broke within the answer" if started else CLOSED
        calls = tuple(self.calls)
        self.close()
        for call in calls:
            self.owner.unanswered(call, f"{first if call is calls[0] else CLOSED}{why}")

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: the body's own buffer, while one is expected."""
        if self.body is not None and self.received < len(self.body):
            return self.body[self.received :]
        return self.view[self.tail :] if self.tail else self.view

    def buffer_updated(self, nbytes: int) -> None:
        """`nbytes` have arrived: deal with every answer that is whole."""
        if not self.calls:
            self.close()  # nobody asked
            return
        if self.body is not None:
            self.received += nbytes
            if self.received == len(self.body):
                self._complete(self.body)
            return
        self.tail += nbytes
        if self.parser is not None:
            self._feed_chunks()
        else:
            self._parse()
        self.settle()

    # -- sending

    def send(self, call: HttpCall) -> None:
        """Write the request of `call` now."""
        self.add(call)
        self.flush()

    def add(self, call: HttpCall) -> None:
        """Let the request of `call` leave at the next `flush`."""
        self.calls.append(call)
        call.connection = self
        self.unsent.extend(call.buffers)

    def flush(self) -> None:
        """Write what was added."""
        unsent, self.unsent = self.unsent, []
        if self.transport is None or not unsent:
            return
        if len(unsent) == 1:
            self.transport.write(unsent[0])
        else:
            self.transport.writelines(unsent)

    def close_if_unused(self) -> None:
        """Close, unless a call on this connection is still open: one was just given up."""
        if not any(call.open for call in self.calls):
            self.close()

    def close(self) -> None:
        """Close; calls that wait here are not called back."""
        self.calls.clear()
        self.unsent.clear()
        self.owner.forget(self)
        if self.transport is not None:
            self.transport.abort()

    def close_silent(self) -> None:
        """Close; calls that wait here fail, since nobody answers them."""
        calls = tuple(self.calls)
        self.close()
        for call in calls:
            call.finish(CallError("no answer came on its connection", silent=True))

    def drop(self, why: str) -> None:
        """Close; calls that wait here are sent again, or fail with `why`."""
        calls = tuple(self.calls)
        self.close()
        for call in calls:
            self.owner.unanswered(call, why)

    # -- answers

    def _parse(self) -> None:
        """Deal with every answer in the buffer that is whole."""
        while self.start < self.tail and self.body is None and self.parser is None:
            if not self.calls:
                self.close()  # more than was asked for
                return
            if not self._parse_one():
                return

    def _parse_one(self) -> bool:
        """Read on in the first answer; False where its head is incomplete or damaged."""
        call = self.calls[0]
        if call.add_answer is not None:
            up_ms, stop = call.add_answer(self.buffer, self.start, self.tail, len(self.calls) == 1)
            if up_ms == ANSWER_INCOMPLETE:
                return False
            if up_ms != ANSWER_GENERAL:
                self.start, self.keep = stop, True
                self.owner.observe_answer(direct=True)
                self._finish(Reply(200, NO_HEADERS, NO_BODY, up_ms=up_ms, added=True))
                return True
        return self._read_head()

    def _read_head(self) -> bool:
        """Read a head, and begin to receive its body; False where the head is incomplete."""
        while True:
            begin = self.start
            end = self.buffer.find(b"\r\n\r\n", begin, self.tail) + 4
            if end < 4:
                if self.tail - begin > MAX_HEAD_BYTES:
                    self._damaged("its head is too large")
                return False
            head = ReplyHead()
            parser = head.parser = httptools.HttpResponseParser(head)
            try:
                parser.feed_data(self.view[begin:end])
            except httptools.HttpParserUpgrade:
                pass  # its status tells
            except httptools.HttpParserError as error:
                self._damaged(str(error))
                return False
            self.status = parser.get_status_code()
            self.start = end
            if self.status == SWITCHING:
                self._damaged("it switches to another protocol")
                return False
            if self.status >= 200:
                break
        ours = self.buffer.startswith(OUR_ANSWER, begin) and head.headers.keys() <= OUR_HEADERS
        self.owner.observe_answer(direct=ours)
        self.head = head
        self.keep, head.parser = head.keep, None
        length = head.headers.get(b"content-length")
        if b"transfer-encoding" in head.headers:
            self.parser = parser
            self._feed_chunks()
            return True
        if length is None or not length.isdigit():
            self._damaged("it has no length")
            return False
        return self._receive(int(length), body_offset(head.headers))

    def _receive(self, size: int, offset: int) -> bool:
        """Take a body of known size, of which `offset` bytes are JSON."""
        available = min(size, self.tail - self.start)
        if size > MAX_BODY_BYTES or (len(self.calls) == 1 and self.tail - self.start > size):
            self._damaged(f"its length is {size:,} bytes")
            return False
        begin = self.start
        self.start += available
        if available == size:
            self._complete(self.view[begin : begin + size])
        else:
            body = aligned(size, offset)
            body[:available] = self.view[begin : begin + available]
            self.body, self.received, self.start, self.tail = body, available, 0, 0
        return True

    def _feed_chunks(self) -> None:
        head = self.head
        if head is None:
            return
        try:
            self.parser.feed_data(self.view[self.start : self.tail])
        except httptools.HttpParserError as error:
            if not head.ended:
                self._damaged(str(error))
                return
        self.start = self.tail = 0
        if head.received > MAX_BODY_BYTES:
            self._damaged(f"it has more than {MAX_BODY_BYTES:,} bytes")
        elif head.ended:
            whole = b"".join(head.chunks)
            body = aligned(len(whole), body_offset(head.headers))
            body[:] = whole
            # llhttp does not tell where the next answer begins
            self.keep = self.keep and len(self.calls) == 1
            self._complete(body)

    def _damaged(self, why: str) -> None:
        call = self.calls.popleft()
        self.drop(CLOSED)
        call.finish(CallError(f"the answer is not HTTP: {why}"))

    def _complete(self, body: memoryview) -> None:
        """The answer is whole, and for the callback to read."""
        head = self.head
        if head is None:
            return
        up = head.headers.get(UP, b"")
        up_ms = int(up) if up.isdigit() and len(up) < 10 else math.inf
        self._finish(Reply(self.status, head.headers, body, up_ms=up_ms))

    def _finish(self, reply: Reply) -> None:
        """Hand `reply` to the first call; the connection is then ready for the next answer."""
        call = self.calls.popleft()
        self.head = self.parser = self.body = None
        now = self.owner.now()
        reply.took_s = now - call.began
        self.owner.answered(self, now, reply.took_s)
        call.finish(reply)
