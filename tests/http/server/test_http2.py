"""HTTP/2: bodies, flow control, limits and the end of a connection, with h2 as the client."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
from hyperframe.frame import GoAwayFrame, HeadersFrame, RstStreamFrame, WindowUpdateFrame

from erless.http.messages import Request, Response, ServerLimits
from tests.http.server.test_drain import Drained, until

LIMIT = 1 << 20
GET = [(b":method", b"GET"), (b":path", b"/a?q"), (b":scheme", b"http"), (b":authority", b"x")]
POST = [(b":method", b"POST"), *GET[1:]]


def echo(request: Request) -> Response:
    body = bytes(request.body)
    return Response(
        200, (request.path, body), b"text/plain", trailers=((b"size", b"%d" % len(body)),)
    )


class Client:
    """One connection; what has come of each stream: headers, body, trailers, or an error."""

    def __init__(self, address: tuple[str, int], window: int = 65_535) -> None:
        self.socket = socket.create_connection(address, timeout=30)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.h2.local_settings = h2.settings.Settings(
            initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self.h2.initiate_connection()
        self.headers: dict[int, dict[bytes, bytes]] = {}
        self.trailers: dict[int, dict[bytes, bytes]] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.left: h2.events.ConnectionTerminated | None = None
        self.closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def ask(self, headers: list[tuple[bytes, bytes]], body: bytes = b"") -> int:
        """Send a request whole, however small the server's window is."""
        number = self.h2.get_next_available_stream_id()
        self.h2.send_headers(number, headers, end_stream=not body)
        while body and number not in self.ended:
            size = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size)
            if not size:
                self.receive()
                continue
            self.h2.send_data(number, body[:size], end_stream=size >= len(body))
            body = body[size:]
            self.send()
        self.send()
        return number

    def receive(self) -> None:
        data = self.socket.recv(65536)
        self.closed = not data
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                self.headers[event.stream_id] = dict(event.headers)
            elif isinstance(event, h2.events.TrailersReceived):
                self.trailers[event.stream_id] = dict(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                number = event.stream_id
                self.bodies[number] = self.bodies.get(number, b"") + event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, number)
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                self.ended.add(event.stream_id)
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.left = event
        self.send()

    def wait(self, number: int) -> bytes:
        while number not in self.ended and not self.closed:
            self.receive()
        return self.bodies.get(number, b"")


@contextmanager
def serving() -> Iterator[Drained]:
    """A server that speaks HTTP/2, until the test ends."""

    async def script(drained: Drained) -> bool:
        drained.server.state.handler = echo
        drained.server.state.limits = ServerLimits(body_bytes=LIMIT)
        drained.server.allow_http2()
        drained.server.listen(drained.listener)
        drained.reached.set()
        await until(drained.go.is_set)
        return await drained.server.drain(0.3, 30.0)

    drained = Drained(script)
    assert drained.reached.wait(30)
    yield drained
    drained.go.set()
    assert drained.ended()


def test_streams_bodies_and_windows() -> None:
    with (
        serving() as served,
        socket.create_connection(served.address) as plain,
        Client(served.address, window=1000) as client,  # answers come in many pieces
    ):
        body = bytes(range(256)) * 3000
        numbers = [client.ask(POST, body), client.ask(GET), client.ask(POST, b"x")]
        assert [client.wait(number) for number in numbers] == [b"/a" + body, b"/a", b"/ax"]
        assert client.headers[numbers[0]][b":status"] == b"200"
        assert client.trailers[numbers[0]] == {b"size": b"%d" % len(body)}
        head = client.ask([(b":method", b"HEAD"), *GET[1:]])
        assert client.wait(head) == b"" and client.headers[head][b"content-type"] == b"text/plain"
        plain.sendall(b"GET /b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert plain.recv(1000).startswith(b"HTTP/1.1 200 OK")  # beside it, as ever


def test_a_body_beyond_the_limit_is_refused_and_the_connection_lives() -> None:
    with serving() as served, Client(served.address) as client:
        number = client.ask(POST, bytes(LIMIT + 1))
        client.wait(number)
        assert client.headers[number][b":status"] == b"413"
        assert client.wait(client.ask(GET)) == b"/a"
        assert served.server.state.budget.held_bytes == 0


def test_a_drain_answers_what_was_asked_and_says_goaway() -> None:
    with serving() as served, Client(served.address) as client:
        assert client.wait(client.ask(GET)) == b"/a"
        served.go.set()
        client.wait(99)
        assert client.left is not None and client.left.last_stream_id == 1
        assert client.closed


def test_who_asks_before_it_has_read_goaway_is_told_to_ask_elsewhere() -> None:
    """A client that is held up for longer than idle connections of HTTP/1.1 are kept."""
    with serving() as served, Client(served.address) as client:
        assert client.wait(client.ask(GET)) == b"/a"
        served.go.set()
        time.sleep(0.8)
        late = client.ask(POST, b"x" * 1000)
        received = b""
        while data := client.socket.recv(65536):  # not reset: what was sent is there to be read
            received += data
        goaway = received.index(GoAwayFrame(0, last_stream_id=1).serialize())
        refused = RstStreamFrame(late, error_code=h2.errors.ErrorCodes.REFUSED_STREAM)
        assert received.index(refused.serialize()) > goaway


def test_given_up_in_the_bytes_that_opened_it() -> None:
    """Whoever reads GOAWAY takes back what it has just asked, and still waits for the rest."""
    with serving() as served, Client(served.address, window=1000) as client:
        first = client.ask(POST, bytes(2000))  # its answer does not fit the window
        client.h2.acknowledge_received_data = lambda *_: None  # type: ignore[method-assign]
        while len(client.bodies.get(first, b"")) < 1000:
            client.receive()
        served.go.set()
        goaway = GoAwayFrame(0, last_stream_id=first).serialize()
        assert goaway in client.socket.recv(65536)
        frames = [
            HeadersFrame(3, data=client.h2.encoder.encode(GET), flags=["END_HEADERS"]),
            RstStreamFrame(3, error_code=h2.errors.ErrorCodes.CANCEL),
            WindowUpdateFrame(1, window_increment=5000),
        ]
        client.socket.sendall(b"".join(frame.serialize() for frame in frames))
        received = b""
        while data := client.socket.recv(65536):
            received += data
        assert received.count(bytes(1000)) == 1  # the rest of the answer


def test_given_up_in_the_bytes_that_widened_its_window() -> None:
    with serving() as served, Client(served.address, window=1000) as client:
        number = client.ask(POST, bytes(2000))
        client.h2.acknowledge_received_data = lambda *_: None  # type: ignore[method-assign]
        while len(client.bodies.get(number, b"")) < 1000:
            client.receive()
        client.h2.increment_flow_control_window(5000, number)
        client.h2.reset_stream(number)
        client.send()
        assert client.wait(client.ask(GET)) == b"/a"


@pytest.mark.parametrize("attack", ["resets", "garbage"])
def test_an_attack_ends_its_own_connection_only(attack: str) -> None:
    with serving() as served, Client(served.address) as other, Client(served.address) as client:
        assert other.wait(other.ask(GET)) == b"/a"
        if attack == "garbage":
            client.socket.sendall(client.h2.data_to_send() + b"\xff" * 600_000)
        else:
            for _ in range(300):
                number = client.h2.get_next_available_stream_id()
                client.h2.send_headers(number, POST)
                client.h2.reset_stream(number)
            client.send()
        with contextlib.suppress(ConnectionError):
            client.wait(10_001)
            assert client.closed
        assert other.wait(other.ask(GET)) == b"/a"
