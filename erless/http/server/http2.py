"""HTTP/2 without TLS negotiation ("prior knowledge", RFC 9113, 3.3), or over TLS by ALPN.

A connection that begins with HTTP/2's preface is handed over by `ServerConnection` and keeps its
place among the server's connections: same handler, same limits, same drain. The protocol's state
machine is the library h2's; here are bodies, flow control of answers, and limits.

h2 cannot answer what is under way once it has sent GOAWAY, so a connection that leaves (a drain,
its age) writes that frame itself and closes when its last stream has ended. A stream that the
client opened meanwhile has a higher number than GOAWAY names: clients know that it was not handled,
and send it again elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Callable, Mapping

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from hyperframe.frame import DataFrame, GoAwayFrame

from erless.http.budget import BudgetShare
from erless.http.messages import Request, Response, aligned, body_offset, problem
from erless.http.server.state import ServerState

__all__ = ["FRAME_BYTES", "Http2Connection", "Refusal", "plain_refusal"]

WINDOW_BYTES = 4 << 20  # of a body that a client may send before we have read any of it
CONNECTION_WINDOW_BYTES = 16 << 20
FRAME_BYTES = 256 << 10  # of a body in one piece
STREAMS = 256  # of one client at once; proxies open several connections
CHOKED_BYTES = 4 << 20
LEFT_S = 1.0  # that a client has to read GOAWAY and close
RESETS = 200  # streams that a client may give up in excess of those that it lets us answer
# What HTTP/1.1's hop-by-hop headers say, HTTP/2 says in frames (RFC 9113, 8.2.2).
_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
_CONFIG = h2.config.H2Configuration(
    client_side=False,
    header_encoding=None,
    validate_inbound_headers=False,  # what is not understood is not read, and nothing is passed on
    normalize_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)

# h2 4.4 makes the text of each frame for a log, the body in hexadecimal, before it asks whether
# there is one: that was half of the CPU of a query of 330 kB.
DataFrame.__repr__ = object.__repr__  # type: ignore[method-assign]

# The answer to a request whose body is not taken: its headers, a status, the fault.
Refusal = Callable[[Mapping[bytes, bytes], int, str], Response]


class _Stream:
    """One request and its answer."""

    __slots__ = (
        "_connection",
        "began",
        "headers",
        "method",
        "number",
        "path",
        "pieces",
        "rest",
        "size",
        "task",
        "trailers",
    )

    def __init__(self, connection: Http2Connection, number: int, now: float) -> None:
        self._connection, self.number, self.began = connection, number, now
        self.headers: dict[bytes, bytes] = {}
        self.method = self.path = b""
        self.pieces: list[bytes] = []
        self.size = 0
        self.task: asyncio.Task[None] | None = None
        self.rest: list[memoryview] = []  # of the answer, for which the client has no window
        self.trailers: tuple[tuple[bytes, bytes], ...] = ()

    def answer(self, response: Response) -> None:
        """Write the answer that the handler has made later."""
        self._connection.answer_stream(self, response)

    def resume(self) -> None:
        """Nothing is pipelined behind a stream."""


class Http2Connection(asyncio.BufferedProtocol):
    """One client that speaks HTTP/2.

    Args:
        server: what all connections share.
        client: address of the client; empty where it has none.
        born: when it connected.
        refusal: answers requests whose bodies are not taken.
        buffer: into which all connections of the loop read: h2 copies what it gets.
    """

    private = False

    def __init__(
        self, server: ServerState, client: str, born: float, refusal: Refusal, buffer: memoryview
    ) -> None:
        self.server, self.client, self.born = server, client, born
        self.since = server.now()
        self.retires = born + server.limits.age_s * random.uniform(0.8, 1.2)  # noqa: S311
        self.transport: asyncio.Transport | None = None
        self._refusal, self._buffer = refusal, buffer
        self._held = BudgetShare(server.budget)
        self._unread = 0  # bytes since the last whole frame
        self._held_bytes = 0  # of bodies that are not handled yet
        self._streams: dict[int, _Stream] = {}
        self._newest = 0  # the highest number of a stream
        self._leaving = self._choked = False
        self._left = math.inf  # when its last stream had ended
        self._answered = self._resets = 0
        self._h2 = h2.connection.H2Connection(_CONFIG)

    def take_over(self, transport: asyncio.Transport, received: bytes) -> None:
        """Serve the client behind `transport`, of which `received` came already."""
        self.transport = transport
        transport.set_protocol(self)
        transport.set_write_buffer_limits(CHOKED_BYTES)
        self.server.remember(self)
        codes, limits = h2.settings.SettingCodes, self.server.limits
        self._h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                codes.MAX_CONCURRENT_STREAMS: STREAMS,
                codes.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
                codes.MAX_FRAME_SIZE: FRAME_BYTES,
                codes.MAX_HEADER_LIST_SIZE: limits.head_bytes,
            },
        )
        self._h2.max_inbound_frame_size = FRAME_BYTES
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES)
        self._receive(received)

    # -- asyncio

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """`nbytes` have arrived."""
        self._receive(self._buffer[:nbytes])

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client, which is gone, and whatever it waits for."""
        self.transport = None
        for stream in self._streams.values():
            if stream.task is not None:
                stream.task.cancel()
        self._streams.clear()
        self._held.release()
        self.server.forget(self)

    def eof_received(self) -> bool:
        """The client has left: HTTP/2 has no half-closed connections."""
        return False

    def pause_writing(self) -> None:
        """Read nothing more: the client does not read its answers fast enough."""
        self._choked, self.since = True, self.server.now()
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        """Read on."""
        self._choked, self.since = False, self.server.now()
        if self.transport is not None:
            self.transport.resume_reading()

    # -- receiving

    def _receive(self, data: bytes | memoryview) -> None:
        try:
            events = self._h2.receive_data(data)
            self._bound_frame(len(data), bool(events))
        except h2.exceptions.ProtocolError:
            self.server.refused(400)
            self._flush()
            self.close()
            return
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                self._take(event)
            elif isinstance(event, h2.events.RequestReceived):
                self._open(event)
            elif isinstance(event, h2.events.StreamEnded):
                self._dispatch(event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                self._given_up(event.stream_id)
            elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
                self._continue()
            elif isinstance(event, h2.events.ConnectionTerminated):
                self._leaving = True
        self._flush()
        self._close_if_left()

    def _bound_frame(self, received: int, whole: bool) -> None:
        """Bound the frame that h2 keeps until it is whole: it looks at its length only then.

        Raises:
            ProtocolError: it is too large, or there is no memory for it.
        """
        self._unread = 0 if whole else self._unread + received
        if self._unread > 2 * FRAME_BYTES or not self._held.hold("frame", self._unread):
            raise h2.exceptions.ProtocolError

    def _open(self, event: h2.events.RequestReceived) -> None:
        number = event.stream_id
        if self._leaving:  # GOAWAY has said that it is not handled
            self._reset(number, h2.errors.ErrorCodes.REFUSED_STREAM)
            return
        self._newest = number
        stream = _Stream(self, number, self.server.now())
        for name, value in event.headers:
            if name == b":path":
                stream.path = value.partition(b"?")[0]
            elif name == b":method":
                stream.method = value
            elif name == b":authority":
                stream.headers[b"host"] = value
            elif not name.startswith(b":"):
                old = stream.headers.get(name)
                stream.headers[name] = value if old is None else old + b", " + value
        self._streams[number] = stream

    def _take(self, event: h2.events.DataReceived) -> None:
        """Keep a piece of a body, and let the client send as much again."""
        number, length = event.stream_id, event.flow_controlled_length
        stream, data = self._streams.get(number), event.data
        self._h2.acknowledge_received_data(length, number)
        if stream is None:
            return
        stream.pieces.append(data)
        stream.size += len(data)
        self._held_bytes += len(data)
        limit = self.server.limits.body_bytes
        if stream.size > limit:
            self._refuse(stream, 413, f"the body has more than the {limit:,} bytes that are taken")
        elif not self._held.hold("bodies", self._held_bytes):
            self._refuse(stream, 503, "the memory for queries in flight is used up: try again")

    def _forget_body(self, stream: _Stream) -> None:
        stream.pieces = []
        self._held_bytes -= stream.size
        stream.size = 0
        self._held.hold("bodies", self._held_bytes)

    def _refuse(self, stream: _Stream, status: int, why: str) -> None:
        """Answer a request that has not been received whole."""
        self.server.refused(status)
        self._forget_body(stream)
        self.answer_stream(stream, self._refusal(stream.headers, status, why))
        if stream.number not in self._streams:  # answered: what still comes is not wanted
            self._reset(stream.number, h2.errors.ErrorCodes.NO_ERROR)

    def _reset(self, number: int, code: h2.errors.ErrorCodes) -> None:
        """Close a stream, unless its client has."""
        with contextlib.suppress(h2.exceptions.StreamClosedError):
            self._h2.reset_stream(number, code)

    def _dispatch(self, number: int) -> None:
        """Hand a whole request to the handler."""
        stream = self._streams.get(number)
        if stream is None or stream.task is not None:
            return
        self.since = self.server.now()
        body = aligned(stream.size, body_offset(stream.headers))
        begin = 0
        for piece in stream.pieces:
            body[begin : begin + len(piece)] = piece
            begin += len(piece)
        self._forget_body(stream)
        request = Request(
            stream.method, stream.path, stream.headers, body, self.since, peer=self.client
        )
        answer = self.server.handler(request)
        if isinstance(answer, Response):
            self.answer_stream(stream, answer)
        else:
            stream.task = self.server.spawn(stream, answer)

    def _given_up(self, number: int) -> None:
        """The client waits no longer for this answer."""
        stream = self._streams.pop(number, None)
        self._resets += 1
        if stream is not None:
            self._forget_body(stream)
            if stream.task is not None:
                stream.task.cancel()
        if self._resets > self._answered + RESETS:  # CVE-2023-44487
            self._h2.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
            self._flush()
            self.close()

    # -- answering

    def answer_stream(self, stream: _Stream, response: Response) -> None:
        """Write `response` to the request of `stream`, as far as the client takes it."""
        if self.transport is None or self.transport.is_closing():
            return
        if self._streams.get(stream.number) is not stream:
            return
        self._answered += 1
        headers = [
            (b":status", b"%d" % response.status),
            (b"content-type", response.content_type),
            (b"date", self.server.date),
            *(header for header in response.headers if header[0] not in _HOP),
        ]
        if not response.trailers and response.size:
            headers.append((b"content-length", b"%d" % response.size))
        bodyless = stream.method == b"HEAD" or not (response.size or response.trailers)
        stream.rest = [memoryview(piece).cast("B") for piece in response.body if len(piece)]
        stream.trailers = tuple(response.trailers)
        try:
            self._h2.send_headers(stream.number, headers, end_stream=bodyless)
            if bodyless:
                del self._streams[stream.number]
            else:
                self._send(stream)
        except h2.exceptions.StreamClosedError:  # given up, in the turn that brought its end
            self._streams.pop(stream.number, None)
        if self.server.draining or self.server.now() > self.retires:
            self._leave()
        self._flush()
        self._close_if_left()

    def _send(self, stream: _Stream) -> None:
        """Send what the client's windows allow of an answer."""
        while stream.rest:
            window = self._h2.local_flow_control_window(stream.number)
            size = min(window, self._h2.max_outbound_frame_size)
            if size <= 0:
                return
            piece, begun = stream.rest[0][:size], stream.rest[0][size:]
            stream.rest[:1] = [begun] if len(begun) else []
            last = not stream.rest and not stream.trailers
            self._h2.send_data(stream.number, bytes(piece), end_stream=last)
        if stream.trailers:
            self._h2.send_headers(stream.number, stream.trailers, end_stream=True)
        del self._streams[stream.number]

    def _continue(self) -> None:
        """The client takes more: go on with answers that wait for that."""
        for stream in [stream for stream in self._streams.values() if stream.rest]:
            try:
                self._send(stream)
            except h2.exceptions.StreamClosedError:  # given up, in the turn that brought the window
                self._streams.pop(stream.number, None)

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and self.transport is not None:
            self.transport.write(data)

    # -- leaving

    def _leave(self) -> None:
        """Let the client open its next streams elsewhere."""
        if self._leaving or self.transport is None:
            return
        self._leaving = True
        self._flush()
        frame = GoAwayFrame(0, last_stream_id=self._newest)
        self.transport.write(frame.serialize())

    def _close_if_left(self) -> None:
        """Close behind the last stream, unless the client does, a while after GOAWAY was written.

        What it sends meanwhile would reset a closed socket, and take away what it has not read yet.
        """
        if not self._leaving or self._streams:
            return
        now = self.server.now()
        self._left = min(self._left, now)
        if now - self._left > LEFT_S:
            self.close()

    def close(self) -> None:
        """Close, once what was answered is written."""
        if self.transport is not None:
            self.transport.close()

    def sweep(self, now: float) -> None:
        """Let go of the client that is to leave, and refuse what takes too long."""
        limits, transport = self.server.limits, self.transport
        if transport is None:
            return
        if self.server.draining or now > self.retires:
            self._leave()
        waited = now - self.since
        if transport.get_write_buffer_size() > 0 and waited > limits.read_s:
            transport.abort()
        elif not self._streams and waited > limits.idle_s:
            self._leave()
        for stream in list(self._streams.values()):
            took = now - stream.began
            if stream.task is None and not stream.rest:
                if took > limits.body_s + stream.size / limits.body_rate:
                    self._refuse(stream, 408, f"no complete body within {took:.0f} s")
            elif stream.rest and took > limits.read_s + limits.idle_s:
                transport.abort()
        self._flush()
        self._close_if_left()

    @property
    def idle(self) -> bool:
        """Whether it has left, and its client has had time to read so."""
        return not self._streams and self.server.now() - self._left > LEFT_S

    @property
    def sheddable(self) -> bool:
        """Whether the client would lose nothing but a connection."""
        return not self._streams

    @property
    def requested(self) -> bool:
        """Whether a request has come, or has begun to come."""
        return self._newest > 0


def plain_refusal(headers: Mapping[bytes, bytes], status: int, message: str) -> Response:
    """The refusal of a request that is not read on, as HTTP/1.1 has it too."""
    return problem(status, message)
