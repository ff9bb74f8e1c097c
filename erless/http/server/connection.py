"""HTTP/1.1 between gateway, shards and clients: one connection of a server.

An `asyncio.BufferedProtocol`. llhttp (httptools) parses heads; the body's framing is our own, so
that a body of known size is received straight into the buffer that numpy then reads, aligned for
it. One request of a connection is handled at a time; pipelined ones wait.

A handler that returns a Response is answered within the same turn of the loop: no task is made.
Limits: head, body, time for the head, time for the body, a client that does not read its answer.
"""

from __future__ import annotations

import asyncio
import random
import re
from enum import Enum
from typing import TYPE_CHECKING, Any, cast

import httptools

from erless.http.chunked import ChunkedBody
from erless.http.messages import (
    DEADLINE,
    JSON_LENGTH,
    Request,
    Response,
    aligned,
    body_offset,
    problem,
)
from erless.http.receive import BUFFER_BYTES, Receiving
from erless.serve.protocol.fast_lane import REQUEST_HEAD

if TYPE_CHECKING:
    from erless.http.server.server import HttpServer

__all__ = ["Connection"]

LINGER_S = 2.0  # a refused client that still sends
CHOKED_BYTES = 4 << 20  # an answer this size waits for its reader before the next request
MAX_PLAIN_BYTES = 1024
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
BODYLESS = {204, 304}


class _State(Enum):
    HEAD = 0  # between requests, or within a head
    BODY = 1  # a body of known size
    CHUNKED = 2
    WAIT = 3  # the handler has it
    LINGER = 4  # refused: what still comes is thrown away, so that the client reads why
    CLOSED = 5


_DEAF = {_State.LINGER, _State.CLOSED}


class _Head:
    """What llhttp calls while it parses a head."""

    __slots__ = ("headers", "keep", "parser", "target")

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.target = b""
        self.keep = True
        self.parser: Any = None

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_headers_complete(self) -> None:
        self.keep = self.parser.should_keep_alive()  # forgotten once the message is complete

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        old = self.headers.get(name)
        self.headers[name] = value if old is None else old + b", " + value


