"""Stopping a server: who has connected is answered, whatever the clock says."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from erless.http.messages import Request, Response, ServerLimits
from erless.http.server.server import HttpServer

WAIT_S = 60.0  # generous: the machine may be busy
LONG_S = 1000.0  # more than a test takes: what waits so long does not end by itself
GET = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"
NEXT = b"GET /b HTTP/1.1\r\nhost: x\r\n\r\n"

Script = Callable[["Drained"], Awaitable[bool]]


def echo(request: Request) -> Response:
    return Response(200, (request.path,), b"text/plain")


class Drained:
    """A server in a thread that does what a function does: drain, then end with its loop.

    Args:
        script: runs there; its result is that of the drain.
        first_s: see `ServerLimits`.
    """

    def __init__(self, script: Script, first_s: float = LONG_S) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.reached = threading.Event()  # the script has come to the point that the test waits for
        self.go = threading.Event()  # and goes on
        self.done: bool | None = None
        self._script, self._limits = script, ServerLimits(first_s=first_s)
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()), daemon=True)
        self._thread.start()

    async def _run(self) -> None:
        self.server = HttpServer(echo, self._limits)
        self.done = await self._script(self)
        for each in self.server.state.connections:  # as the end of a process does
            assert each.transport is not None
            each.transport.abort()
        await asyncio.sleep(0.01)

    def client(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=WAIT_S)

    def ended(self, wait_s: float = WAIT_S) -> bool:
        self._thread.join(wait_s)
        return not self._thread.is_alive()


def answer(client: socket.socket) -> bytes:
    """Everything until the server closes."""
    found = b""
    while data := client.recv(65536):
        found += data
    return found


def when_told(linger_s: float, limit_s: float = WAIT_S) -> Script:
    """A script that drains once the test says go."""

    async def script(drained: Drained) -> bool:
        drained.server.listen(drained.listener)
        drained.reached.set()
        await until(drained.go.is_set)
        return await drained.server.drain(linger_s, limit_s)

    return script


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


def test_a_connection_that_was_accepted_in_the_same_turn() -> None:
    """It is no Connection yet; the process must not end as if nobody were there."""

    async def script(drained: Drained) -> bool:
        drained.server.listen(drained.listener, shared=True)
        drained.reached.set()
        drained.go.wait(WAIT_S)  # until the kernel has connected the client
        await until(lambda: not select.select([drained.listener], [], [], 0)[0])
        return await drained.server.drain(0.0, WAIT_S)

    drained = Drained(script)
    assert drained.reached.wait(WAIT_S)
    with drained.client() as client:
        drained.go.set()
        drained.ended(0.3)
        client.sendall(GET)
        found = answer(client)
    assert found.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in found
    assert drained.ended()
    assert drained.done


@pytest.mark.parametrize("alone", [False, True])
def test_what_waits_in_the_backlog(alone: bool) -> None:
    """Of a socket of its own, or of one whose other processes are gone."""

    async def script(drained: Drained) -> bool:
        drained.server.listen(drained.listener, shared=alone)
        drained.reached.set()
        drained.go.wait(WAIT_S)  # the loop is stuck: nothing is accepted
        return await drained.server.drain(0.0, WAIT_S, alone=alone)

    drained = Drained(script)
    assert drained.reached.wait(WAIT_S)
    clients = [drained.client() for _ in range(5)]
    drained.go.set()
    for each in clients:
        each.sendall(GET)
        assert b"200 OK" in answer(each)
        each.close()
    assert drained.ended()
    assert drained.done


def test_who_has_not_asked_yet_has_longer_than_who_has() -> None:
    drained = Drained(when_told(0.05))
    assert drained.reached.wait(WAIT_S)
    with drained.client() as fresh, drained.client() as kept:
        kept.sendall(GET)
        assert b"connection: close" not in kept.recv(65536)
        drained.go.set()
        assert kept.recv(65536) == b""  # the time of those that have asked is over
        fresh.sendall(GET)
        assert b"connection: close" in answer(fresh)
    assert drained.ended()
    assert drained.done


def test_who_never_asks_is_not_waited_for_for_ever() -> None:
    async def script(drained: Drained) -> bool:
        drained.server.listen(drained.listener)
        await until(lambda: bool(drained.server.state.connections))
        return await drained.server.drain(0.0, LONG_S)

    drained = Drained(script, first_s=0.1)
    with drained.client() as client:
        assert answer(client) == b""
        assert drained.ended()
    assert drained.done


@pytest.mark.parametrize("limit_s", [0.0, 0.1])
def test_the_limit_ends_every_wait(limit_s: float) -> None:
    async def script(drained: Drained) -> bool:
        drained.server.listen(drained.listener)
        await until(lambda: bool(drained.server.state.connections))
        return await drained.server.drain(LONG_S, limit_s)

    drained = Drained(script)
    with drained.client() as client:
        assert answer(client) == b""
        assert drained.ended()
    assert drained.done  # an idle connection is no query that was lost


def test_a_request_that_never_ends_is_a_drain_that_took_too_long() -> None:
    async def script(drained: Drained) -> bool:
        drained.server.listen(drained.listener)
        await until(lambda: any(not each.idle for each in drained.server.state.connections))
        return await drained.server.drain(0.0, 0.1)

    drained = Drained(script)
    with drained.client() as client:
        client.sendall(GET[:-4])
        assert drained.ended()
    assert drained.done is False


def test_nobody_is_there_nothing_is_waited_for() -> None:
    async def script(drained: Drained) -> bool:
        drained.server.listen(drained.listener)
        return await drained.server.drain(LONG_S, LONG_S)

    drained = Drained(script)
    assert drained.ended()
    assert drained.done


@pytest.mark.parametrize("lane", [False, True])
def test_all_have_asked_so_it_ends_soon(lane: bool) -> None:
    """The fast lane's requests count as well."""

    async def script(drained: Drained) -> bool:
        if lane:
            answered = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
            drained.server.allow_shortcuts(
                lambda buffer, begin, end, date: (answered, end), answers_synchronously=False
            )
        return await when_told(0.05, LONG_S)(drained)

    drained = Drained(script)
    assert drained.reached.wait(WAIT_S)
    with drained.client() as client:
        client.sendall(GET)
        assert b"200 OK" in client.recv(65536)
        drained.go.set()
        assert answer(client) == b""
        assert drained.ended()
    assert drained.done


