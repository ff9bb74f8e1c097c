"""Traces by OpenTelemetry: one query is one trace, from its client to every function it asked.

The library is imported only where OTEL_EXPORTER_OTLP_ENDPOINT is set; the SDK reads its own
variables (sampler, headers, delays). A gateway samples by its client's trace, or by the sampler
where the client brings none; a function behind it records what the gateway records, and starts no
trace. The sampler is asked before anything is made for a query: what it does not take costs the
drawing of a trace id.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from erless.serve.logs import Log
from erless.serve.settings import Settings
from erless.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

    from erless.serve.trace_ids import DrawnTraceIds

__all__ = ["QuerySpan", "Traces", "open_traces", "trace_id"]

SAMPLED = 1  # in a traceparent's flags
FLUSH_MS = 2000  # at the end of a process
Side = Literal["server", "client", "internal"]


def trace_id(traceparent: bytes | None) -> str:
    """The trace of a valid W3C traceparent, for logs; "" without one.

    >>> trace_id(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    '0af7651916cd43dd8448eb211c80319c'
    """
    return traceparent[3:35].decode("ascii") if traceparent else ""


class QuerySpan:
    """A part of a traced query: what it did, and when.

    Args:
        tracer: makes its children.
        span: OpenTelemetry's, which records.
    """

    __slots__ = ("_span", "_tracer", "traceparent")

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer, self._span = tracer, span
        context = span.get_span_context()
        self.traceparent = b"00-%032x-%016x-%02x" % (
            context.trace_id,
            context.span_id,
            int(context.trace_flags),
        )

    def child(self, name: str, side: Side, **attributes: Any) -> QuerySpan:
        """A part of this part."""
        from opentelemetry.trace import set_span_in_context

        span = _start(self._tracer, name, side, set_span_in_context(self._span), attributes)
        return QuerySpan(self._tracer, span)

    def event(self, name: str, **attributes: Any) -> None:
        """Something happened now."""
        self._span.add_event(name, attributes)

    def end(self, fault: str = "", **attributes: Any) -> None:
        """It is over; `fault`: why it failed. Only the first end counts."""
        if not self._span.is_recording():
            return
        from opentelemetry.trace import StatusCode

        self._span.set_attributes(attributes)
        if fault:
            self._span.set_status(StatusCode.ERROR, fault)
        self._span.end()


class Traces:
    """Begins the spans of one function's queries.

    Args:
        provider: of the SDK.
        ids: that the provider gives to new traces.
        roots: whether a query that brings no trace may begin one.
    """

    def __init__(self, provider: TracerProvider, ids: DrawnTraceIds, roots: bool) -> None:
        from opentelemetry.sdk.trace.sampling import Decision

        self._drop = Decision.DROP
        self._provider, self._ids, self._roots = provider, ids, roots
        self._sampler, self._no_parent = provider.sampler, _context(None)
        self._tracer = provider.get_tracer("erless", __version__)

    def wants(self, traceparent: bytes | None) -> bool:
        """Whether a query that brings `traceparent` (valid, or None) may be recorded."""
        if traceparent is None:
            return self._roots
        return bool(int(traceparent[-2:], 16) & SAMPLED)

    def begin(
        self, name: str, traceparent: bytes | None, began_ns: int | None = None
    ) -> QuerySpan | None:
        """The span of a query that has come; None where it is not sampled.

        Args:
            name: of the span.
            traceparent: as of `wants`.
            began_ns: when it came, since the epoch; None: now.
        """
        if not self.wants(traceparent):
            return None
        if traceparent is None:
            decided = self._sampler.should_sample(self._no_parent, self._ids.draw(), name)
            if decided.decision is self._drop:
                return None
        context = self._no_parent if traceparent is None else _context(traceparent)
        span = _start(self._tracer, name, "server", context, {}, began_ns)
        return QuerySpan(self._tracer, span) if span.is_recording() else None

    def record(self, name: str, traceparent: bytes, took_s: float, **attributes: Any) -> None:
        """A query with a wanted `traceparent` that took `took_s` seconds, and has just ended."""
        span = self.begin(name, traceparent, time.time_ns() - int(took_s * 1e9))
        if span is not None:
            span.end(**attributes)

    def close(self) -> None:
        """Export what is left, within FLUSH_MS. Blocks."""
        self._provider.force_flush(FLUSH_MS)


def _start(
    tracer: Tracer,
    name: str,
    side: Side,
    context: Any,
    attributes: Mapping[str, Any],
    began_ns: int | None = None,
) -> Span:
    from opentelemetry.trace import SpanKind

    kind = SpanKind[side.upper()]
    return tracer.start_span(name, context, kind, attributes, start_time=began_ns)


def _context(traceparent: bytes | None) -> Any:
    """The remote parent that a client names."""
    from opentelemetry.context import Context
    from opentelemetry.trace import (
        NonRecordingSpan,
        SpanContext,
        TraceFlags,
        set_span_in_context,
    )

    if traceparent is None:
        return Context()
    _, trace, parent, flags = traceparent.split(b"-")
    remote = SpanContext(int(trace, 16), int(parent, 16), True, TraceFlags(int(flags, 16)))
    return set_span_in_context(NonRecordingSpan(remote), Context())


def open_traces(settings: Settings, log: Log) -> Traces | None:
    """What records traces; None where no collector is named, or the library is missing."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from erless.serve.trace_ids import DrawnTraceIds
    except ImportError as error:
        log.warning(
            f"OTEL_EXPORTER_OTLP_ENDPOINT is set and {error.name} is not installed: no traces; "
            "pip install 'erless[otel]'"
        )
        return None
    attributes = {"service.name": f"erless-{settings.kind}", "erless.digest": settings.digest}
    ids = DrawnTraceIds()
    provider = TracerProvider(
        resource=Resource.create(attributes), id_generator=ids, shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(provider, ids, roots=settings.kind in ("gateway", "monolith"))
