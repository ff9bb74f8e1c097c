"""The HTTP API that all functions share: routes, readiness, errors, metrics.

What a function does itself is a `Served`: decoded tensors in, tensors out, at once or later.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

from erless.dlrm._kernels import FastPath
from erless.dlrm.bfloat16 import all_finite
from erless.errors import DiskBusyError, DiskReadError, QueryError, ServeError
from erless.http.budget import MemoryBudget
from erless.http.messages import DEADLINE, JSON_LENGTH, UP, Request, Response, body_offset, problem
from erless.serve.logs import Log
from erless.serve.metrics import Metrics
from erless.serve.protocol.fast_lane import LONGEST_MS, secret_prefix
from erless.serve.protocol.infer import BINARY_TYPE, InferRequest
from erless.serve.protocol.served import InferAnswer, InferCall, Served
from erless.serve.protocol.versions import OpenVersions, VersionError
from erless.serve.protocol.wire import HTTP, RETRY_AFTER, Failure, Wire
from erless.serve.secrets import SECRET, open_secret
from erless.serve.settings import Settings
from erless.serve.tokens import open_tokens
from erless.serve.traces import QuerySpan, Traces, trace_id
from erless.version import __version__

__all__ = ["App"]

State = Literal["loading", "ready", "draining", "failed"]
UP_FOR_S = 120.0  # answers carry the age of a function for so long
METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
READ = (b"GET", b"HEAD")
LEFT = 499  # of a client that left before it was answered
GUARDED = {"sparse", "dense"}
TRACE_LINE = b"\r\ntraceparent: "
TRACE_WITHIN = 1024  # bytes from a request's beginning
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
        self.state: State = "loading"
        self.served: Served | None = None
        self.version = self._reason = ""
        self._ready_at = math.inf
        self._served_at: dict[bytes, Served] = {}  # the paths of infer calls
        self._fast_paths: tuple[tuple[bytes, FastPath], ...] = ()  # with a request's beginning
        self._versions: OpenVersions | None = None
        self._tokens = open_tokens(settings, clock)
        # A gateway shows the secret; sparse and dense functions want to see it.
        self._secret = open_secret(settings, clock) if settings.kind in GUARDED else None
        self._openapi: bytes = b""
        self._reads: dict[bytes, Callable[[], Response]] = {
            b"": lambda: _document(self._front_page()),
            b"/v2": lambda: _document(self._server()),
            b"/v2/health/live": self._liveness,
            b"/v2/health/ready": self._readiness,
        }
        self._closed_reads: dict[bytes, Callable[[], Response]] = {
            b"/metrics": lambda: Response(200, (self.metrics.render(),), METRICS_TYPE),
            b"/openapi.json": lambda: Response(200, (self._describe_api(),)),
        }

    def _front_page(self) -> dict[str, Any]:
        """What answers here, for who opens the URL in a browser."""
        return {
            "name": "erless",
            "function": self.settings.kind,
            "state": self.state,
            "protocol": "Open Inference Protocol v2",
            "paths": ["/v2", "/v2/health/ready", *map(bytes.decode, self._closed_reads)],
        }

    def get_ready(self, served: Served) -> None:
        """Serve `served`: everything is loaded and verified."""
        self.served, self.state, self._ready_at = served, "ready", self._clock()
        self.version = served.digest[:12]
        self.metrics.info["digest"] = served.digest
        if served.open_version is not None:
            self._versions = OpenVersions(served.open_version, self._clock, self.settings.behind_s)
        self._serve_versions(served)

    def _serve_versions(self, base: Served) -> None:
        """Know the paths of what is served, and of all its open versions."""
        versions = self._versions.served if self._versions else ()
        everything = (*versions, base)
        self._served_at = {_infer_path(served.version_path): served for served in everything}
        self._served_at[_infer_path(f"{base.model}/versions/{self.version}")] = base
        self._fast_paths = tuple(
            (secret_prefix(served.version_path.encode()), served.fast_path)
            for served in everything
            if served.fast_path is not None
        )

    def fail(self, reason: str) -> None:
        """Refuse all queries from now on, with `reason`."""
        self.state, self._reason = "failed", reason

    def close(self) -> bool:
        """Let go of all versions; whether no thread is still opening one."""
        return self._versions is None or self._versions.close()

    def begin_drain(self) -> None:
        """Answer probes of readiness with "draining" from now on."""
        self.state = "draining"

    def __call__(self, request: Request) -> Response | Awaitable[Response]:
        """Answer `request`."""
        served = self._served_at.get(request.path)
        if served is not None and request.method == b"POST":
            return self.infer(request, served, HTTP)
        try:
            return self._route(request)
        except ServeError as error:
            return HTTP.refuse(self._failure(error))

    def served_at(self, path: bytes) -> Served | None:
        """What answers infer calls at `path`; None: whatever `__call__` says."""
        return self._served_at.get(path)

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
            call = InferCall(inputs, request.arrived, deadline, asked.traceparent, span)
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
        if not self._fast_paths or self._tokens or self.log.debugging or self.state == "failed":
            return None
        if self._traces is not None and self._traced(buffer, begin, end):
            return None
        began = self._clock()
        up = began - self._ready_at
        up_ms = int(up * 1e3) if up < UP_FOR_S else -1
        answered = None
        for prefix, fast_path in self._fast_paths:
            if self._secret is None or self._shows_secret(buffer, begin, began, prefix):
                answered = fast_path.answer(buffer, begin, end, 0, date, up_ms)
            if answered is not None:
                break
        if answered is None:
            return None
        answer, next_begin, gathers, received, json_bytes, partial_bytes = answered
        self.metrics.answered_at_once(began, gathers, received, json_bytes + partial_bytes)
        return answer, next_begin

    def _traced(self, buffer: bytearray, begin: int, end: int) -> bool:
        """Whether a request of the known form may have to be recorded."""
        place = buffer.find(TRACE_LINE, begin, min(end, begin + TRACE_WITHIN))
        if place < 0 or self._traces is None:
            return False
        found = TRACEPARENT.match(buffer, place + len(TRACE_LINE))
        return found is not None and self._traces.wants(found[0])

    def _shows_secret(self, buffer: bytearray, begin: int, now: float, prefix: bytes) -> bool:
        """Whether a request of the known form begins with our secret.

        Compared in constant time, before the kernels compare the whole head, which they do not.
        """
        if self._secret is None or not buffer.startswith(prefix, begin):
            return False
        self._secret.refresh(now)
        begin += len(prefix)
        secret = self._secret.shown
        return hmac.compare_digest(buffer[begin : begin + len(secret)], secret)

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
        up = asked.began + took - self._ready_at
        if up < UP_FOR_S:
            response.headers = (*response.headers, (UP, b"%d" % max(0, int(up * 1e3))))
        if asked.span is not None:
            asked.span.end(
                asked.fault or ("the client left" if status == LEFT else ""),
                **{"http.response.status_code": status},
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
        self._authorize(request)
        self._loaded()
        if self.metrics.in_flight > self.settings.max_in_flight:
            raise ServeError(
                f"{self.settings.max_in_flight} queries are in flight already", 503, "overload"
            )

    def _authorize(self, request: Request) -> None:
        """Raise ServeError where the request lacks the secret or token that is needed."""
        if request.private:
            return
        if self._secret is not None and not self._secret.accepts(request.headers.get(SECRET, b"")):
            raise ServeError("the deployment's secret is needed", 401, "query")
        if self._tokens is None:
            return
        if not self._tokens.accepts(request.headers.get(b"authorization", b"")):
            raise ServeError("a bearer token is needed", 401, "query")

    def _loaded(self) -> Served:
        if self.served is None:
            raise ServeError("not ready: still loading", 503, "overload")
        if self.state == "failed":
            raise ServeError(self._reason, 503, "rows")
        return self.served

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
        state = error.state if isinstance(error, VersionError) else self.state
        return Failure(status, kind, message, state if status == 503 and state != "ready" else "")

    # -- everything else

    def _route(self, request: Request) -> Response | Awaitable[Response]:
        path = request.path.rstrip(b"/")
        read = self._reads.get(path) or self._closed_reads.get(path)
        if read is not None:
            if path in self._closed_reads and self._tokens and not self.settings.open_reads:
                self._authorize(request)
            return read() if request.method in READ else _not_allowed(b"GET, HEAD")
        parts = [unquote(part) for part in path.decode("latin-1").split("/")]
        if parts[:3] == ["", "v2", "models"] and len(parts) > 3:
            return self._model(request, parts[3], parts[4:])
        return _not_found(request)

    def _model(
        self, request: Request, model: str, remainder: list[str]
    ) -> Response | Awaitable[Response]:
        self._authorize(request)
        served = self._loaded()
        if model != served.model:
            raise ServeError(
                f"there is no model {_cut(model)}: this serves {served.model}", 404, "query"
            )
        if remainder[:1] == ["versions"]:
            if remainder[1:2] != [self.version]:
                served = self._version(served, remainder[1] if len(remainder) > 1 else "")
            remainder = remainder[2:]
        if remainder == ["infer"]:
            if request.method != b"POST":
                return _not_allowed(b"POST")
            if self._served_at.get(request.path) is served:  # a version that was just opened
                return self.infer(request, served, HTTP)
            return self._misspelt(served)
        if remainder not in ([], ["ready"]):
            return _not_found(request)
        if request.method not in READ:
            return _not_allowed(b"GET, HEAD")
        return self._readiness() if remainder else _document(self._metadata(served))

    def _version(self, base: Served, digest: str) -> Served:
        """The version with `digest`. Raises ServeError where there is none, or not yet."""
        if self._versions is None or not self._versions.is_digest(digest):
            raise ServeError(f"there is no such version: this serves {self.version}", 404, "query")
        known = self._versions.served
        served = self._versions.get(digest)
        if self._versions.served != known:
            self._serve_versions(base)
        return served

    def _misspelt(self, served: Served) -> Response:
        """404 for another spelling of the path: the hot path knows only the plain one."""
        return problem(404, f"write the path as /v2/models/{served.model}/infer")

    @property
    def _behind(self) -> str:
        """Why another function has to take the place of this one, which goes on answering."""
        return self._versions.behind if self._versions else ""

    def _liveness(self) -> Response:
        if self._behind:
            return problem(503, f"to be replaced: {self._behind}")
        return _document({"live": True})

    def _readiness(self) -> Response:
        reason = self._reason or self._behind or self.state
        if self.state == "ready" and not self._behind:
            return _document({"ready": True})
        return problem(503, f"not ready: {reason}", headers=RETRY_AFTER, state=self.state)

    def _server(self) -> dict[str, Any]:
        return {
            "name": f"erless-{self.settings.kind}",
            "version": __version__,
            "extensions": ["binary_tensor_data"],
            "models": [self.served.model] if self.served else [],
        }

    def _metadata(self, served: Served) -> dict[str, Any]:
        return {
            "name": served.model,
            "versions": [served.digest[:12]],
            "platform": f"erless-{self.settings.kind}",
            "inputs": [tensor.describe() for tensor in served.inputs if not tensor.optional],
            "outputs": [tensor.describe() for tensor in served.outputs],
            "parameters": {"digest": served.digest, **served.facts},
        }

    def _describe_api(self) -> bytes:
        if not self._openapi or self.served is None:
            from erless.serve.protocol.openapi import openapi

            self._openapi = openapi(self.settings, self.served)
        return self._openapi


def _trace(request: Request) -> bytes | None:
    """The request's trace context; None where it has not W3C's form, as the standard says."""
    trace = request.headers.get(b"traceparent")
    if trace is None or not TRACEPARENT.fullmatch(trace):
        return None
    return trace


def _infer_path(version_path: str) -> bytes:
    return f"/v2/models/{version_path}/infer".encode()


def _document(document: dict[str, Any]) -> Response:
    return Response(200, (json.dumps(document).encode(),))


def _not_found(request: Request) -> Response:
    return problem(404, f"there is nothing at {_cut(request.path.decode('latin-1'))}")


def _not_allowed(methods: bytes) -> Response:
    return problem(405, f"use {methods.decode()}", headers=((b"allow", methods),))


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "…"