def test_a_request_that_came_while_the_loop_was_stuck() -> None:
    """Timers run after a read that took long, and before the next one."""
    ours, theirs = socket.socketpair()

    async def script(drained: Drained) -> bool:
        drained.server.listen(drained.listener)
        await until(
            lambda: any(each.requested and each.idle for each in drained.server.state.connections)
        )

        def stick() -> None:
            ours.recv(1)
            drained.reached.set()
            drained.go.wait(WAIT_S)
            time.sleep(0.2)  # the time of idle connections is over

        loop = asyncio.get_running_loop()
        loop.add_reader(ours, stick)
        loop.call_later(0.002, theirs.send, b"x")
        return await drained.server.drain(0.02, WAIT_S)

    drained = Drained(script)
    with drained.client() as client:
        client.sendall(GET)
        assert client.recv(65536).endswith(b"/a")
        assert drained.reached.wait(WAIT_S)
        client.sendall(NEXT)
        drained.go.set()
        assert answer(client).endswith(b"/b")
    assert drained.ended()
    ours.close()
    theirs.close()
    assert drained.done


def test_what_is_pipelined_is_answered_too() -> None:
    async def script(drained: Drained) -> bool:
        asked = asyncio.Event()

        async def later(request: Request) -> Response:
            asked.set()
            await until(lambda: drained.server.state.draining)
            return echo(request)

        drained.server.state.handler = later
        drained.server.listen(drained.listener)
        await asked.wait()
        return await drained.server.drain(0.0, WAIT_S)

    drained = Drained(script)
    with drained.client() as client:
        client.sendall(GET + NEXT + b"\r\n")
        found = answer(client)
    first, _, second = found.partition(b"/a")
    assert b"connection: close" not in first
    assert second.startswith(b"HTTP/1.1 200 OK")
    assert second.endswith(b"/b")
    assert drained.ended()
    assert drained.done
