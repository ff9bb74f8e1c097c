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
from enum import Enum
from typing import cast

from erless.http.budget import BudgetShare
from erless.http.chunked import ChunkedBody
from erless.http.messages import Request, Response, aligned, body_offset, problem
from erless.http.receive import BUFFER_BYTES, Receiving
from erless.http.server.request_head import HeadError, RequestHead, read_head
from erless.http.server.state import ServerState

__all__ = ["ServerConnection"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\n"  # RFC 9113, 3.4: the half that looks like a head
LEFT_S = 1.0  # a client that has closed its half, as one that leaves does too, waits so long
LINGER_S = 2.0  # a refused client that still sends
CHOKED_BYTES = 4 << 20  # an answer this size waits for its reader before the next request
TOGETHER_BYTES = 256 << 10  # of answers that leave in one write
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
BODYLESS = {204, 304}


class _State(Enum):
    HEAD = 0  # between requests, or within a head
    BODY = 1  # a body of known size
    CHUNKED = 2
    WAIT = 3  # the handler has the request
    LINGER = 4  # refused: what still comes is thrown away, so that the client reads why
    CLOSED = 5


_RETRY_AFTER = ((b"retry-after", b"1"),)


class ServerConnection(Receiving):
    """One client.

    Args:
        server: what all connections share.
        client: address of the client; empty where it has none.
        private: the client came by a socket that only the owner of this process can reach.
    """

    __slots__ = (
        "body",
        "born",
        "choked",
        "chunked",
        "client",
        "half_closed",
        "head",
        "held",
        "keep",
        "paused",
        "private",
        "received",
        "retires",
        "server",
        "since",
        "state",
        "stranger",
        "task",
        "transport",
    )

    def __init__(self, server: ServerState, client: str = "", *, private: bool = False) -> None:
        super().__init__(server.shared)
        self.server, self.client, self.private = server, client, private
        self.stranger = False  # its certificate does not admit it
        self.held = BudgetShare(server.budget)
        self.transport: asyncio.Transport | None = None
        self.state = _State.HEAD
        self.received = 0  # bytes of the body, where it is received into its own buffer
        self.body = memoryview(b"")
        self.head: RequestHead | None = None
        self.chunked: ChunkedBody | None = None
        self.task: asyncio.Task[None] | None = None  # that makes the answer
        self.keep = True
        self.paused = self.choked = self.half_closed = False
        self.born = self.since = server.now()
        self.retires = self.born + server.limits.age_s * random.uniform(0.8, 1.2)  # noqa: S311

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start serving a client."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self.server.arriving -= not self.private
        admits = self.server.admits
        if admits is not None and not self.private and not admits(transport):
            if not self.server.strangers:
                self.server.refused(401)
                self.state = _State.CLOSED
                self.transport.abort()
                return
            self.stranger = True
        self.transport.set_write_buffer_limits(CHOKED_BYTES)
        self.server.remember(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client, which is gone."""
        if self.state is _State.WAIT and self.task is not None:
            self.task.cancel()  # nobody waits for its answer
        self.state = _State.CLOSED
        self.held.release()
        self.server.forget(self)

    def pause_writing(self) -> None:
        """Stop handling requests: the client does not read its answers fast enough."""
        self.choked = True
        self.since = self.server.now()
        if self.transport and not self.held.hold(
            "unread answers", self.transport.get_write_buffer_size()
        ):
            self.transport.abort()

    def resume_writing(self) -> None:
        """Go on handling requests: the client reads again."""
        self.choked = False
        self.held.hold("unread answers", 0)
        self.since = self.server.now()
        self.resume()

    # -- receiving

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go: the body's own buffer, while one is expected."""
        if self.state is _State.BODY:
            return self.body[self.received :]
        if self._is_deaf():
            self.start = self.tail = 0
        return self.view[self.tail :] if self.tail else self.view

    def buffer_updated(self, nbytes: int) -> None:
        """`nbytes` have arrived: handle every request that is whole."""
        if self.state is _State.BODY:
            self.received += nbytes
            if self.received < len(self.body):
                return
            self._dispatch(self.body)
        elif self._is_deaf():
            return
        else:
            fresh = self.tail == self.start and self.state is _State.HEAD
            self.tail += nbytes
            if fresh:
                if not self.choked and self._answer_whole() and self._buffer_is_empty():
                    return
                self.since = self.server.now()  # the first byte of a head
        self.resume()

    def _is_deaf(self) -> bool:
        """Whether what comes is thrown away. (A set of states would hash an Enum each time.)"""
        return self.state is _State.LINGER or self.state is _State.CLOSED

    def eof_received(self) -> bool:
        """The client has sent its last byte: answer every whole request, then close."""
        self.half_closed = True
        self.since = self.server.now()
        if self.transport is not None and not self.transport.can_write_eof():
            return False  # TLS has no half-closed connections
        return self.state is _State.WAIT or self.choked

    def resume(self) -> None:
        """Handle what the buffer holds, until a request is incomplete or has to be waited for."""
        while self._advance():
            pass
        if self.tail == BUFFER_BYTES:
            self._make_room()
        if self.paused and self.tail < BUFFER_BYTES and self.transport:
            self.paused = False
            self.transport.resume_reading()
        if self.half_closed and self.state is not _State.WAIT and not self.choked:
            self._close()
        shared = self.view is self._shared
        self.settle()
        if shared is not (self.view is self._shared):
            self._hold("buffer", BUFFER_BYTES if shared else 0)

    def _advance(self) -> bool:
        """Take the next step of reading requests; False where that needs more bytes, or time."""
        if self.state is _State.CHUNKED:
            return self._read_chunks()
        if self.state is not _State.HEAD or self.choked:
            return False
        while self.tail - self.start >= 2 and self.buffer.startswith(b"\r\n", self.start):
            self.start += 2  # RFC 9112, 2.2: empty lines in front of a request
        if self._buffer_is_empty():
            return False
        return self._answer_whole() or self._read_head()

    def _answer_whole(self) -> bool:
        """Answer whole requests at once, as far as the owner knows them at first sight.

        Those that came together are answered in one write.
        """
        server, transport = self.server, self.transport
        if (
            server.answer_whole is None
            or self.stranger
            or transport is None
            or server.draining
            or transport.is_closing()
        ):
            return False
        answers: list[bytes] = []
        size = 0
        while self.start < self.tail and size < TOGETHER_BYTES:
            answered = server.answer_whole(self.buffer, self.start, self.tail, server.date)
            if answered is None:
                break
            answer, self.start = answered
            answers.append(answer)
            size += len(answer)
        if not answers:
            return False
        if len(answers) == 1:
            transport.write(answers[0])
        else:
            transport.writelines(answers)
        self.since = server.swept
        return True

    def _buffer_is_empty(self) -> bool:
        """Whether the buffer holds nothing more; it is then filled from its beginning."""
        if self.start < self.tail:
            return False
        self.start = self.tail = 0
        return True

    def _make_room(self) -> None:
        """Make room for more; a buffer that is full all the same stops reading until handled."""
        self.compact()
        if self.tail == BUFFER_BYTES and not self.paused and self.transport:
            self.paused = True
            self.transport.pause_reading()

    def _read_head(self) -> bool:
        """Read a head that is whole, and expect its body."""
        end = self.buffer.find(b"\r\n\r\n", self.start, self.tail)
        size = (self.tail if end < 0 else end) - self.start
        if size > self.server.limits.head_bytes:
            self._refuse(431, "the request's head is too large")
            return False
        if end < 0:
            if self.buffer.find(b"\n\n", self.start, self.tail) >= 0:
                self._refuse(400, "not an HTTP/1.1 request: its lines end in LF, not in CR LF")
            return False
        if self._speaks_http2():
            return False
        text = self.view[self.start : end + 4]
        self.start = end + 4
        try:
            self.head = read_head(text)
            self.keep = self.head.keep
            self._expect_body(self.head)
        except HeadError as error:
            self._refuse(error.status, str(error))
        return self.state is _State.HEAD or self.state is _State.CHUNKED

    def _speaks_http2(self) -> bool:
        """Hand a client that begins with HTTP/2's preface over, where that is spoken."""
        take_over, transport = self.server.take_over, self.transport
        if take_over is None or transport is None or self.private:
            return False
        if not self.buffer.startswith(PREFACE, self.start):
            return False
        received = bytes(self.view[self.start : self.tail])
        self.start = self.tail = 0
        self.state = _State.CLOSED
        self.transport = None
        self.held.release()
        self.server.forget(self)
        take_over(transport, self.client, self.born, received)
        return True

    def _expect_body(self, head: RequestHead) -> None:
        """Begin to receive the body that `head` announces. Raises HeadError."""
        limit = self.server.limits.body_bytes
        if head.size > limit:
            raise HeadError(413, f"the body has {head.size:,} bytes, at most {limit:,} are taken")
        incomplete = head.chunked or head.size > self.tail - self.start
        if head.continues and incomplete and self.transport:
            self.transport.write(CONTINUE)
        if head.chunked:
            self.chunked = ChunkedBody(limit)
            self.state = _State.CHUNKED
        else:
            self._receive(head.size, body_offset(head.headers))

    def _receive(self, size: int, offset: int) -> None:
        """Take a body of known size, of which `offset` bytes are JSON."""
        begin, available = self.start, min(size, self.tail - self.start)
        self.start += available
        if available == size and self.server.answers_synchronously:
            self._dispatch(self.view[begin : begin + size])
            return
        if not self._hold("body", size):
            return
        body = aligned(size, offset)
        body[:available] = self.view[begin : begin + available]
        if available == size:
            self._dispatch(body)
        else:
            self.start = self.tail = 0
            self.body, self.received = body, available
            self.state = _State.BODY

    def _read_chunks(self) -> bool:
        """Read on in a chunked body; whether it is whole."""
        chunked, head = self.chunked, self.head
        if chunked is None or head is None:
            return False
        try:
            self.start += chunked.feed(self.view[self.start : self.tail])
        except ValueError as error:
            self._refuse(400, f"the chunked body is damaged: {error}")
            return False
        if chunked.too_large:
            self._refuse(413, f"the body has more than the {chunked.limit:,} bytes that are taken")
            return False
        # the chunks, and the body that is put together of them
        if not self._hold("body", 2 * len(chunked.data)):
            return False
        if not chunked.done:
            self.start = self.tail = 0
            return False
        self.chunked = None
        body = aligned(len(chunked.data), body_offset(head.headers))
        body[:] = chunked.data
        self._dispatch(body)
        return True

    # -- answering

    def _dispatch(self, body: memoryview) -> None:
        """Hand a whole request to the handler."""
        head = self.head
        if head is None:
            return
        self.body = memoryview(b"")
        self.state = _State.WAIT
        request = Request(
            head.method,
            head.path,
            head.headers,
            body,
            self.server.now(),
            self.private,
            self.client,
            self.stranger,
        )
        answer = self.server.handler(request)
        if isinstance(answer, Response):
            self.answer(answer)
        else:
            self.task = self.server.spawn(self, answer)

    def answer(self, response: Response) -> None:
        """Write `response`; the connection is then ready for its next request, or closes."""
        transport, head = self.transport, self.head
        if self.state is not _State.WAIT or head is None:
            return
        if transport is None or transport.is_closing():
            return
        self.head = None
        self.held.hold("body", 0)
        self.since = self.server.now()
        leaving = self.server.draining or self.half_closed or self.since > self.retires
        last = leaving and self.start == self.tail  # nothing is pipelined behind it
        keep = self.keep and not response.close and not last
        text = self.server.head(response, keep)
        if head.method == b"HEAD" or response.status in BODYLESS:
            transport.write(text)
        else:
            transport.writelines([text, *response.body])
        self.state = _State.HEAD
        if not keep:
            self._close()

    def _close(self) -> None:
        """Close, once what was answered is written."""
        self.state = _State.CLOSED
        if self.transport:
            self.transport.close()

    def _hold(self, purpose: str, size: int) -> bool:
        """Hold memory of the process's budget for this connection, or refuse the client."""
        if self.held.hold(purpose, size):
            return True
        self._refuse(503, "the memory for queries in flight is used up: try again")
        return False

    def _refuse(self, status: int, message: str) -> None:
        """Answer what cannot be read on from, and close."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        self.server.refused(status)
        response = problem(status, message, headers=_RETRY_AFTER if status == 503 else ())
        transport.writelines([self.server.head(response, keep=False), *response.body])
        if transport.can_write_eof():
            transport.write_eof()
        self.state, self.since = _State.LINGER, self.server.now()

    # -- time limits

    def sweep(self, now: float) -> None:
        """Close or refuse the client that has taken too long."""
        limits, waited = self.server.limits, now - self.since
        if self.transport is None:
            return
        if self.transport.get_write_buffer_size() > 0 and waited > limits.read_s:
            self.transport.abort()
        elif self.state is _State.WAIT and self.half_closed:
            if waited > LEFT_S:
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
        elif self.state is _State.BODY or self.state is _State.CHUNKED:
            received = self.received if self.chunked is None else len(self.chunked.data)
            if waited > limits.body_s + received / limits.body_rate:
                self._refuse(408, f"no complete body within {waited:.0f} s")

    @property
    def idle(self) -> bool:
        """Whether the connection is between two requests."""
        return self.state is _State.HEAD and self.tail == self.start

    @property
    def sheddable(self) -> bool:
        """Whether the client would lose nothing but a connection: no request of its is whole."""
        return self.state is _State.HEAD and not self.choked

    @property
    def requested(self) -> bool:
        """Whether a request has come, or begun to: every request sets `since`."""
        return self.since != self.born
