"""State that the connections of a server share: handler, limits, clock, and their number."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol

from erless.http.budget import MemoryBudget
from erless.http.messages import Handler, Response, ServerLimits
from erless.http.receive import shared_buffer

__all__ = ["AnswerWhole", "Asker", "Peer", "ServerState", "TakeOver"]

# Answers a whole request out of a buffer: (buffer, where the request begins, where the received
# bytes end, the date) → (the whole answer, where the request ended), or None where the request is
# for the handler.
AnswerWhole = Callable[[bytearray, int, int, bytes], tuple[bytes, int] | None]
# Serves a connection that speaks HTTP/2 from here on: the transport, the client's address, when it
# connected, and what came of it.
TakeOver = Callable[[asyncio.Transport, str, float, bytes], None]
SHED_SHARE = 16  # of all connections, where one more has no room
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


class Asker(Protocol):
    """What waits for an answer that is made later: a connection, or a stream of one."""

    def answer(self, response: Response) -> None:
        """Write the answer to the request that the handler has."""

    def resume(self) -> None:
        """Go on with the requests that were pipelined behind one that was answered later."""


class Peer(Protocol):
    """A connection, as the server sees it."""

    transport: asyncio.Transport | None
    born: float
    since: float  # when it was last of use
    client: str
    private: bool

    @property
    def idle(self) -> bool:
        """Whether a drain may close it: it waits for a request of which nothing has come yet."""

    @property
    def requested(self) -> bool:
        """Whether a request has come, or has begun to come."""

    @property
    def sheddable(self) -> bool:
        """Whether the client would lose nothing but a connection."""

    def sweep(self, now: float) -> None:
        """Enforce the time limits."""


class ServerState:
    """What a server and its connections share.

    Args:
        handler: answers every request that could be read.
        limits: see `ServerLimits`.
        refused: called with the status of each request that could not be read.
        budget: of the memory that requests and answers may hold.
    """

    def __init__(
        self,
        handler: Handler,
        limits: ServerLimits,
        refused: Callable[[int], None],
        budget: MemoryBudget,
    ) -> None:
        self.handler, self.limits, self.refused, self.budget = handler, limits, refused, budget
        self.connections: set[Peer] = set()
        self._of_client: dict[str, int] = {}  # connections by the client's address
        self._private = 0
        self.shared = shared_buffer()
        self.now = time.monotonic  # the loop's clock, but finer
        self.draining = False
        self.answer_whole: AnswerWhole | None = None
        self.answers_synchronously = False
        self.take_over: TakeOver | None = None  # None: HTTP/1.1 only
        # Whether the peer behind a connection may ask; None: anybody may.
        self.admits: Callable[[asyncio.BaseTransport], bool] | None = None
        self.strangers = False  # whom it does not admit is heard all the same
        self.date = b""
        self.swept = 0.0  # when the time limits were enforced last
        self.adopting: set[asyncio.Task[None]] = set()  # accepted, and not looked after yet
        self.arriving = 0  # public ones that were accepted and are no connection yet: handshakes
        self._tasks: set[asyncio.Task[None]] = set()
        self._drained: asyncio.Future[None] | None = None

    # -- connections

    def remember(self, connection: Peer) -> None:
        """A client has connected."""
        self.connections.add(connection)
        if connection.private:
            self._private += 1
        else:
            client = connection.client
            self._of_client[client] = self._of_client.get(client, 0) + 1

    def forget(self, connection: Peer) -> None:
        """A connection is gone, or is closing."""
        if connection not in self.connections:
            return
        self.connections.remove(connection)
        if connection.private:
            self._private -= 1
        elif self._of_client[connection.client] > 1:
            self._of_client[connection.client] -= 1
        else:
            del self._of_client[connection.client]
        self.check_drained()

    @property
    def held(self) -> int:
        """How many connections there are, those that arrive included and private ones not."""
        return len(self.connections) + self.arriving - self._private

    def has_room(self, client: str, *, private: bool) -> bool:
        """Whether one more connection may be taken; idle ones give way, the oldest first."""
        limits = self.limits
        if private:
            return self._private < limits.private_connections
        if client and self._of_client.get(client, 0) >= limits.client_connections:
            return self.shed(
                connection for connection in self.connections if connection.client == client
            )
        if self.held >= limits.connections:
            return self.shed(
                connection for connection in self.connections if not connection.private
            )
        return True

    def shed(self, connections: Iterable[Peer]) -> bool:
        """Close some of `connections` that wait for a request; False where none does."""
        idle = sorted(
            (connection for connection in connections if connection.sheddable),
            key=lambda connection: connection.since,
        )
        # several at once: so a flood of connections does not cost a search for each
        for connection in idle[: max(1, self.limits.connections // SHED_SHARE)]:
            self.forget(connection)
            if connection.transport:
                connection.transport.close()
        return bool(idle)

    def begin_drain(self) -> asyncio.Future[None]:
        """From now on connections close with their answer; the future ends with the last one."""
        self.draining = True
        self.sweep()  # those of HTTP/2 say so at once
        self._drained = asyncio.get_running_loop().create_future()
        self.check_drained()
        return self._drained

    def check_drained(self) -> None:
        """End the drain where no connection is left."""
        if self.connections or self.adopting:
            return
        if self._drained and not self._drained.done():
            self._drained.set_result(None)

    def sweep(self) -> None:
        """Enforce the time limits of all connections, and set the clock that answers carry."""
        now = self.swept = self.now()
        self.date = formatdate(time.time(), usegmt=True).encode()
        for connection in list(self.connections):
            connection.sweep(now)

    # -- answers

    def spawn(self, asker: Asker, answer: Awaitable[Response]) -> asyncio.Task[None]:
        """Answer when the handler's coroutine is done; cancel the task where nobody waits."""
        task = asyncio.get_running_loop().create_task(self._await(asker, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _await(self, asker: Asker, answer: Awaitable[Response]) -> None:
        asker.answer(await answer)
        asker.resume()

    def head(self, response: Response, keep: bool) -> bytes:
        """Status line and headers of `response`."""
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
