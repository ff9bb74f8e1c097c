"""Replicas that accept from one socket: who has the fewest connections takes the next."""

from __future__ import annotations

import asyncio
import socket
import time

from erless.http.messages import Request, Response
from erless.http.server.server import HttpServer

WAIT_S = 10.0


def answer(request: Request) -> Response:
    return Response(200)


async def arrived(server: HttpServer, number: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while server.state.held < number:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def joins(before: int, after: int) -> tuple[int, int]:
    """`before` connections of a replica alone, `after` more, one by one, once another joined."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    old, new = HttpServer(answer), HttpServer(answer)
    clients = []
    try:
        old.listen(listener.dup(), shared=True)
        for number in range(before):
            clients.append(socket.create_connection(address))
            await arrived(old, number + 1)
        new.listen(listener.dup(), shared=True)
        for number in range(after):
            await asyncio.sleep(0.02)  # beyond the turn of whoever took the last
            clients.append(socket.create_connection(address))
            deadline = time.monotonic() + WAIT_S
            while old.state.held + new.state.held < before + number + 1:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.001)
        return old.state.held, new.state.held
    finally:
        for client in clients:
            client.close()
        listener.close()
        for server in (old, new):
            await server.drain(0.0, WAIT_S)


def test_a_replica_that_joins_takes_what_comes() -> None:
    assert asyncio.run(joins(4, 3)) == (4, 3)


def test_a_replica_alone_takes_all() -> None:
    async def alone() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        server = HttpServer(answer)
        server.listen(listener, shared=True)
        clients = [socket.create_connection(listener.getsockname()) for _ in range(20)]
        await arrived(server, 20)
        for client in clients:
            client.close()
        await server.drain(0.0, WAIT_S)

    asyncio.run(alone())
