"""HTTP/1.1 between gateway, shards and clients: one connection of the gateway's half.

Requests that are started in one turn of the event loop may leave in one write on one connection
(`Endpoint`'s `batch`); their answers come in the same order. Only a connection without open calls
takes new ones, so no call waits behind one of an earlier turn.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import httptools

from erless.dlrm._kernels import ANSWER_GENERAL, ANSWER_INCOMPLETE
from erless.errors import first_line
from erless.http.client.reply import MAX_BODY_BYTES, Callback, CallError, Head, Reply, Take
from erless.http.messages import JSON_LENGTH, UP, Buffer, aligned, body_offset
from erless.http.receive import Receiving
from erless.serve.protocol.fast_lane import ANSWER_HEAD

if TYPE_CHECKING:
    from erless.http.client.endpoint import Endpoint

__all__ = ["Call", "Exchange"]

MAX_HEAD_BYTES = 16 << 10
NO_HEADERS: dict[bytes, bytes] = {}
NO_BODY = memoryview(b"")
CLOSED = "the connection closed before an answer"


class Call:
    """One request on its way. `abort` gives it up; the callback is then not called."""

    __slots__ = ("began", "buffers", "done", "endpoint", "exchange", "retried", "take", "task")

    def __init__(
        self, endpoint: Endpoint, buffers: Sequence[Buffer], done: Callback, take: Take | None
    ) -> None:
        self.endpoint, self.buffers, self.take = endpoint, buffers, take
        self.done: Callback | None = done
        self.exchange: Exchange | None = None
        self.task: asyncio.Task[None] | None = None
        self.retried = False
        self.began = endpoint.now()

    @property
    def open(self) -> bool:
        """Neither answered nor given up."""
        return self.done is not None

    def finish(self, result: Reply | CallError) -> None:
        """Call back, once."""
        done, self.done = self.done, None
        self.exchange = self.take = None
        if done is not None:
            done(result)

    def abort(self) -> None:
        """Give up: an answer that still comes belongs to nobody."""
        self.done = self.take = None
        if self.task is not None:
            self.task.cancel()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.given_up()


class Exchange(Receiving):
    """One connection: requests out, answers in."""

    __slots__ = (
        "body",
        "born",
        "calls",
        "endpoint",
        "got",
        "head",
        "keep",
        "parser",
        "status",
        "transport",
        "unsent",
        "used",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint.shared)
        self.endpoint = endpoint
        self.transport: asyncio.Transport | None = None
        self.calls: deque[Call] = deque()  # not answered yet, in the order of their requests
        self.unsent: list[Buffer] = []
        self.got = self.status = 0
        self.head: Head | None = None
        self.parser: Any = None
        self.body: memoryview | None = None
        self.keep = True
        self.born = self.used = endpoint.now()

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(0)  # uvloop then writes at once, if it can
        self.endpoint.exchanges.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone: the call whose answer had begun has failed, the others are sent again."""
        why = f": {first_line(exc)}" if exc else ""
        started = self.tail > self.start or self.head is not None
        if started and self.calls:
            self.calls.popleft().finish(CallError(f"the connection broke within the answer{why}"))
        self.drop(f"{CLOSED}{why}")

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: the body's own buffer, while one is expected."""
        if self.body is not None and self.got < len(self.body):
            return self.body[self.got :]
        return self.view[self.tail :] if self.tail else self.view

    def buffer_updated(self, nbytes: int) -> None:
        """They are there."""
        if not self.calls:
            self.close()  # nobody asked
            return
        if self.body is not None:
            self.got += nbytes
            if self.got == len(self.body):
                self._complete(self.body)
            return
        self.tail += nbytes
        if self.parser is not None:
            self._feed_chunks()
        else:
            self._parse()
        self.settle()

    # -- sending

    def send(self, call: Call) -> None:
        """Write the request of `call` now."""
        self.add(call)
        self.flush()

    def add(self, call: Call) -> None:
        """Let the request of `call` leave at the next `flush`."""
        self.calls.append(call)
        call.exchange = self
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

    def given_up(self) -> None:
        """A call of ours was: the others are waited for; without any the connection closes."""
        if not any(each.open for each in self.calls):
            self.close()

    def close(self) -> None:
        """Close; calls that wait here are not told."""
        self.calls.clear()
        self.unsent.clear()
        self.endpoint.forget(self)
        if self.transport is not None:
            self.transport.abort()

    def drop(self, why: str) -> None:
        """Close; calls that wait here are sent again, or fail with `why`."""
        calls = tuple(self.calls)
        self.close()
        for each in calls:
            self.endpoint.unanswered(each, why)

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
        """Whether the answer was dealt with, or its body has to be waited for elsewhere."""
        call = self.calls[0]
        if call.take is not None:
            up_ms, stop = call.take(self.buffer, self.start, self.tail, len(self.calls) == 1)
            if up_ms == ANSWER_INCOMPLETE:
                return False
            if up_ms != ANSWER_GENERAL:
                self.start, self.keep = stop, True
                self.endpoint.direct = True
                self._finish(200, NO_HEADERS, NO_BODY, up_ms, taken=True)
                return True
        plain = ANSWER_HEAD.match(self.buffer, self.start, self.tail)
        if plain is not None:
            return self._take_plain(plain)
        return self._take_head()

    def _take_plain(self, plain: re.Match[bytes]) -> bool:
        """An answer in the fast lane (erless.serve.protocol.fast_lane)."""
        length, announced, up = plain.groups()
        head = Head()
        head.headers[JSON_LENGTH] = announced
        if up is not None:
            head.headers[UP] = up
        self.head, self.status, self.keep = head, 200, True
        self.start = plain.end()
        return self._receive(int(length), int(announced))

    def _take_head(self) -> bool:
        while True:
            end = self.buffer.find(b"\r\n\r\n", self.start, self.tail) + 4
            if end < 4:
                if self.tail - self.start > MAX_HEAD_BYTES:
                    self._damaged("its head is too large")
                return False
            self.endpoint.direct = False  # only now: a head in the fast lane may come in pieces
            head = Head()
            parser = head.parser = httptools.HttpResponseParser(head)
            try:
                parser.feed_data(self.view[self.start : end])
            except httptools.HttpParserError as error:
                self._damaged(str(error))
                return False
            self.status = parser.get_status_code()
            self.start = end
            if self.status >= 200:
                break
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
        got = min(size, self.tail - self.start)
        if size > MAX_BODY_BYTES or (len(self.calls) == 1 and self.tail - self.start > size):
            self._damaged(f"its length is {size:,} bytes")
            return False
        begin = self.start
        self.start += got
        if got == size:
            self._complete(self.view[begin : begin + size])
        else:
            body = aligned(size, offset)
            body[:got] = self.view[begin : begin + got]
            self.body, self.got, self.start, self.tail = body, got, 0, 0
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
            self.keep = self.keep and len(self.calls) == 1  # where the next begins nobody told
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
        self._finish(self.status, head.headers, body, up_ms)

    def _finish(
        self,
        status: int,
        headers: dict[bytes, bytes],
        body: memoryview,
        up_ms: float,
        taken: bool = False,
    ) -> None:
        call = self.calls.popleft()
        self.head = self.parser = self.body = None
        now = self.endpoint.now()
        took = now - call.began
        self.endpoint.answered(self, now, took)
        call.finish(Reply(status, headers, body, took, up_ms, taken))
