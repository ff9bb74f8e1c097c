"""HTTP/1.1 between gateway, shards and clients: the gateway's half.

An `Endpoint` keeps the connections to one function; `send` starts a call and returns at once. On an
idle connection that costs one write: no task, no future. The caller is called back once, with
the `Reply` or with the `CallError` that explains why there is none.

Calls of one turn of the event loop may share a connection and its write: a busy gateway then wakes
a shard once for several queries. Only where answers come straight from a function of ours, which
answers at once; a proxy would handle them one after the other.

A connection that dies before an answer is whole is replaced once and the request sent again: that
is what a replica that was stopped looks like, and a call changes nothing. Behind a Kubernetes
Service the new one may be refused, or get no answer, while the replica that is gone still gets its
share: it is tried a few times. Connections are replaced when they are old, so that new replicas
behind the same address get their share, the last one once its successor is there. One on which no
answer comes is distrusted: it takes no more calls, and closes.
"""

from __future__ import annotations

import asyncio
import errno
import math
import ssl
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from erless.errors import first_line
from erless.http.client.connection import CLOSED, ClientConnection, HttpCall
from erless.http.client.reply import AddAnswer, Callback, CallError, Reply
from erless.http.messages import Buffer
from erless.http.receive import shared_buffer
from erless.http.tls import peer_identity

__all__ = ["CallError", "Endpoint", "HttpCall", "PeerTls", "Reply"]

LATENCIES = 256  # of the last calls, for the p95 and the p99
QUANTILE_CALLS = 32  # calls between two computations of them
CONNECT_S = 10.0
# A handshake of TCP takes milliseconds, one more second where a packet is lost. Where a pod has
# vanished nobody answers, and the next connection may lead to another. (With TLS the call that
# waits is asked again on another connection: gateway/silence.py.)
REACH_S = 1.5
TLS_CONNECT_S = 600.0  # a handshake waits for a function that starts, as a call does without TLS
AWAKE_S = 30.0  # after an answer; no target scales an idle function to zero sooner
REFUSED_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # after each refusal; then it is an error
# One connection is replaced so often, where so many calls were answered meanwhile: a replica that
# joins gets its first calls then. It takes 0.2 ms of CPU for both ends, as one call does: 3 % of
# the calls' own at 128 calls/s, which is 0.08 % of a core, and less of them at any higher rate.
RENEW_S = 0.25
RENEW_CALLS = 32
# A handshake takes both ends 6.6 ms, nearly all of it in OpenSSL 3.0: 1.5 % of the CPU of so many
# calls of RM1's size.
TLS_RENEW_CALLS = 512
NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
FREE_S = 0.001  # between two looks for a connection that got free
DISTRUSTED_S = 1.0  # a connection closes so long after it was found silent
BATCH_BYTES = 32 << 10  # of requests that share a write: some 0.2 ms of work for one replica


@dataclass(frozen=True, slots=True)
class PeerTls:
    """TLS to a function: contexts, asked for at each handshake, and the URI that it must have."""

    contexts: Callable[[], ssl.SSLContext]
    identity: str


class _SilentError(OSError):
    """Nobody answered a request for a connection."""


