"""The calls of one query.

A `FanOut` has a `ShardCall` for every function that is called, and ends when all are answered, or
the first has failed. A call may take more than one request: a second one to a slow shard (hedging);
another one on a new connection where an awake shard is silent, since its replica may hang while
others behind the same address do not (`silence`); another while the shard still loads. Where the
settings allow it, default vectors stand in for a shard that is not awake.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Protocol

from erless.errors import ServeError
from erless.http.client.endpoint import CallError, HttpCall, Reply
from erless.http.client.reply import ANSWER_GENERAL
from erless.http.messages import Buffer
from erless.serve.gateway.error_budget import ErrorBudget
from erless.serve.gateway.remote import RemoteDense, RemoteShard
from erless.serve.gateway.silence import (
    LOOK_MOST_S,
    LOOK_S,
    MOST_RESENDS,
    SILENT_S,
    Resends,
    silent_after_s,
)

__all__ = ["FanOut", "ShardCall", "ShardWork"]

POLL_S = 0.05  # between two calls to a function that still loads
COLD_BUDGET_S = 0.02  # how long a shard that is not awake is waited for
LOADING = b'"state": "loading"'
# Statuses of Knative's queue-proxy and Envoy while a container starts again, and of one that hangs.
UNREACHED = {502, 503, 504}


class FanOut:
    """All calls of one query, or of one phase of it.

    `done` is set when all are answered, or to the first error. `cold`: a call waited for a
    function to start; `degraded`: defaults stood in for a shard; `over`: nothing more is added.

    Args:
        loop: that all of it runs on.
        deadline: of the query, in the loop's time.
        resends: the budget of calls asked again; None: silent shards are waited for.
        queries: how many are answered by these calls together.
    """

    __slots__ = (
        "_deadline",
        "_look",
        "_look_due_s",
        "_loop",
        "_resends",
        "_settled",
        "calls",
        "cold",
        "degraded",
        "done",
        "open",
        "over",
        "queries",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deadline: float,
        resends: Resends | None = None,
        queries: int = 1,
    ) -> None:
        self._loop, self._resends, self.queries = loop, resends, queries
        self.done: asyncio.Future[None] = loop.create_future()
        self.calls: list[ShardCall] = []
        self.open = 0
        self.cold = self.degraded = self.over = self._settled = False
        self._deadline = loop.call_at(deadline, self._expire)
        self._look: asyncio.TimerHandle | None = None
        self._look_due_s = 0.0
        if resends is not None:
            self._look_after(SILENT_S)

    def add(self, call: ShardCall) -> None:
        """One more call that has to be answered."""
        self.calls.append(call)
        self.open += 1

    def arrived(self) -> None:
        """One of the calls is answered."""
        self.open -= 1
        if not self.open and not self.over:
            self.over = True
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        """The query has failed with `error`; the other calls are left to end by themselves."""
        if not self.over:
            self.over = True
            self.done.set_exception(error)

    def _look_after(self, seconds: float) -> None:
        self._look_due_s = self._loop.time() + seconds
        self._look = self._loop.call_later(seconds, self._ask_again)

    def _ask_again(self) -> None:
        """Ask shards again that are silent.

        Where this process itself was held up, answers lie unread: they are looked at first.
        """
        self._look = None
        waiting = [call for call in self.calls if not call.over]
        if self.over or not waiting or self._resends is None:
            return
        held_up = self._loop.time() - self._look_due_s > LOOK_S
        next_s = LOOK_S if held_up else LOOK_MOST_S
        for call in waiting:
            left_s = call.silent_in_s()
            if left_s <= 0 and not held_up and self._resends.spend(call.remote.endpoint):
                call.ask_again()
                left_s = call.silent_in_s()
            next_s = min(next_s, max(LOOK_S, left_s))
        self._look_after(next_s)

    def give_up(self) -> None:
        """Abort all calls: the client has left, nobody waits for an answer."""
        for call in self.calls:
            if not call.over:
                call.abort()
        self.settle()

    def _expire(self) -> None:
        """The deadline: give up what is still under way."""
        late = [call for call in self.calls if not call.over]
        names = ", ".join(call.waited_for for call in late)
        self.fail(ServeError(f"the deadline passed while waiting for {names}", 504, "deadline"))
        for call in late:
            call.abort()
        self.ended()

    def settle(self) -> None:
        """The query is over: calls that are left may end by themselves until the deadline.

        No reference from here leads back here then, so that what the query held is free at once:
        an error refers to the frames it passed, and they to the fan-out.
        """
        if self._settled:
            return
        self.over = self._settled = True
        if self._look is not None:
            self._look.cancel()
            self._look = None
        if self.done.done() and not self.done.cancelled():
            self.done.exception()  # seen, also where nobody waited for it
        del self.done
        self.ended()

    def ended(self) -> None:
        """One more call has ended of a query that is over."""
        if self._settled and (not self.open or all(call.over for call in self.calls)):
            self._deadline.cancel()
            self.calls.clear()


class ShardWork(Protocol):
    """What one function is asked for a query, and what becomes of its answer."""

    @property
    def remote(self) -> RemoteShard | RemoteDense:
        """The function that this work goes to."""

    def request(self) -> Sequence[Buffer]:
        """The bytes of the request."""

    def add_answer(self, buffer: bytearray, begin: int, end: int, last: bool) -> tuple[int, int]:
        """Add an answer that has the known form; see `erless.http.client.reply.AddAnswer`."""

    def read(self, reply: Reply) -> None:
        """Add any other answer. Raises ServeError where it is an error, or makes no sense."""

    def use_defaults(self) -> None:
        """Use default vectors instead of an answer."""


class ShardCall:
    """One function's part of a query, under way.

    Args:
        fan_out: the calls of the same query.
        work: the request, and what becomes of the answer.
        error_budget: of queries answered with default vectors; None: the function is waited for.
        hedge: called when a second call is made; None: there is none.
    """

    __slots__ = (
        "_buffers",
        "_error_budget",
        "_fan_out",
        "_hedge",
        "_loop",
        "_resent",
        "_sent",
        "_timers",
        "_work",
        "over",
        "remote",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fan_out: FanOut,
        work: ShardWork,
        *,
        error_budget: ErrorBudget | None = None,
        hedge: Callable[[], None] | None = None,
    ) -> None:
        self._loop, self._fan_out, self._work, self.remote = loop, fan_out, work, work.remote
        self._error_budget, self._hedge = error_budget, hedge
        self._buffers = work.request()
        self._sent: list[HttpCall] = []
        self._timers: list[asyncio.TimerHandle] = []
        self.over = False
        self._resent = 0
        fan_out.add(self)

    def start(self) -> None:
        """Call; default vectors do at once where another query is waking the shard already."""
        if self._error_budget is not None:
            if self.remote.endpoint.connected:
                self._error_budget = None  # it is awake: whatever it takes, its answer is right
            elif not self.remote.waking:
                self._after(COLD_BUDGET_S, self._degrade)
            elif self._degrade():
                return
        self._send()
        if self._hedge is not None and self.remote.endpoint.p95_s < math.inf:
            self._after(self.remote.endpoint.p95_s, self._send_second)

    def _after(self, seconds: float, call: Callable[[], object]) -> None:
        self._timers.append(self._loop.call_later(seconds, call))

    def _send(self, *, apart: bool = False) -> None:
        if not self.over:
            call = self.remote.endpoint.send(
                self._buffers, self._answered, self._add_answer, apart=apart
            )
            self._sent.append(call)

    def _send_second(self) -> None:
        if self._hedge is not None and not self.over:
            self._hedge()
            self._send(apart=True)

    def silent_in_s(self) -> float:
        """Seconds until the function is silent; infinite where it is not asked again any more."""
        if not self._sent or not self._sent[-1].open or self._resent >= MOST_RESENDS:
            return math.inf
        endpoint = self.remote.endpoint
        return self._sent[-1].began + silent_after_s(endpoint, self._resent) - endpoint.now()

    def ask_again(self) -> None:
        """Ask once more, on a new connection; the first answer counts."""
        self._resent += 1
        if self.remote.endpoint.awake:  # else it may be starting, and answers all
            self.remote.endpoint.distrust(self._sent[-1])
        self._send(apart=True)

    @property
    def waited_for(self) -> str:
        """The function's name for an error, and how often it was asked."""
        times = f" (silent, asked {self._resent + 1} times)" if self._resent else ""
        return f"{self.remote.label}{times}"

    def _add_answer(self, buffer: bytearray, begin: int, end: int, last: bool) -> tuple[int, int]:
        """Only the first answer to a query that still waits is added to its result."""
        if self.over or self._fan_out.over:
            return ANSWER_GENERAL, begin
        return self._work.add_answer(buffer, begin, end, last)

    def _answered(self, result: Reply | CallError) -> None:
        if self.over:
            self.remote.waking = False  # an answer that nobody waited for any more
            return
        if _failed(result) and any(call.open for call in self._sent):
            return  # another request of this call may still be answered
        if self._resent and isinstance(result, Reply):
            self._learn(result.took_s)
        if not self._fan_out.over and self._goes_on(result):
            return
        if _failed(result) and self._degrade():
            return
        self._end()
        if self._fan_out.over:
            self._fan_out.ended()
            return
        try:
            if isinstance(result, CallError):
                raise ServeError(f"{self.remote.label}: {result}", 502, "shard")
            if not result.added:
                self._work.read(result)
        except Exception as error:  # the query answers for it
            self._fan_out.fail(
                error.with_traceback(None) if isinstance(error, ServeError) else error
            )
            return
        self._fan_out.cold = self._fan_out.cold or result.up_ms < result.took_s * 1e3
        self._fan_out.arrived()

    def _goes_on(self, result: Reply | CallError) -> bool:
        """Ask once more where what came is neither an answer nor a failure."""
        if isinstance(result, CallError):
            if result.silent:
                self._send(apart=True)
            return result.silent
        if _unreachable(result):
            self._after(POLL_S, self._send)
            return True
        return False

    def _learn(self, took_s: float) -> None:
        """Let calls that others overtook count as slow, where a new one was not quick either.

        It is then the load that makes the function slow, and not one replica that hangs.
        """
        endpoint = self.remote.endpoint
        if took_s > silent_after_s(endpoint) / 2:
            for call in self._sent:
                if call.open:
                    endpoint.observe_latency(endpoint.now() - call.began)

    def _degrade(self) -> bool:
        """Use default vectors if the budget allows; the call goes on, since it wakes the shard."""
        if self.over or self._error_budget is None or self._fan_out.over:
            return False
        queries = self._fan_out.queries
        if not self._fan_out.degraded and not self._error_budget.spend(queries):
            self._error_budget = None  # the budget is spent: wait
            return False
        self._fan_out.degraded = True
        self.over = True
        self._cancel_timers()
        try:
            self._work.use_defaults()
        except Exception as error:  # as above
            self._fan_out.fail(error)
            return True
        for call in self._sent:
            if call.open:
                self.remote.woken_by(call)
        self._fan_out.arrived()
        return True

    def _end(self) -> None:
        """Abort the requests that are left: none is needed any more."""
        self.over = True
        self._cancel_timers()
        for call in self._sent:
            if call.open:
                call.abort()

    def abort(self) -> None:
        """End without an answer."""
        self._end()

    def _cancel_timers(self) -> None:
        if self._timers:
            for timer in self._timers:
                timer.cancel()
            self._timers.clear()


def _unreachable(reply: Reply) -> bool:
    """The function still loads, or a proxy cannot reach it, whose answers are not JSON."""
    if reply.status not in UNREACHED:
        return False
    body = bytes(reply.body)
    return not body.startswith(b"{") or (reply.status == 503 and LOADING in body)


def _failed(result: Reply | CallError) -> bool:
    """No answer, or one with a status of 500 or above."""
    return isinstance(result, CallError) or result.status >= 500
