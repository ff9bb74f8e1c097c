"""HTTP/1.1 between gateway, shards and clients: the server.

server = HttpServer(handler)            # Request → Response, or a coroutine that returns one
server.listen(socket)
await server.drain(...)
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus

from erless.http.messages import Handler, Limits, Response
from erless.http.receive import shared_buffer
from erless.http.server.connection import Connection

__all__ = ["HttpServer"]

# Where in a buffer a request begins, where what came ends, the date → its answer, and where it
# ended; or None: the handler shall have it.
Lane = Callable[[bytearray, int, int, bytes], tuple[bytes, int] | None]
SWEEP_S = 0.25
ACCEPT_PAUSE_S = 0.1  # after running out of descriptors
LOOK_S = 0.05  # a drain looks for idle connections so often
TURNS = 4  # of the loop: a poll lies between two of them, whatever ran late
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


class HttpServer:
    """Connections of any number of listening sockets, one handler.

    Args:
        handler: answers every request that could be read.
        limits: see `Limits`.
        refused: told the status of each request that could not be read.
    """

    def __init__(
        self,
        handler: Handler,
        limits: Limits | None = None,
        refused: Callable[[int], None] = lambda status: None,
    ) -> None:
        self.handler, self.limits, self.refused = handler, limits or Limits(), refused
        self.connections: set[Connection] = set()
        self.shared = shared_buffer()
        self.draining = False
        self.lane: Lane | None = None
        self.borrow = (
            False  # the handler answers at once: bodies may lie in the connection's buffer
        )
        self._loop = asyncio.get_running_loop()
        self.now = time.monotonic  # the loop's clock, but finer
        self._listening: dict[socket.socket, bool] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._adopting: set[asyncio.Task[None]] = set()  # accepted, and no Connection yet
        self._drained: asyncio.Future[None] | None = None
        self.date = b""
        self.swept = 0.0  # when the time limits were enforced last
        self._tick()

    # -- listening

    def listen(self, listener: socket.socket, *, shared: bool = False) -> None:
        """Accept from `listener`.

        Args:
            listener: bound and listening.
            shared: other processes accept from it too: what waits in its backlog when we stop is
                left to them, unless `drain` is told otherwise.
        """
        listener.setblocking(False)
        self._listening[listener] = shared
        self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Take one connection: replicas that share a socket then share the connections."""
        try:
            client, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(ACCEPT_PAUSE_S, self._accept_again, listener)
                return
            raise
        if len(self.connections) + len(self._adopting) >= self.limits.connections:
            client.close()
            return
        self._adopt(client)

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self._listening:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _adopt(self, client: socket.socket) -> None:
        """Serve `client`; from here on a drain waits for it."""
        client.setblocking(False)
        task = self._loop.create_task(self._connect(client))
        self._adopting.add(task)
        task.add_done_callback(self._adopted)

    async def _connect(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):  # gone before we had it
            await self._loop.connect_accepted_socket(lambda: Connection(self), client)

    def _adopted(self, task: asyncio.Task[None]) -> None:
        self._adopting.discard(task)
        self.check_drained()

    # -- answering

    def spawn(self, connection: Connection, answer: Awaitable[Response]) -> None:
        """Answer when the handler's coroutine is done."""
        task = self._loop.create_task(self._await(connection, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _await(self, connection: Connection, answer: Awaitable[Response]) -> None:
        connection.answer(await answer)
        connection.resume()

    def head(self, response: Response, keep: bool) -> bytes:
        """Status line and headers."""
        lines = [
            b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\ndate: %b\r\n"
            % (
                response.status,
                _REASONS.get(response.status, b"Unknown"),
                response.content_type,
                response.size,
                self.date,
            )
        ]
        lines += [b"%b: %b\r\n" % header for header in response.headers]
        lines.append(b"\r\n" if keep else b"connection: close\r\n\r\n")
        return b"".join(lines)

    # -- time

    def _tick(self) -> None:
        now = self.swept = self.now()
        self.date = formatdate(time.time(), usegmt=True).encode()
        for each in list(self.connections):
            each.sweep(now)
        self._loop.call_later(SWEEP_S, self._tick)

    # -- stopping

    async def drain(self, linger_s: float, limit_s: float, *, alone: bool = False) -> bool:
        """Stop accepting, answer what is in flight, close; False where that took too long.

        Idle connections stay open for a while: a client that was about to send its query is
        answered and told to go elsewhere, instead of meeting a closed connection. That is
        `linger_s` from now on; a connection that has carried no request yet gets at least
        `Limits.first_s` from when it was accepted, because its client would not try again, as one
        whose kept connection closes does.

        Args:
            linger_s: for clients between two queries.
            limit_s: for everything.
            alone: nobody is left to accept from the sockets that were shared: take what waits.
        """
        self.draining = True
        self._stop_listening(alone)
        begun = self.now()
        drained = self._drained = self._loop.create_future()
        self.check_drained()
        while not drained.done():
            left_s = begun + limit_s - self.now()
            await self._take_turns()  # what lies in the kernel is a request that came in time
            if left_s <= 0:
                self._close_idle(0.0, 0.0)
                await self._take_turns()
                break
            self._close_idle(begun + linger_s, self.limits.first_s)
            await asyncio.wait({drained}, timeout=min(left_s, LOOK_S))
        return drained.done()

    def _stop_listening(self, alone: bool) -> None:
        for listener, shared in self._listening.items():
            self._loop.remove_reader(listener.fileno())
            while alone or not shared:  # nobody else will: take what the kernel accepted for us
                try:
                    client, _ = listener.accept()
                except OSError:
                    break
                self._adopt(client)
            listener.close()
        self._listening.clear()

    async def _take_turns(self) -> None:
        """Let the loop poll: after a long turn it runs timers first, and reads then."""
        for _ in range(TURNS):
            await asyncio.sleep(0)

    def _close_idle(self, due: float, first_s: float) -> None:
        """Close the connections that wait for a request, from `due` on; their first, `first_s`."""
        now = self.now()
        for each in list(self.connections):
            wait = due if each.asked else max(due, each.born + first_s)
            if each.idle and each.transport and now >= wait:
                each.transport.close()

    def check_drained(self) -> None:
        """Called whenever a connection is gone."""
        if self.connections or self._adopting:
            return
        if self._drained and not self._drained.done():
            self._drained.set_result(None)
