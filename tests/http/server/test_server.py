"""The server against raw bytes: slow, malformed, pipelined, too large."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection

import pytest
import uvloop

from erless.http.budget import MemoryBudget
from erless.http.messages import Handler, Request, Response, ServerLimits
from erless.http.server.server import HttpServer

LIMITS = ServerLimits(body_bytes=100_000, head_s=0.4, body_s=0.4, body_rate=1 << 30, idle_s=1.0)


def echo(request: Request) -> Response:
    text = b"%b %b %d" % (request.method, request.path, len(request.body))
    return Response(200, (text, bytes(request.body)), b"text/plain")


async def later(asked: Request) -> Response:
    await asyncio.sleep(0.001)
    return echo(asked)


@contextmanager
def serving(
    handler: Handler,
    limits: ServerLimits,
    *,
    borrow: bool = False,
    listener: socket.socket | None = None,
    private: socket.socket | None = None,
    budget: MemoryBudget | None = None,
) -> Iterator[int]:
    """A server in a thread; its port."""
    listener = listener or socket.create_server(("127.0.0.1", 0))
    ready = threading.Event()
    stop: list[asyncio.Future[None]] = []

    async def serve() -> None:
        server = HttpServer(handler, limits, budget=budget)
        server.allow_shortcuts(None, answers_synchronously=borrow)
        server.listen(listener)
        if private is not None:
            server.listen(private, private=True)
        stop.append(asyncio.get_running_loop().create_future())
        ready.set()
        await stop[0]
        await server.drain(0, 5)

    thread = threading.Thread(target=uvloop.run, args=(serve(),))
    thread.start()
    assert ready.wait(30)
    yield listener.getsockname()[1]
    stop[0].get_loop().call_soon_threadsafe(stop[0].set_result, None)
    thread.join(30)
    listener.close()


@pytest.fixture(scope="module", params=["at once", "later", "borrowed"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """A server whose handler answers at once, or in a coroutine."""
    handler = later if request.param == "later" else echo
    with serving(handler, LIMITS, borrow=request.param == "borrowed") as found:
        yield found


def exchange(port: int, *parts: bytes, end: bool = True) -> bytes:
    """Send the parts, and read until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            client.sendall(part)
        if end:
            client.shutdown(socket.SHUT_WR)
        found = b""
        try:
            while data := client.recv(65536):
                found += data
        except ConnectionResetError:
            pass
        return found


GET = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"
CLOSE = b"GET /z?q=1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    b"3;note\r\nabc\r\n2\r\nde\r\n0\r\ntrailer: y\r\n\r\n"
)
LANE = (
    b"POST /l HTTP/1.1\r\nhost: x:1\r\ncontent-type: application/octet-stream\r\n"
    b"inference-header-content-length: 2\r\ncontent-length: 4\r\nerless-deadline-ms: 7\r\n\r\n1234"
)


def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    found = exchange(port, GET + POST + LANE + CHUNKED + CLOSE, end=False)
    bodies = [b"GET /a 0", b"POST /b 5hello", b"POST /l 41234", b"POST /c 5abcde", b"GET /z 0"]
    places = [found.find(body) for body in bodies]
    assert places == sorted(places)
    assert found.count(b"HTTP/1.1 200 OK") == 5
    assert min(places) > 0


@pytest.mark.parametrize("message", [GET, POST, CHUNKED, LANE])
def test_bytes_may_come_in_any_pieces(port: int, message: bytes) -> None:
    whole = exchange(port, message + CLOSE, end=False)
    pieces = [message[i : i + 7] for i in range(0, len(message), 7)]
    split = exchange(port, *pieces, CLOSE, end=False)
    assert [line for line in whole.splitlines() if not line.startswith(b"date")] == [
        line for line in split.splitlines() if not line.startswith(b"date")
    ]


def test_a_large_body_and_the_next_request(port: int) -> None:
    body = bytes(range(256)) * 350
    head = b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    found = exchange(port, head + body + head + body + CLOSE, end=False)
    assert found.count(b"POST /b %d" % len(body) + body) == 2
    assert found.endswith(b"GET /z 0")


