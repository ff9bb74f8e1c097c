"""Whom the server has room for: connections, and the memory of requests and answers."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import ExitStack
from pathlib import Path

from erless.http.budget import MemoryBudget
from erless.http.messages import Request, Response, ServerLimits
from tests.http.server.test_server import echo, later, serving

GET = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"


def connect(stack: ExitStack, port: int) -> socket.socket:
    return stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))


def ask(client: socket.socket, message: bytes = GET) -> bytes:
    """What is answered; nothing where the connection was closed."""
    try:
        client.sendall(message)
        return client.recv(1 << 16)
    except (ConnectionResetError, BrokenPipeError):
        return b""


def test_idle_connections_give_way_to_new_ones_the_oldest_first() -> None:
    with ExitStack() as stack:
        port = stack.enter_context(serving(echo, ServerLimits(connections=20)))
        idle = [connect(stack, port) for _ in range(20)]
        assert all(ask(client).startswith(b"HTTP/1.1 200") for client in idle)
        for _ in range(10):
            assert ask(connect(stack, port)).startswith(b"HTTP/1.1 200")
        assert ask(idle[0]) == b""
        assert ask(idle[-1]).startswith(b"HTTP/1.1 200")


def test_half_a_head_does_not_hold_a_place() -> None:
    with ExitStack() as stack:
        port = stack.enter_context(serving(echo, ServerLimits(connections=20)))
        for _ in range(20):
            connect(stack, port).sendall(GET[:20])
        time.sleep(0.2)
        assert ask(connect(stack, port)).startswith(b"HTTP/1.1 200")


def test_one_client_does_not_take_every_place_and_the_owner_has_room_of_its_own(
    tmp_path: Path,
) -> None:
    private = socket.socket(socket.AF_UNIX)
    private.bind(str(tmp_path / "admin"))
    private.listen()

    busy: list[asyncio.Future[Response]] = []

    def answer(request: Request) -> Response | asyncio.Future[Response]:
        if request.path == b"/wait":
            busy.append(asyncio.get_running_loop().create_future())
            return busy[-1]
        for future in busy:
            future.set_result(Response(200))
        return Response(200, (b"private" if request.private else b"public",))

    limits = ServerLimits(connections=10, client_connections=5)
    with ExitStack() as stack:
        stack.enter_context(private)
        listener = socket.create_server(("", 0))
        port = stack.enter_context(serving(answer, limits, listener=listener, private=private))
        for number in range(10):  # two clients, and all their connections are busy
            client = stack.enter_context(socket.socket())
            client.bind((f"127.0.0.{1 + number // 5}", 0))
            client.connect(("127.0.0.1", port))
            client.sendall(GET.replace(b"/a", b"/wait"))
        until = time.monotonic() + 30
        while len(busy) < 10 and time.monotonic() < until:
            time.sleep(0.01)
        assert ask(connect(stack, port)) == b""
        with socket.socket(socket.AF_UNIX) as owner:
            owner.settimeout(30)
            owner.connect(str(tmp_path / "admin"))
            assert ask(owner).endswith(b"private")


def post(size: int) -> bytes:
    return b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size


def test_bodies_share_a_budget_of_memory() -> None:
    budget = MemoryBudget(1_000_000)
    with ExitStack() as stack:
        port = stack.enter_context(serving(later, ServerLimits(), budget=budget))
        first = connect(stack, port)
        first.sendall(post(900_000) + bytes(100))
        time.sleep(0.3)
        answer = ask(connect(stack, port), post(900_000) + bytes(100))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in answer
        chunks = b"POST /b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        chunk = b"8000\r\n" + bytes(0x8000) + b"\r\n"
        assert ask(connect(stack, port), chunks + 4 * chunk).startswith(b"HTTP/1.1 503 ")
        first.sendall(bytes(899_900))
        assert first.recv(1000).startswith(b"HTTP/1.1 200 ")
        again = connect(stack, port)
        again.sendall(post(900_000) + bytes(900_000))
        assert again.recv(1000).startswith(b"HTTP/1.1 200 ")
        first.close()
        again.close()
        until = time.monotonic() + 30
        while budget.held_bytes and time.monotonic() < until:
            time.sleep(0.01)
        assert budget.held_bytes == 0


def test_answers_that_nobody_reads_count() -> None:
    budget = MemoryBudget(60 << 20)
    big = Response(200, (bytes(30 << 20),))
    with ExitStack() as stack:
        port = stack.enter_context(serving(lambda request: big, ServerLimits(), budget=budget))
        clients = [connect(stack, port) for _ in range(6)]
        for client in clients:
            client.sendall(GET)
        time.sleep(0.5)
        assert budget.held_bytes <= budget.limit_bytes
        whole = 0
        for client in clients:
            received = 0
            try:
                while received < 30 << 20 and (data := client.recv(1 << 20)):
                    received += len(data)
            except ConnectionResetError:
                pass
            whole += received >= 30 << 20
        assert 0 < whole < 6