class Endpoint:
    """One function, reached at `http://host:port`, or with `tls` at `https://host:port`.

    Args:
        url: where.
        age_s: a connection is replaced after this long.
        on_retry: called for each call that is sent again, since its connection died.
        batch: most calls that share a write, where answers come straight from a function.
        on_silent: called for each connection that is distrusted.
        tls: how, where the URL is of https.
    """

    def __init__(
        self,
        url: str,
        age_s: float,
        on_retry: Callable[[], None],
        batch: int = 1,
        on_silent: Callable[[], None] = lambda: None,
        tls: PeerTls | None = None,
    ) -> None:
        location = urlsplit(url)
        self.url, self.host = url, location.hostname or ""
        self.port = location.port or (80 if tls is None else 443)
        self.authority = location.netloc.encode()
        self._tls = tls
        self._connect_s = CONNECT_S if tls is None else TLS_CONNECT_S
        self._renew_calls = RENEW_CALLS if tls is None else TLS_RENEW_CALLS
        self._age_s, self._on_retry, self._batch = age_s, on_retry, batch
        self._on_silent = on_silent
        self._loop = asyncio.get_running_loop()
        self.connections: set[ClientConnection] = set()
        self.shared = shared_buffer()
        self.direct = False  # the last answer came as our server writes it: no proxy in between
        self._idle: list[ClientConnection] = []
        self._replacing = False  # a connection is being made in place of an old one
        self._filling: ClientConnection | None = None  # to which calls of this turn are added
        self._room = 0  # bytes of requests that it still takes
        self._tasks: set[asyncio.Task[None]] = set()
        self._latencies: deque[float] = deque(maxlen=LATENCIES)
        self._calls = 0
        self._renewed_s, self._renewed_calls = self.now(), 0
        self._answered_at = -math.inf
        self.p95_s = self.p99_s = math.inf  # until enough calls are known

    @property
    def connected(self) -> bool:
        """A connection exists that has carried an answer."""
        return any(connection.used > connection.born for connection in self.connections)

    @property
    def awake(self) -> bool:
        """An answer has come a short while ago."""
        return self.now() - self._answered_at < AWAKE_S

    @property
    def waited_s(self) -> float:
        """For how long the oldest call has been waiting; 0 where none does."""
        began = [each.calls[0].began for each in self.connections if each.calls]
        return self.now() - min(began) if began else 0.0

    now = staticmethod(time.monotonic)  # the loop's clock, but finer

    def send(
        self,
        buffers: Sequence[Buffer],
        done: Callback,
        add_answer: AddAnswer | None = None,
        *,
        apart: bool = False,
    ) -> HttpCall:
        """Start a call.

        Args:
            buffers: the whole request; not to be changed until the call is over.
            done: called back once, never from within `send`.
            add_answer: shown what has come of the answer, until it deals with it or declines; then
                `done` is called back all the same.
            apart: on a new connection, which may lead to another replica.
        """
        call = HttpCall(self.now(), buffers, done, add_answer)
        if apart:
            self._connect(call)
        elif self.direct and self._batch > 1:
            self._join(call)
        elif (connection := self._free()) is not None:
            connection.send(call)
        else:
            self._connect(call)
        return call

    def _free(self) -> ClientConnection | None:
        """A connection without open calls."""
        while self._idle:
            connection = self._idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                return connection
        return None

    def _join(self, call: HttpCall) -> None:
        """Let `call` leave with the others of this turn."""
        size = sum(map(len, call.buffers))
        filling = self._filling
        if filling is not None and len(filling.calls) < self._batch and size <= self._room:
            filling.add(call)
            self._room -= size
            return
        self._flush()
        connection = self._free()
        if connection is None:
            self._connect(call)
            return
        connection.add(call)
        self._filling, self._room = connection, BATCH_BYTES - size
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        filling, self._filling = self._filling, None
        if filling is not None:
            filling.flush()

    def _connect(self, call: HttpCall) -> None:
        call.task = self._start(self._open(call))

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _open(self, call: HttpCall) -> None:
        """A connection for `call`."""
        try:
            async with asyncio.timeout(self._connect_s):
                connection = await self._dial_or_share(call)
        except (OSError, TimeoutError) as error:
            call.task = None
            why = first_line(error) if str(error) else f"no answer within {self._connect_s:g} s"
            self.unanswered(call, f"no connection: {why}")
            return
        call.task = None
        if call.open:
            connection.send(call)
        else:
            self._idle.append(connection)

    async def _dial_or_share(self, call: HttpCall) -> ClientConnection:
        """A new connection; where this process has no descriptor for one, whichever gets free."""
        while True:
            try:
                return await self._dial()
            except OSError as error:
                if error.errno not in NO_DESCRIPTOR or not (self.connections and call.open):
                    raise
            await asyncio.sleep(FREE_S)
            connection = self._free()
            if connection is not None:
                return connection

    async def _dial(self) -> ClientConnection:
        """A connection; tried again where it is refused, or gets no answer."""
        for pause_s in REFUSED_S:
            try:
                return await self._dial_once()
            except ConnectionRefusedError:
                await asyncio.sleep(pause_s)
            except _SilentError:
                continue
        return await self._dial_once()

    async def _dial_once(self) -> ClientConnection:
        tls = self._tls
        if tls is None:
            try:
                async with asyncio.timeout(REACH_S):
                    _, connection = await self._loop.create_connection(
                        lambda: ClientConnection(self), self.host, self.port
                    )
            except TimeoutError:
                raise _SilentError(f"no answer within {REACH_S:g} s") from None
            return connection
        transport, connection = await self._loop.create_connection(
            lambda: ClientConnection(self),
            self.host,
            self.port,
            ssl=tls.contexts(),
            ssl_handshake_timeout=self._connect_s,
        )
        found = peer_identity(transport.get_extra_info("ssl_object"))
        if found != tls.identity:
            connection.close()
            raise ConnectionError(f"{found or 'somebody'} answers there, not {tls.identity}")
        return connection

    def unanswered(self, call: HttpCall, why: str) -> None:
        """The connection of `call` is gone before an answer was whole: try once more."""
        call.connection = None
        if not call.open:
            return
        if call.retried:
            call.finish(CallError(why, unanswered=True))
            return
        call.retried = True
        self._on_retry()
        self._connect(call)

    def answered(self, connection: ClientConnection, now: float, took_s: float) -> None:
        """An answer is whole: keep its connection, unless it is old or the server closes it."""
        connection.used = self._answered_at = now
        self.observe_latency(took_s)
        if not connection.keep:
            connection.drop(CLOSED)
        elif connection.silent:
            if not connection.calls:
                connection.close()
        elif connection.calls:
            if not connection.calls[-1].open:
                connection.close_if_unused()
        elif connection.succeeded or (self._idle and now - connection.born > self._age_s):
            connection.close()
        else:
            self._idle.append(connection)
            if not self._replacing and self._is_old(connection, now):
                self._renewed_s, self._renewed_calls = now, self._calls
                self._replacing = True
                self._start(self._replace(connection))

    async def _replace(self, old: ClientConnection) -> None:
        """An idle connection in place of `old`, which goes on where none is to be had."""
        try:
            async with asyncio.timeout(self._connect_s):
                connection = await self._dial()
        except (OSError, TimeoutError):
            return
        finally:
            self._replacing = False
        self._idle.append(connection)
        old.succeeded = True
        if old in self._idle:
            old.close()

    def _is_old(self, connection: ClientConnection, now: float) -> bool:
        """Whether another connection shall take the place of this one, which has no open calls."""
        return (
            now - self._renewed_s > RENEW_S
            and now - connection.born > RENEW_S
            and (
                now - connection.born > self._age_s
                or self._calls - self._renewed_calls >= self._renew_calls
            )
        )

    def observe_latency(self, took_s: float) -> None:
        """A call has taken so long, or was given up after so long because the function is slow."""
        self._latencies.append(took_s)
        self._calls += 1
        if self._calls % QUANTILE_CALLS == 0:
            ordered = sorted(self._latencies)
            self.p95_s = ordered[int(0.95 * len(ordered))]
            self.p99_s = ordered[int(0.99 * len(ordered))]

    def opened(self, connection: ClientConnection) -> None:
        """A connection is established."""
        self.connections.add(connection)

    def observe_answer(self, direct: bool) -> None:
        """An answer has come, as our own server writes it or rewritten by a proxy."""
        self.direct = direct

    def forget(self, connection: ClientConnection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        if connection is self._filling:
            self._filling = None
        if connection in self._idle:
            self._idle.remove(connection)

    def distrust(self, call: HttpCall) -> None:
        """`call` gets no answer: its connection takes no more calls, and closes after a second.

        Idle connections close at once: they may lead to the same replica.
        """
        for idle in list(self._idle):
            idle.close()
        connection = call.connection
        if connection is not None and not connection.silent:
            connection.silent = True
            if connection is self._filling:
                self._flush()
            self._on_silent()
            self._loop.call_later(DISTRUSTED_S, connection.close_silent)

    def sweep(self) -> None:
        """Close idle connections that are old."""
        oldest = self.now() - self._age_s
        for connection in [idle for idle in self._idle if idle.used < oldest]:
            connection.close()

    def close(self) -> None:
        """Close all connections."""
        for task in self._tasks:
            task.cancel()
        for connection in list(self.connections):
            connection.close()
