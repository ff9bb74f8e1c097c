"""The calls of one query.

A `FanOut` has a `ShardCall` for every function that is called, and ends when all are answered, or
the first has failed. A call may take more than one request: a second one to a slow shard (hedging);
another one on a new connection where an awake shard does not answer, since its replica may hang
while others behind the same address do not; another while the shard still loads. Where the
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

__all__ = ["FanOut", "ShardCall", "ShardWork"]

POLL_S = 0.05  # between two calls to a function that still loads
COLD_BUDGET_S = 0.02  # how long a shard that is not awake is waited for
LOADING = b'"state": "loading"'
# A call to a shard that is awake is repeated after SILENT_S, or SILENT_P95 times the shard's p95.
SILENT_S = 0.3
SILENT_P95 = 4.0
LOOK_S = 0.1  # between two looks at the calls of a query that has taken longer
REPEATS = 2  # of a call that stays silent
# Statuses of Knative's queue-proxy and Envoy while a container starts again, and of one that hangs.
UNREACHED = {502, 503, 504}


class FanOut:
    """All calls of one query, or of one phase of it.

    `done` is set when all are answered, or to the first error. `cold`: a call waited for a
    function to start; `degraded`: defaults stood in for a shard; `over`: nothing more is added.

    Args:
        loop: that all of it runs on.
        deadline: of the query, in the loop's time.
        repeats: of calls to silent shards, among all calls; None: they are waited for.
    """

    __slots__ = (
        "_deadline",
        "_loop",
        "_repeats",
        "_settled",
        "_silence",
        "calls",
        "cold",
        "degraded",
        "done",
        "open",
        "over",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deadline: float,
        repeats: ErrorBudget | None = None,
    ) -> None:
        self._loop, self._repeats = loop, repeats
        self.done: asyncio.Future[None] = loop.create_future()
        self.calls: list[ShardCall] = []
        self.open = 0
        self.cold = self.degraded = self.over = self._settled = False
        self._deadline = loop.call_at(deadline, self._expire)
        self._silence = loop.call_later(SILENT_S, self._repeat_silent) if repeats else None

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

    def _repeat_silent(self) -> None:
        """Repeat the calls to shards that are awake and have not answered for long."""
        self._silence = None
        waiting = [call for call in self.calls if not call.over]
        if self.over or not waiting or self._repeats is None:
            return
        for call in waiting:
            if call.silent and self._repeats.spend():
                call.repeat()
        self._silence = self._loop.call_later(LOOK_S, self._repeat_silent)

    def give_up(self) -> None:
        """Abort all calls: the client has left, nobody waits for an answer."""
        for call in self.calls:
            if not call.over:
                call.abort()
        self.settle()

    def _expire(self) -> None:
        """The deadline: give up what is still under way."""
        late = [call for call in self.calls if not call.over]
        names = ", ".join(call.remote.label for call in late)
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
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
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

    @property
    def silent(self) -> bool:
        """Whether a shard that was awake has not answered for longer than it ever takes."""
        endpoint = self.remote.endpoint
        if not self._sent or len(self._sent) > REPEATS or not endpoint.awake:
            return False
        p95_s = endpoint.p95_s if endpoint.p95_s < math.inf else 0.0
        return endpoint.now() - self._sent[-1].began > max(SILENT_S, SILENT_P95 * p95_s)

    def repeat(self) -> None:
        """Ask once more, on a new connection; the first answer counts."""
        self.remote.endpoint.suspect()
        self.remote.endpoint.repeated()
        self._send(apart=True)

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
        if isinstance(result, Reply) and not self._fan_out.over and _unreachable(result):
            self._after(POLL_S, self._send)
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

    def _degrade(self) -> bool:
        """Use default vectors if the budget allows; the call goes on, since it wakes the shard."""
        if self.over or self._error_budget is None or self._fan_out.over:
            return False
        if not self._fan_out.degraded and not self._error_budget.spend():
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
