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
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from erless.http.budget import MemoryBudget
from erless.http.messages import Handler, Request, Response, ServerLimits
from erless.http.server.connection import ServerConnection
from erless.http.server.state import AnswerWhole, ServerState
from erless.http.tls import HANDSHAKE_S

if TYPE_CHECKING:
    from erless.http.server.http2 import Refusal

__all__ = ["HttpServer"]

SWEEP_S = 0.25
ACCEPT_PAUSE_S = 0.1  # after running out of descriptors
BUDGET_BYTES = 1 << 30  # of memory, where nobody says how much there is
LOOK_S = 0.05  # a drain looks for idle connections so often
TURNS = 4  # of the loop: a poll lies between two of them, whatever ran late
YIELD_S = 0.001  # a replica leaves what comes so long to others, for each connection it has,
MOST_YIELDED = 4  # and for no more than so many;
TURN_S = 0.005  # then it takes what comes at once, for so long


class HttpServer:
    """Connections of any number of listening sockets, one handler.

    Args:
        handler: answers every request that could be read.
        limits: see `ServerLimits`.
        refused: called with the status of each request that could not be read.
        budget: of the memory that requests and answers may hold; 1 GiB where there is none.
    """

    def __init__(
        self,
        handler: Handler,
        limits: ServerLimits | None = None,
        refused: Callable[[int], None] = lambda status: None,
        budget: MemoryBudget | None = None,
    ) -> None:
        budget = budget or MemoryBudget(BUDGET_BYTES)
        self.state = ServerState(handler, limits or ServerLimits(), refused, budget)
        self._loop = asyncio.get_running_loop()
        self._listening: dict[socket.socket, bool] = {}  # whether other processes accept too
        self._private: set[socket.socket] = set()
        self._turn_until = 0.0  # until then what comes by a shared socket is taken at once
        self._tls: Callable[[], ssl.SSLContext] | None = None
        self._tick()

    def allow_shortcuts(
        self, answer_whole: AnswerWhole | None, answers_synchronously: bool
    ) -> None:
        """Allow shortcuts that make answers cheaper, once the function is loaded.

        Args:
            answer_whole: answers some whole requests before their heads are read.
            answers_synchronously: the handler never answers later, so that a body may lie in the
                connection's own buffer while it is called.
        """
        self.state.answer_whole = answer_whole
        self.state.answers_synchronously = answers_synchronously

    def watch(self, seen: Callable[[Request], None]) -> None:
        """Call `seen` with each request that comes by a socket that is not private, from now on."""
        handler = self.state.handler

        def watched(request: Request) -> Response | Awaitable[Response]:
            if not request.private:
                seen(request)
            return handler(request)

        self.state.handler = watched

    def allow_http2(self, refusal: Refusal | None = None) -> None:
        """Serve clients that begin with HTTP/2's preface too.

        Args:
            refusal: answers requests whose bodies are not taken; None: as HTTP/1.1's.
        """
        from erless.http.server.http2 import FRAME_BYTES, Http2Connection, plain_refusal

        state, refuse = self.state, refusal or plain_refusal
        buffer = memoryview(bytearray(FRAME_BYTES))

        def take_over(
            transport: asyncio.Transport, client: str, born: float, received: bytes
        ) -> None:
            Http2Connection(state, client, born, refuse, buffer).take_over(transport, received)

        state.take_over = take_over

    def secure(
        self,
        contexts: Callable[[], ssl.SSLContext],
        admits: Callable[[asyncio.BaseTransport], bool] | None = None,
        *,
        strangers: bool = False,
    ) -> None:
        """Speak TLS on all sockets that are not private.

        Args:
            contexts: asked for at each handshake.
            admits: whether the peer behind a connection may ask; None: anybody may.
            strangers: whoever may not is heard all the same, and their requests say so.
        """
        self._tls, self.state.admits, self.state.strangers = contexts, admits, strangers

    # -- listening

    def listen(
        self, listener: socket.socket, *, shared: bool = False, private: bool = False
    ) -> None:
        """Accept from `listener`.

        Args:
            listener: bound and listening.
            shared: other processes accept from it too: what waits in its backlog when we stop is
                left to them, unless `drain` is called with `alone`.
            private: only the owner of this process can reach it. Its connections have room of
                their own, and their requests are marked.
        """
        listener.setblocking(False)
        self._listening[listener] = shared
        if private:
            self._private.add(listener)
        self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Take one connection: replicas that share a socket then share the connections."""
        if self._yields(listener):
            return
        try:
            client, address = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                self.state.shed(
                    connection for connection in self.state.connections if not connection.private
                )
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(ACCEPT_PAUSE_S, self._accept_again, listener)
                return
            raise
        host = str(address[0]) if isinstance(address, tuple) else ""
        private = listener in self._private
        if self.state.has_room(host, private=private):
            self._adopt(client, host, private=private)
        else:
            client.close()

    def _yields(self, listener: socket.socket) -> bool:
        """Whether a replica with fewer connections shall have the first chance of what has come.

        All replicas wake for it, and those that are busy with their connections poll most often:
        without this one that joins, and has none, gets a fifth of what comes.
        """
        if not self._listening[listener] or self.state.now() < self._turn_until:
            return False
        held = min(self.state.held, MOST_YIELDED)
        if held:
            self._loop.remove_reader(listener.fileno())
            self._loop.call_later(held * YIELD_S, self._take_turn, listener)
        return held > 0

    def _take_turn(self, listener: socket.socket) -> None:
        self._turn_until = self.state.now() + TURN_S
        self._accept_again(listener)

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self._listening:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _adopt(self, client: socket.socket, host: str, *, private: bool) -> None:
        """Serve `client`; from here on a drain waits for it."""
        client.setblocking(False)
        self.state.arriving += not private
        task = self._loop.create_task(self._connect(client, host, private=private))
        self.state.adopting.add(task)
        task.add_done_callback(self._adopted)

    async def _connect(self, client: socket.socket, host: str, *, private: bool) -> None:
        connection = ServerConnection(self.state, host, private=private)
        with contextlib.suppress(OSError):  # gone before we had it, or no handshake
            tls = None if private or self._tls is None else self._tls()
            await self._loop.connect_accepted_socket(
                lambda: connection,
                client,
                ssl=tls,
                ssl_handshake_timeout=HANDSHAKE_S if tls else None,
            )
            return
        self.state.arriving -= not private

    def _adopted(self, task: asyncio.Task[None]) -> None:
        self.state.adopting.discard(task)
        self.state.check_drained()

    def _tick(self) -> None:
        self.state.sweep()
        self._loop.call_later(SWEEP_S, self._tick)

    # -- stopping

    async def drain(self, linger_s: float, limit_s: float, *, alone: bool = False) -> bool:
        """Stop accepting, answer what is in flight, close; False where that took too long.

        Idle connections stay open for a while: a client that was about to send its query is
        answered and sent elsewhere, instead of meeting a closed connection. That is
        `linger_s` from now on; a connection that has carried no request yet gets at least
        `ServerLimits.first_s` from when it was accepted, because its client would not try again, as
        one whose kept connection closes does.

        Args:
            linger_s: for clients between two queries.
            limit_s: for everything.
            alone: nobody is left to accept from the sockets that were shared: take what waits.
        """
        state = self.state
        self._stop_listening(alone)
        begun = state.now()
        drained = state.begin_drain()
        while not drained.done():
            left_s = begun + limit_s - state.now()
            await self._take_turns()  # what lies in the kernel is a request that came in time
            if left_s <= 0:
                self._close_idle(0.0, 0.0)
                await self._take_turns()
                break
            self._close_idle(begun + linger_s, state.limits.first_s)
            await asyncio.wait({drained}, timeout=min(left_s, LOOK_S))
        return drained.done()

    def _stop_listening(self, alone: bool) -> None:
        for listener, shared in self._listening.items():
            self._loop.remove_reader(listener.fileno())
            while alone or not shared:  # nobody else will: take what the kernel accepted for us
                try:
                    client, address = listener.accept()
                except OSError:
                    break
                host = str(address[0]) if isinstance(address, tuple) else ""
                self._adopt(client, host, private=listener in self._private)
            listener.close()
        self._listening.clear()

    async def _take_turns(self) -> None:
        """Let the loop poll: after a long turn it runs timers first, and reads then."""
        for _ in range(TURNS):
            await asyncio.sleep(0)

    def _close_idle(self, due: float, first_s: float) -> None:
        """Close the connections that wait for a request, from `due` on; their first, `first_s`."""
        now = self.state.now()
        for connection in list(self.state.connections):
            wait = due if connection.requested else max(due, connection.born + first_s)
            if connection.idle and connection.transport and now >= wait:
                connection.transport.close()
