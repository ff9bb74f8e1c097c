"""HTTP/1.1 between gateway, shards and clients: the gateway's half.

An `Endpoint` keeps the connections to one function; `send` starts a call and returns at once. On
an idle connection that costs one write: no task, no future. Whoever called is called back once,
with the `Reply` or with the `CallError` that explains why there is none.

A connection that dies before any byte of an answer is replaced once and the request sent again:
that is what a replica that was stopped looks like. Connections are replaced when they are old, so
that new replicas behind the same address get their share.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import httptools

from erless.dlrm._kernels import TAKE_GENERAL, TAKE_WAIT
from erless.errors import first_line
from erless.serve.http import JSON_LENGTH, UP, Buffer, aligned, body_offset
from erless.serve.lane import ANSWER_HEAD
from erless.serve.receive import Receiving, shared_buffer
from erless.serve.reply import MAX_BODY_BYTES, Callback, CallError, Head, Reply, Take

__all__ = ["Call", "CallError", "Endpoint", "Reply"]

MAX_HEAD_BYTES = 16 << 10
LATENCIES = 256  # of the last calls, for the p95
EVERY = 32  # calls between two computations of it
CONNECT_S = 10.0
NO_HEADERS: dict[bytes, bytes] = {}
NO_BODY = memoryview(b"")


class Call:
    """One request on its way. `abort` gives it up; the callback is then not called."""

    __slots__ = ("began", "buffers", "connection", "done", "endpoint", "retried", "take", "task")

    def __init__(
        self, endpoint: Endpoint, buffers: Sequence[Buffer], done: Callback, take: Take | None
    ) -> None:
        self.endpoint, self.buffers, self.take = endpoint, buffers, take
        self.done: Callback | None = done
        self.connection: _Connection | None = None
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
        self.connection = self.take = None
        if done is not None:
            done(result)

    def abort(self) -> None:
        """Give up: an answer that still comes belongs to nobody, so its connection closes."""
        self.done = self.take = None
        if self.task is not None:
            self.task.cancel()
        if self.connection is not None:
            self.connection.close()
            self.connection = None


class _Connection(Receiving):
    """One connection; at most one request on it at a time."""

    __slots__ = (
        "body", "born", "call", "endpoint", "got", "head", "keep", "parser", "status", "transport",
        "used",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint.shared)
        self.endpoint = endpoint
        self.transport: asyncio.Transport | None = None
        self.call: Call | None = None
        self.got = self.status = 0
        self.head: Head | None = None
        self.parser: Any = None
        self.body: memoryview | None = None
        self.keep = True
        self.born = self.used = endpoint.now()

    # -- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(0)  # uvloop then writes at once, if it can
        self.endpoint.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.endpoint.forget(self)
        call, self.call = self.call, None
        if call is not None:
            started = self.tail > 0 or self.head is not None
            why = f": {first_line(exc)}" if exc else ""
            if started:
                call.finish(CallError(f"the connection broke within the answer{why}"))
            else:
                call.endpoint.unanswered(call, f"the connection closed before an answer{why}")

    def get_buffer(self, sizehint: int) -> memoryview:
        if self.body is not None and self.got < len(self.body):
            return self.body[self.got :]
        return self.view[self.tail :] if self.tail else self.view

    def buffer_updated(self, nbytes: int) -> None:
        if self.call is None:
            self.close()  # nobody asked
            return
        if self.body is not None:
            self.got += nbytes
            if self.got == len(self.body):
                self._complete(self.body)
            return
        self.tail += nbytes
        if self.parser is not None:
            self._feed_chunks(0)
        else:
            self._parse()
        self.settle()

    # -- sending

    def send(self, call: Call) -> None:
        """Write the request of `call`."""
        self.call, call.connection = call, self
        if self.transport is None:
            return
        if len(call.buffers) == 1:
            self.transport.write(call.buffers[0])
        else:
            self.transport.writelines(call.buffers)

    def close(self) -> None:
        """Close; a call that waits here is not told."""
        self.call = None
        self.endpoint.forget(self)
        if self.transport is not None:
            self.transport.abort()

    # -- the answer

    def _parse(self) -> None:
        call = self.call
        if call is not None and call.take is not None:
            up_ms = call.take(self.buffer, self.tail)
            if up_ms == TAKE_WAIT:
                return
            if up_ms != TAKE_GENERAL:
                self.keep = True
                self._finish(200, NO_HEADERS, NO_BODY, up_ms, taken=True)
                return
        plain = ANSWER_HEAD.match(self.buffer, 0, self.tail)
        if plain is not None:
            self._take_plain(plain)
            return
        begin = 0
        while True:
            end = self.buffer.find(b"\r\n\r\n", begin, self.tail) + 4
            if end < 4:
                if self.tail - begin > MAX_HEAD_BYTES:
                    self._damaged("its head is too large")
                elif begin:
                    self.buffer[: self.tail - begin] = self.buffer[begin : self.tail]
                    self.tail -= begin
                return
            head = Head()
            parser = head.parser = httptools.HttpResponseParser(head)
            try:
                parser.feed_data(self.view[begin:end])
            except httptools.HttpParserError as error:
                self._damaged(str(error))
                return
            self.status = parser.get_status_code()
            begin = end
            if self.status >= 200:
                break
        self.head = head
        self.keep, head.parser = head.keep, None
        self._expect_body(head, parser, begin)

    def _take_plain(self, plain: re.Match[bytes]) -> None:
        """An answer in the fast lane (erless.serve.lane)."""
        length, announced, up = plain.groups()
        size, begin = int(length), plain.end()
        head = Head()
        head.headers[JSON_LENGTH] = announced
        if up is not None:
            head.headers[UP] = up
        self.head, self.status, self.keep = head, 200, True
        got = self.tail - begin
        if got == size:
            self._complete(self.view[begin : self.tail])
        elif got > size or size > MAX_BODY_BYTES:
            self._damaged(f"its length is {size:,} bytes")
        else:
            body = aligned(size, int(announced))
            body[:got] = self.view[begin : self.tail]
            self.body, self.got, self.tail = body, got, 0

    def _expect_body(self, head: Head, parser: Any, begin: int) -> None:
        length = head.headers.get(b"content-length")
        if b"transfer-encoding" in head.headers:
            self.parser = parser
            self._feed_chunks(begin)
            return
        if length is None or not length.isdigit():
            self._damaged("it has no length")
            return
        size = int(length)
        if size > MAX_BODY_BYTES or self.tail - begin > size:
            self._damaged(f"its length is {size:,} bytes")
            return
        body = aligned(size, body_offset(head.headers))
        got = self.tail - begin
        body[:got] = self.view[begin : self.tail]
        if got == size:
            self._complete(body)
        else:
            self.body, self.got, self.tail = body, got, 0

    def _feed_chunks(self, begin: int) -> None:
        head = self.head
        if head is None:
            return
        try:
            self.parser.feed_data(self.view[begin : self.tail])
        except httptools.HttpParserError as error:
            self._damaged(str(error))
            return
        self.tail = 0
        if head.received > MAX_BODY_BYTES:
            self._damaged(f"it has more than {MAX_BODY_BYTES:,} bytes")
        elif head.ended:
            whole = b"".join(head.chunks)
            body = aligned(len(whole), body_offset(head.headers))
            body[:] = whole
            self._complete(body)

    def _damaged(self, why: str) -> None:
        call = self.call
        self.close()
        if call is not None:
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
        call, self.call = self.call, None
        self.head = self.parser = self.body = None
        self.tail = 0
        if call is None:
            return
        now = self.endpoint.now()
        took = now - call.began
        self.endpoint.release(self, now, took)
        call.finish(Reply(status, headers, body, took, up_ms, taken))


class Endpoint:
    """One function, reached at `http://host:port`.

    Args:
        url: where.
        age_s: a connection is replaced after this long.
        on_retry: told of each call that is sent again.
    """

    def __init__(self, url: str, age_s: float, on_retry: Callable[[], None]) -> None:
        authority = url.removeprefix("http://").rstrip("/")
        host, _, port = authority.rpartition(":")
        if not port.isdigit():
            host, port = authority, "80"
        self.url, self.host, self.port = url, host.strip("[]"), int(port)
        self.authority = authority.encode()
        self._age_s, self._on_retry = age_s, on_retry
        self._loop = asyncio.get_running_loop()
        self.now = time.monotonic  # the loop's clock, which tells whole milliseconds
        self.connections: set[_Connection] = set()
        self.shared = shared_buffer()
        self._idle: list[_Connection] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._latencies: deque[float] = deque(maxlen=LATENCIES)
        self._calls = 0
        self.p95_s = math.inf  # until enough calls are known

    @property
    def connected(self) -> bool:
        """A connection exists that has carried an answer."""
        return any(each.used > each.born for each in self.connections)

    def send(self, buffers: Sequence[Buffer], done: Callback, take: Take | None = None) -> Call:
        """Start a call.

        Args:
            buffers: the whole request; not to be changed until the call is over.
            done: called back once, never from within `send`.
            take: shown what has come of the answer, until it takes it or declines; `done` is told.
        """
        call = Call(self, buffers, done, take)
        while self._idle:
            connection = self._idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                connection.send(call)
                return call
        self._connect(call)
        return call

    def _connect(self, call: Call | None) -> None:
        task = self._loop.create_task(self._open(call))
        if call is not None:
            call.task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, call: Call | None) -> None:
        """A new connection for `call`, or, for None, an idle one."""
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await self._loop.create_connection(
                    lambda: _Connection(self), self.host, self.port
                )
        except (OSError, TimeoutError) as error:
            if call is not None:
                call.task = None
                why = first_line(error) if str(error) else f"no answer within {CONNECT_S:g} s"
                self.unanswered(call, f"no connection: {why}")
            return
        if call is None:
            self._idle.append(connection)
            return
        call.task = None
        if call.open:
            connection.send(call)
        else:
            self._idle.append(connection)

    def unanswered(self, call: Call, why: str) -> None:
        """The connection of `call` is gone and no byte of an answer came: try once more."""
        call.connection = None
        if not call.open:
            return
        if call.retried:
            call.finish(CallError(why, unanswered=True))
            return
        call.retried = True
        self._on_retry()
        self._connect(call)

    def release(self, connection: _Connection, now: float, took_s: float) -> None:
        """An answer is complete: keep its connection, unless it is old or the server closes it."""
        connection.used = now
        self._latencies.append(took_s)
        self._calls += 1
        if self._calls % EVERY == 0:
            ordered = sorted(self._latencies)
            self.p95_s = ordered[int(0.95 * len(ordered))]
        if not connection.keep or now - connection.born > self._age_s:
            connection.close()
            if connection.keep and not self._idle:
                self._connect(None)
        else:
            self._idle.append(connection)

    def forget(self, connection: _Connection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def sweep(self) -> None:
        """Close idle connections that are old."""
        oldest = self.now() - self._age_s
        for each in [each for each in self._idle if each.used < oldest]:
            each.close()

    def close(self) -> None:
        """Close all connections."""
        for task in self._tasks:
            task.cancel()
        for each in list(self.connections):
            each.close()