class Connection(Receiving):
    """One client."""

    __slots__ = (
        "body",
        "born",
        "choked",
        "chunked",
        "got",
        "head",
        "keep",
        "method",
        "path",
        "paused",
        "retires",
        "server",
        "since",
        "state",
        "transport",
    )

    def __init__(self, server: HttpServer) -> None:
        super().__init__(server.shared)
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.state = _State.HEAD
        self.got = 0
        self.body = memoryview(b"")
        self.head: _Head | None = None
        self.chunked: ChunkedBody | None = None
        self.method = self.path = b""
        self.keep = True
        self.paused = self.choked = False
        self.born = self.since = server.now()
        self.retires = self.born + server.limits.age_s * random.uniform(0.8, 1.2)  # noqa: S311

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self.transport.set_write_buffer_limits(CHOKED_BYTES)
        self.server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self.state = _State.CLOSED
        self.server.connections.discard(self)
        self.server.check_drained()

    def pause_writing(self) -> None:
        """The client does not read its answer fast enough."""
        self.choked = True
        self.since = self.server.now()

    def resume_writing(self) -> None:
        """It reads again."""
        self.choked = False
        self.since = self.server.now()
        if self.state is _State.HEAD:
            self._parse()
            self.settle()

    # -- receiving

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: the body's own buffer, while one is expected."""
        if self.state is _State.BODY:
            return self.body[self.got :]
        if self.state in _DEAF:
            self.start = self.tail = 0
        return self.view[self.tail :] if self.tail else self.view

    def buffer_updated(self, nbytes: int) -> None:
        """They are there."""
        if self.state is _State.BODY:
            self.got += nbytes
            if self.got == len(self.body):
                self._dispatch(self.body)
                self._parse()
            return
        if self.state in _DEAF:
            return
        fresh = self.tail == self.start and self.state is _State.HEAD
        self.tail += nbytes
        if fresh:
            if self.server.lane and not self.choked and self._take_lane() and self._all_taken():
                return
            self.since = self.server.now()  # the first byte of a head
        if self.state is _State.HEAD:
            self._parse()
        elif self.state is _State.CHUNKED:
            self._feed_chunks()
        if self.tail == BUFFER_BYTES:
            self._make_room()
        self.settle()

    def eof_received(self) -> bool:
        """Half-closed by the client: answer what is being handled, then close."""
        if self.state is _State.WAIT:
            self.keep = False
            return True
        return False

    def _make_room(self) -> None:
        """Make room for more; a buffer that is full all the same stops reading until handled."""
        self.compact()
        if self.tail == BUFFER_BYTES and not self.paused and self.transport:
            self.paused = True
            self.transport.pause_reading()

    def _parse(self) -> None:
        """Handle every complete request in the buffer, until one has to wait."""
        while self.state is _State.HEAD and not self.choked:
            while self.tail - self.start >= 2 and self.buffer.startswith(b"\r\n", self.start):
                self.start += 2  # RFC 9112, 2.2: empty lines in front of a request
            if self._all_taken():
                break
            if self.server.lane and self._take_lane():
                continue
            plain = REQUEST_HEAD.match(self.buffer, self.start, self.tail)
            if plain is not None and self._take_plain(plain):
                continue
            end = self.buffer.find(b"\r\n\r\n", self.start, self.tail)
            if end < 0:
                if self.tail - self.start > self.server.limits.head_bytes:
                    self._refuse(431, "the request's head is too large")
                elif self.tail == BUFFER_BYTES:
                    self._make_room()
                break
            if end - self.start > self.server.limits.head_bytes:
                self._refuse(431, "the request's head is too large")
                break
            self._take_head(end + 4)
        if self.paused and self.tail < BUFFER_BYTES and self.transport:
            self.paused = False
            self.transport.resume_reading()

    def _take_lane(self) -> bool:
        """Answer a whole request of the fast lane (erless.serve.protocol.fast_lane) at once."""
        server, transport = self.server, self.transport
        if server.lane is None or transport is None or server.draining or transport.is_closing():
            return False
        found = server.lane(self.buffer, self.start, self.tail, server.date)
        if found is None:
            return False
        answer, self.start = found
        transport.write(answer)
        self.since = server.swept
        return True

    def _all_taken(self) -> bool:
        """Whether the buffer holds nothing more; it then begins anew."""
        if self.start < self.tail:
            return False
        self.start = self.tail = 0
        return True

    def _take_plain(self, plain: re.Match[bytes]) -> bool:
        """A head in the fast lane, unless its body is too large."""
        path, announced, length, left_ms = plain.groups()
        size = int(length)
        if size > self.server.limits.body_bytes or plain.end() - self.start > MAX_PLAIN_BYTES:
            return False
        head = _Head()
        head.headers = {JSON_LENGTH: announced, DEADLINE: left_ms}
        trace = plain.group(0).partition(b"traceparent: ")[2]
        if trace:
            head.headers[b"traceparent"] = trace.rstrip()
        self.start = plain.end()
        self.keep, self.method, self.path, self.head = True, b"POST", path, head
        self._receive(size, int(announced))
        return True

    def _take_head(self, end: int) -> None:
        head = _Head()
        parser = head.parser = httptools.HttpRequestParser(head)
        fed = self.view[self.start : end]
        self.start = end
        try:
            parser.feed_data(fed)
        except httptools.HttpParserUpgrade:
            pass  # an offer that we do not take up (RFC 9110, 7.8)
        except httptools.HttpParserError as error:
            self._refuse(400, f"not an HTTP/1.1 request: {error}")
            return
        self.keep, head.parser = head.keep, None
        self.method = parser.get_method()
        self.path = head.target.partition(b"?")[0]
        if not head.target:
            self._refuse(400, "not an HTTP/1.1 request: its head is incomplete")
            return
        if not self.path.startswith(b"/"):
            try:
                self.path = httptools.parse_url(head.target).path or b"/"
            except httptools.HttpParserError:
                self._refuse(400, "the request's target is not a URL")
                return
        self.head = head
        self._expect_body(head)

    def _expect_body(self, head: _Head) -> None:
        headers = head.headers
        limit = self.server.limits.body_bytes
        chunked = b"transfer-encoding" in headers
        if chunked and headers[b"transfer-encoding"].strip().lower() != b"chunked":
            self._refuse(501, "this transfer encoding is not supported: use chunked")
            return
        size = 0 if chunked else int(headers.get(b"content-length", b"0"))
        if size > limit:
            self._refuse(413, f"the body has {size:,} bytes, at most {limit:,} are taken")
            return
        if b"expect" in headers:
            if headers[b"expect"].lower() != b"100-continue":
                self._refuse(417, "only Expect: 100-continue is known")
                return
            if (chunked or size > self.tail - self.start) and self.transport:
                self.transport.write(CONTINUE)
        if chunked:
            self.chunked = ChunkedBody(limit)
            self.state = _State.CHUNKED
            self._feed_chunks()
        else:
            self._receive(size, body_offset(headers))

    def _receive(self, size: int, offset: int) -> None:
        """Take a body of known size, of which `offset` bytes are JSON."""
        begin, got = self.start, min(size, self.tail - self.start)
        self.start += got
        if got == size and self.server.borrow:
            self._dispatch(self.view[begin : begin + size])
            return
        body = aligned(size, offset)
        body[:got] = self.view[begin : begin + got]
        if got == size:
            self._dispatch(body)
        else:
            self.start = self.tail = 0
            self.body, self.got = body, got
            self.state = _State.BODY

    def _feed_chunks(self) -> None:
        chunked, head = self.chunked, self.head
        if chunked is None or head is None:
            return
        try:
            self.start += chunked.feed(self.view[self.start : self.tail])
        except ValueError as error:
            self._refuse(400, f"the chunked body is damaged: {error}")
            return
        if chunked.too_large:
            self._refuse(413, f"the body has more than the {chunked.limit:,} bytes that are taken")
        elif chunked.done:
            self.chunked = None
            body = aligned(len(chunked.data), body_offset(head.headers))
            body[:] = chunked.data
            self._dispatch(body)
            self._parse()
        else:
            self.start = self.tail = 0

    # -- answering

    def _dispatch(self, body: memoryview) -> None:
        head = self.head
        if head is None:
            return
        self.body, self.head = memoryview(b""), None
        self.state = _State.WAIT
        request = Request(self.method, self.path, head.headers, body, self.server.now())
        answer = self.server.handler(request)
        if isinstance(answer, Response):
            self.answer(answer)
        else:
            self.server.spawn(self, answer)

    def answer(self, response: Response) -> None:
        """Write `response`; the connection is then ready for its next request, or closes."""
        transport = self.transport
        if self.state is _State.CLOSED or transport is None or transport.is_closing():
            return
        self.since = self.server.now()
        leaving = self.server.draining or self.since > self.retires
        last = leaving and self.start == self.tail  # nothing is pipelined behind it
        keep = self.keep and not response.close and not last
        head = self.server.head(response, keep)
        if self.method == b"HEAD" or response.status in BODYLESS:
            transport.write(head)
        else:
            transport.writelines([head, *response.body])
        self.state = _State.HEAD
        if not keep:
            self.state = _State.CLOSED
            transport.close()

    def resume(self) -> None:
        """Go on with what was pipelined behind a request that was answered later."""
        self._parse()
        self.settle()

    def _refuse(self, status: int, message: str) -> None:
        """Answer what cannot be read on from, and close."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        self.server.refused(status)
        response = problem(status, message)
        transport.writelines([self.server.head(response, keep=False), *response.body])
        transport.write_eof()
        self.state, self.since = _State.LINGER, self.server.now()

    def sweep(self, now: float) -> None:
        """Enforce the time limits."""
        limits, waited = self.server.limits, now - self.since
        if self.transport is None:
            return
        if self.transport.get_write_buffer_size() > 0 and waited > limits.read_s:
            self.transport.abort()
        elif self.state is _State.LINGER:
            if waited > LINGER_S:
                self.transport.close()
        elif self.state is _State.HEAD and self.tail == self.start:
            if waited > limits.idle_s:
                self.transport.close()
        elif self.state is _State.HEAD:
            if waited > limits.head_s:
                self._refuse(408, f"no complete head within {limits.head_s:g} s")
        elif self.state in {_State.BODY, _State.CHUNKED}:
            got = self.got if self.chunked is None else len(self.chunked.data)
            if waited > limits.body_s + got / limits.body_rate:
                self._refuse(408, f"no complete body within {waited:.0f} s")

    @property
    def idle(self) -> bool:
        """Between requests."""
        return self.state is _State.HEAD and self.tail == self.start

    @property
    def asked(self) -> bool:
        """A request has come, or begun to: whatever takes one, the fast lane too, sets `since`."""
        return self.since != self.born