def test_head_of_a_document_has_no_body(port: int) -> None:
    found = exchange(port, b"HEAD /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert found.endswith(b"\r\n\r\n")
    assert b"content-length: 9" in found


def test_expect_continue(port: int) -> None:
    head = b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(head)
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hello")
        assert b"POST /b 5" in client.recv(1000)


def test_an_upgrade_is_not_taken_up(port: int) -> None:
    offer = b"GET /a HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    assert exchange(port, offer + CLOSE, end=False).count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, b"\x16\x03\x01 TLS?\r\n\r\n"),
        (400, b"GET /a HTTP/1.1\r\nhost x\r\n\r\n"),
        (400, b"GET  HTTP/1.1\r\n\r\n"),
        (
            400,
            b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        ),
        (400, b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\nhello"),
        (
            400,
            b"POST /b HTTP/1.1\r\nhost: x\r\n"
            b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
        ),
        (400, b"POST /b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"),
        (400, b"POST /b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabc\r\n"),
        (400, b"POST /b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\nab\r\n"),
        (400, b"POST /b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + b"1" * 5000),
        (413, b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 100001\r\n\r\n"),
        (
            413,
            b"POST /b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            + b"ffff\r\n"
            + b"x" * 65535
            + b"\r\nffff\r\n"
            + b"x" * 65535
            + b"\r\n",
        ),
        (417, b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nexpect: magic\r\n\r\nhello"),
        (431, b"GET /a HTTP/1.1\r\nhost: x\r\n" + b"x: y\r\n" * 4000 + b"\r\n"),
        (431, b"GET /" + b"a" * 70_000),
        (501, b"POST /b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ],
)
def test_what_cannot_be_read_is_refused(port: int, status: int, message: bytes) -> None:
    found = exchange(port, message, end=False)
    assert found.startswith(b"HTTP/1.1 %d " % status), found[:200]
    assert b"connection: close" in found
    assert b'{"error": ' in found


@pytest.mark.parametrize(
    "part",
    [
        b"GET /a HTTP/1.1\r\nho",
        b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhel",
        b"POST /b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nab",
    ],
)
def test_a_slow_client_is_told_so(port: int, part: bytes) -> None:
    assert exchange(port, part, end=False).startswith(b"HTTP/1.1 408 ")


def test_an_idle_connection_is_closed(port: int) -> None:
    assert exchange(port, end=False) == b""
    assert exchange(port, POST, end=False).endswith(b"POST /b 5hello")


def test_a_client_that_goes_away_hurts_nobody(port: int) -> None:
    for message in (GET, POST, POST[:-2], CHUNKED[:-9]):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(message)
    assert b"GET /z 0" in exchange(port, CLOSE, end=False)


@pytest.mark.parametrize("handler", [echo, later])
def test_an_old_connection_closes_with_an_answer(handler: Handler) -> None:
    """So clients that keep theirs for ever spread over replicas that came later."""
    with (
        serving(handler, ServerLimits(age_s=0.2)) as port,
        closing(HTTPConnection("127.0.0.1", port, timeout=10)) as client,
    ):
        begin, sockets = time.monotonic(), set()
        while time.monotonic() - begin < 1.0:
            client.request("GET", "/a")
            if client.sock is not None:
                sockets.add(client.sock.getsockname())
            answer = client.getresponse()
            assert answer.status == 200
            assert answer.read().startswith(b"GET /a")
        assert 3 <= len(sockets) <= 8


def test_a_replica_that_comes_later_gets_its_share() -> None:
    """Clients that keep their connections are served by both of two servers that share a socket."""

    def named(name: bytes) -> Handler:
        return lambda request: Response(200, (name,), b"text/plain")

    limits = ServerLimits(age_s=0.2)
    with ExitStack() as running:
        listener = socket.create_server(("127.0.0.1", 0))
        port = running.enter_context(serving(named(b"first"), limits, listener=listener.dup()))
        clients = [
            running.enter_context(closing(HTTPConnection("127.0.0.1", port, timeout=10)))
            for _ in range(16)
        ]
        assert {ask(each) for each in clients} == {b"first"}
        running.enter_context(serving(named(b"second"), limits, listener=listener.dup()))
        listener.close()
        answers: list[bytes] = []
        end = time.monotonic() + 20
        while time.monotonic() < end and answers.count(b"second") < 50:
            answers += [ask(each) for each in clients]
        assert answers.count(b"second") >= 50


def ask(client: HTTPConnection) -> bytes:
    client.request("GET", "/")
    return client.getresponse().read()


def test_an_old_connection_answers_what_is_pipelined() -> None:
    with serving(echo, ServerLimits(age_s=0.01)) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            time.sleep(0.1)
            client.sendall(GET * 5)
            found = b""
            while data := client.recv(65536):
                found += data
    assert found.count(b"GET /a 0") == 5
    assert found.count(b"connection: close") == 1
