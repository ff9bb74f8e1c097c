"""HTTP/1.1 between gateway, shards and clients: the gateway's half.

An `Endpoint` keeps the connections (`Exchange`) to one function; `send` starts a call and returns
at once. On an idle connection that costs one write: no task, no future. Whoever called is called
back once, with the `Reply` or with the `CallError` that explains why there is none.

Calls of one turn of the event loop may share a connection and its write: a busy gateway then wakes
a shard once for several queries. Only where answers come straight from a function of ours, which
answers at once; a proxy would handle them one after the other.

A connection that dies before any byte of an answer is replaced once and the request sent again:
that is what a replica that was stopped looks like. Behind a Kubernetes Service the new one may be
refused, while the replica that is gone still gets its share: it is tried a few times. Connections
are replaced when they are old, so that new replicas behind the same address get their share.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

from erless.errors import first_line
from erless.http.client.connection import CLOSED, Call, Exchange
from erless.http.client.reply import Callback, CallError, Reply, Take
from erless.http.messages import Buffer
from erless.http.receive import shared_buffer

__all__ = ["Call", "CallError", "Endpoint", "Reply"]

LATENCIES = 256  # of the last calls, for the p95
EVERY = 32  # calls between two computations of it
CONNECT_S = 10.0
REFUSED_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # after each refusal; then it is an error
BATCH_BYTES = 32 << 10  # of requests that share a write: some 0.2 ms of work for one replica


class Endpoint:
    """One function, reached at `http://host:port`.

    Args:
        url: where.
        age_s: a connection is replaced after this long.
        on_retry: told of each call that is sent again.
        batch: most calls that share a write, where answers come straight from a function.
    """

    def __init__(
        self, url: str, age_s: float, on_retry: Callable[[], None], batch: int = 1
    ) -> None:
        authority = url.removeprefix("http://").rstrip("/")
        host, _, port = authority.rpartition(":")
        if not port.isdigit():
            host, port = authority, "80"
        self.url, self.host, self.port = url, host.strip("[]"), int(port)
        self.authority = authority.encode()
        self._age_s, self._on_retry, self._batch = age_s, on_retry, batch
        self._loop = asyncio.get_running_loop()
        self.now = time.monotonic  # the loop's clock, which tells whole milliseconds
        self.exchanges: set[Exchange] = set()
        self.shared = shared_buffer()
        self.direct = False  # the last answer was in the fast lane: nothing stands in between
        self._idle: list[Exchange] = []
        self._filling: Exchange | None = None  # to which calls of this turn are added
        self._room = 0  # bytes of requests that it still takes
        self._tasks: set[asyncio.Task[None]] = set()
        self._latencies: deque[float] = deque(maxlen=LATENCIES)
        self._calls = 0
        self.p95_s = math.inf  # until enough calls are known

    @property
    def connected(self) -> bool:
        """A connection exists that has carried an answer."""
        return any(each.used > each.born for each in self.exchanges)

    def send(self, buffers: Sequence[Buffer], done: Callback, take: Take | None = None) -> Call:
        """Start a call.

        Args:
            buffers: the whole request; not to be changed until the call is over.
            done: called back once, never from within `send`.
            take: shown what has come of the answer, until it takes it or declines; `done` is told.
        """
        call = Call(self, buffers, done, take)
        if self.direct and self._batch > 1:
            self._join(call)
        elif (exchange := self._free()) is not None:
            exchange.send(call)
        else:
            self._connect(call)
        return call

    def _free(self) -> Exchange | None:
        """A connection without open calls."""
        while self._idle:
            exchange = self._idle.pop()
            if exchange.transport is not None and not exchange.transport.is_closing():
                return exchange
        return None

    def _join(self, call: Call) -> None:
        """Let `call` leave with the others of this turn."""
        size = sum(map(len, call.buffers))
        filling = self._filling
        if filling is not None and len(filling.calls) < self._batch and size <= self._room:
            filling.add(call)
            self._room -= size
            return
        self._flush()
        exchange = self._free()
        if exchange is None:
            self._connect(call)
            return
        exchange.add(call)
        self._filling, self._room = exchange, BATCH_BYTES - size
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        filling, self._filling = self._filling, None
        if filling is not None:
            filling.flush()

    def _connect(self, call: Call | None) -> None:
        task = self._loop.create_task(self._open(call))
        if call is not None:
            call.task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self, call: Call | None) -> None:
        """A new connection for `call`, or, for None, an idle one."""
        try:
            async with asyncio.timeout(CONNECT_S):
                exchange = await self._dial()
        except (OSError, TimeoutError) as error:
            if call is not None:
                call.task = None
                why = first_line(error) if str(error) else f"no answer within {CONNECT_S:g} s"
                self.unanswered(call, f"no connection: {why}")
            return
        if call is None:
            self._idle.append(exchange)
            return
        call.task = None
        if call.open:
            exchange.send(call)
        else:
            self._idle.append(exchange)

    async def _dial(self) -> Exchange:
        """A connection; tried again where it is refused."""
        for pause_s in REFUSED_S:
            with contextlib.suppress(ConnectionRefusedError):
                return await self._dial_once()
            await asyncio.sleep(pause_s)
        return await self._dial_once()

    async def _dial_once(self) -> Exchange:
        _, exchange = await self._loop.create_connection(
            lambda: Exchange(self), self.host, self.port
        )
        return exchange

    def unanswered(self, call: Call, why: str) -> None:
        """The connection of `call` is gone and no byte of an answer came: try once more."""
        call.exchange = None
        if not call.open:
            return
        if call.retried:
            call.finish(CallError(why, unanswered=True))
            return
        call.retried = True
        self._on_retry()
        self._connect(call)

    def answered(self, exchange: Exchange, now: float, took_s: float) -> None:
        """An answer is whole: keep its connection, unless it is old or the server closes it."""
        exchange.used = now
        self._latencies.append(took_s)
        self._calls += 1
        if self._calls % EVERY == 0:
            ordered = sorted(self._latencies)
            self.p95_s = ordered[int(0.95 * len(ordered))]
        if not exchange.keep:
            exchange.drop(CLOSED)
        elif exchange.calls:
            if not exchange.calls[-1].open:
                exchange.given_up()
        elif now - exchange.born > self._age_s:
            exchange.close()
            if not self._idle:
                self._connect(None)
        else:
            self._idle.append(exchange)

    def forget(self, exchange: Exchange) -> None:
        """A connection is gone."""
        self.exchanges.discard(exchange)
        if exchange is self._filling:
            self._filling = None
        if exchange in self._idle:
            self._idle.remove(exchange)

    def sweep(self) -> None:
        """Close idle connections that are old."""
        oldest = self.now() - self._age_s
        for each in [each for each in self._idle if each.used < oldest]:
            each.close()

    def close(self) -> None:
        """Close all connections."""
        for task in self._tasks:
            task.cancel()
        for each in list(self.exchanges):
            each.close()
