"""The HTTP API that all functions share: infer calls, admitted, answered, counted, or refused.

What a function does itself is a `Served`: decoded tensors in, tensors out, at once or later. Who
may ask is `Guard`'s, what is served `Standing`'s, everything that can only be read `Reads`'.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from erless.dlrm._kernels import FastPath
from erless.dlrm.bfloat16 import all_finite
from erless.errors import DiskBusyError, DiskReadError, QueryError, ServeError
from erless.http.budget import MemoryBudget
from erless.http.messages import DEADLINE, JSON_LENGTH, UP, Request, Response, body_offset
from erless.serve.logs import Log
from erless.serve.metrics import Metrics
from erless.serve.protocol.fast_lane import LONGEST_MS
from erless.serve.protocol.guard import Guard
from erless.serve.protocol.infer import BINARY_TYPE, InferRequest
from erless.serve.protocol.reads import Reads
from erless.serve.protocol.served import InferAnswer, InferCall, Served
from erless.serve.protocol.standing import Standing
from erless.serve.protocol.versions import VersionError
from erless.serve.protocol.wire import HTTP, Failure, Wire
from erless.serve.settings import Settings
from erless.serve.traces import trace_id

if TYPE_CHECKING:
    from erless.serve.spans import QuerySpan, Traces

__all__ = ["App"]

LEFT = 499  # of a client that left before it was answered
STATUS_CODE = "http.response.status_code"  # of a span, by OpenTelemetry's conventions
TRACE_LINE, HEAD_END = b"\r\ntraceparent: ", b"\r\n\r\n"
TRACE_BYTES = 55  # of a trace context
# W3C Trace Context 1: version, trace id and parent id (not all zero), flags.
TRACEPARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)


@dataclass(slots=True)
class _Asked:
    """An infer call on its way."""

    served: Served
    wire: Wire
    began: float
    trace: bytes | None  # the client's
    span: QuerySpan | None
    held_bytes: int = 0  # of the budget
    fault: str = ""

    @property
    def traceparent(self) -> bytes | None:
        """The trace context to be passed on: the span's own, or the client's."""
        return self.trace if self.span is None else self.span.traceparent


def _log_trace(traceparent: bytes | None) -> dict[str, str]:
    return {"trace_id": trace_id(traceparent)} if traceparent else {}


class App:
    """Handles every request of one function.

    Args:
        settings: of the function.
        metrics: what it counts in.
        log: what it writes to.
        budget: of the memory that queries may hold.
        clock: the loop's time.
        traces: what records queries; None: nothing does.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        log: Log,
        clock: Callable[[], float],
        budget: MemoryBudget,
        traces: Traces | None = None,
    ) -> None:
        self._traces = traces
        self.settings, self.metrics, self.log, self._clock = settings, metrics, log, clock
        self._budget = budget
        self._guard = Guard(settings, clock)
        self._standing = Standing(clock, settings.behind_s)
        self._reads = Reads(settings, metrics, self._standing, self._guard)

    def get_ready(self, served: Served) -> None:
        """Serve `served`: everything is loaded and verified."""
        self._standing.get_ready(served)
        self.metrics.info["digest"] = served.digest

    def fail(self, reason: str) -> None:
        """Refuse all queries from now on, with `reason`."""
        self._standing.fail(reason)

    def close(self) -> bool:
        """Let go of all versions; whether no thread is still opening one."""
        return self._standing.close()

    def begin_drain(self) -> None:
        """Answer probes of readiness with "draining" from now on."""
        self._standing.begin_drain()

    def __call__(self, request: Request) -> Response | Awaitable[Response]:
        """Answer `request`."""
        served = self._standing.at.get(request.path)
        if served is not None and request.method == b"POST":
            return self.infer(request, served, HTTP)
        try:
            answer = self._reads.answer(request)
        except ServeError as error:
            return HTTP.refuse(self._failure(error))
        return answer if isinstance(answer, Response) else self.infer(request, answer, HTTP)

    def served_at(self, path: bytes) -> Served | None:
        """What answers infer calls at `path`; None: whatever `__call__` says."""
        return self._standing.at.get(path)

    # -- infer

    def infer(self, request: Request, served: Served, wire: Wire) -> Response | Awaitable[Response]:
        """Answer an infer call to `served` that came by `wire`."""
        metrics = self.metrics
        began = metrics.begin()
        trace = _trace(request)
        span = self._traces.begin("infer", trace) if self._traces else None
        asked = _Asked(served, wire, began, trace, span)
        metrics.bytes_received += len(request.body)
        try:
            self._admit(request)
            deadline = self._deadline(request)
            if served.fast_path is not None and wire is HTTP:
                quick = self._answer_fast(served.fast_path, request)
                if quick is not None:
                    return self._done(asked, quick, 200)
            inputs = wire.decode(request, served)
            origin = request if self.settings.ids_in_order else None
            call = InferCall(inputs, request.arrived, deadline, asked.traceparent, span, origin)
            asked.held_bytes = self._take_budget(served.memory_bytes(inputs))
            answer = served.infer(call)
            if not isinstance(answer, InferAnswer):
                return self._later(asked, inputs, answer)
            response, status = self._encode(served, inputs, answer, wire), 200
        except Exception as error:  # whatever it is, the client gets an answer
            response, status = self._refuse(error, asked)
        return self._done(asked, response, status)

    def _take_budget(self, size: int) -> int:
        """Take `size` bytes of the budget, and return `size`. Raises ServeError if it has less."""
        if not self._budget.take(size):
            raise ServeError(
                f"the query needs {size:,} bytes of memory, and queries in flight hold "
                f"{self._budget.held_bytes:,} of {self._budget.limit_bytes:,}",
                503,
                "overload",
            )
        return size

    def _answer_fast(self, fast_path: FastPath, request: Request) -> Response | None:
        """The answer to a request of the fast lane whose head was read already."""
        announced = body_offset(request.headers)
        if not announced:
            return None
        answered = fast_path.answer(request.body, 0, len(request.body), announced, b"", -1)
        if answered is None:
            return None
        answer, _, gathers, _, size, _ = answered
        self.metrics.gathers += gathers
        return Response(200, (answer,), BINARY_TYPE, ((JSON_LENGTH, b"%d" % size),))

    def answer_whole(
        self, buffer: bytearray, begin: int, end: int, date: bytes
    ) -> tuple[bytes, int] | None:
        """The whole answer to a whole request of the fast lane, and where the request ended.

        None: the request is for `__call__`, whatever it is.
        """
        guard, standing = self._guard, self._standing
        if guard.wants_token or self.log.debugging or standing.state == "failed":
            return None
        began = self._clock()
        up = standing.up_s(began)
        up_ms = -1 if up is None else int(up * 1e3)
        answered = None
        for prefix, served in standing.fast_paths:
            fast_path = served.fast_path
            if fast_path is not None and guard.admits_head(buffer, begin, began, prefix):
                answered = fast_path.answer(buffer, begin, end, 0, date, up_ms)
            if answered is not None:
                break
        if answered is None:
            return None
        answer, next_begin, gathers, received, json_bytes, partial_bytes = answered
        took_s = self.metrics.answered_at_once(began, gathers, received, json_bytes + partial_bytes)
        if self._traces is not None:
            trace = _last_trace(buffer, next_begin - received)
            if trace is not None and self._traces.wants(trace):
                self._traces.record("infer", trace, took_s, **{STATUS_CODE: 200})
        return answer, next_begin

    async def _later(
        self, asked: _Asked, inputs: InferRequest, answer: Awaitable[InferAnswer]
    ) -> Response:
        try:
            response, status = self._encode(asked.served, inputs, await answer, asked.wire), 200
        except asyncio.CancelledError:
            self._done(asked, Response(LEFT), LEFT)
            raise
        except Exception as error:  # as above
            response, status = self._refuse(error, asked)
        return self._done(asked, response, status)

    def _encode(
        self, served: Served, inputs: InferRequest, answer: InferAnswer, wire: Wire
    ) -> Response:
        if not inputs.binary:
            for name, array in answer.outputs.items():
                if not all_finite(array):
                    raise QueryError(f"output {name} is not finite: an input is too large")
        return wire.encode(served, inputs, answer)

    def _done(self, asked: _Asked, response: Response, status: int) -> Response:
        """Count an answer with `status`, and give back the budget that its query took."""
        metrics = self.metrics
        self._budget.give(asked.held_bytes)
        metrics.bytes_sent += response.size
        took = metrics.end(asked.began, status)
        up = self._standing.up_s(asked.began + took)
        if up is not None:
            response.headers = (*response.headers, (UP, b"%d" % max(0, int(up * 1e3))))
        if asked.span is not None:
            asked.span.end(
                asked.fault or ("the client left" if status == LEFT else ""),
                **{STATUS_CODE: status},
            )
        if self.log.debugging:
            trace = _log_trace(asked.traceparent)
            self.log.debug("query", status=status, ms=round(took * 1e3, 3), **trace)
        return response

    def _refuse(self, error: Exception, asked: _Asked) -> tuple[Response, int]:
        failure = self._failure(error, asked.traceparent)
        asked.fault = failure.message
        return asked.wire.refuse(failure), failure.status

    def _admit(self, request: Request) -> None:
        """Raise ServeError unless the client may ask and there is room."""
        self._guard.admit(request)
        self._standing.loaded()
        if self.metrics.in_flight > self.settings.max_in_flight:
            raise ServeError(
                f"{self.settings.max_in_flight} queries are in flight already", 503, "overload"
            )

    def _deadline(self, request: Request) -> float:
        text = request.headers.get(DEADLINE)
        if text is None:
            return request.arrived + self.settings.deadline_ms / 1e3
        try:
            left_ms = float(text)
        except ValueError:
            left_ms = math.nan
        if not 0 < left_ms <= LONGEST_MS:
            raise QueryError(
                f"{DEADLINE.decode()} must be a number of milliseconds, above 0 and up to "
                f"{LONGEST_MS:,.0f}"
            )
        return request.arrived + left_ms / 1e3

    def _failure(self, error: Exception, traceparent: bytes | None = None) -> Failure:
        """What the client learns of `error`, which is counted."""
        if isinstance(error, QueryError):
            status, kind, message = 400, "query", str(error)
        elif isinstance(error, ServeError):
            status, kind, message = error.status, error.kind, str(error)
        elif isinstance(error, DiskBusyError):
            status, kind, message = 503, "overload", str(error)
        elif isinstance(error, DiskReadError):
            status, kind, message = 500, "disk", str(error)
            if error.damage:  # the file will not get better: whoever starts us anew verifies it
                self.log.error(str(error))
                self.fail(str(error))
        else:
            status, kind, message = 500, "internal", "internal error: see the function's log"
            self.log.error("a query failed", trace=error, **_log_trace(traceparent))
        self.metrics.failed(kind)
        if status >= 500 and status != 503 and not isinstance(error, QueryError):
            trace = _log_trace(traceparent)
            self.log.warning("a query was not answered", kind=kind, reason=str(error), **trace)
        state = error.state if isinstance(error, VersionError) else self._standing.state
        return Failure(status, kind, message, state if status == 503 and state != "ready" else "")


def _trace(request: Request) -> bytes | None:
    """The request's trace context; None where it has not W3C's form, as the standard says."""
    trace = request.headers.get(b"traceparent")
    if trace is None or not TRACEPARENT.fullmatch(trace):
        return None
    return trace


def _last_trace(buffer: bytearray, body: int) -> bytes | None:
    """The trace context at the end of a head of the known form, behind which `body` begins."""
    stop = body - len(HEAD_END)
    if not buffer.startswith(TRACE_LINE, stop - TRACE_BYTES - len(TRACE_LINE)):
        return None
    trace = bytes(buffer[stop - TRACE_BYTES : stop])
    return trace if TRACEPARENT.fullmatch(trace) else None
