"""Which queries are traced, and their spans.

Imports OpenTelemetry's SDK: only `open_traces` imports this module. The SDK's sampler decides, and
its processor exports. The spans in between are our own: one of the SDK's tracer takes ten times as
long, for locks, limits and copies that spans of one thread with a few short values do not need.
"""

from __future__ import annotations

import random
import time
from typing import Any, Literal

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from erless.version import __version__

__all__ = ["QuerySpan", "Traces"]

SAMPLED, RANDOM = 1, 2  # in a traceparent's flags; RANDOM: the trace's id is
TRACE_BITS, SPAN_BITS = 128, 64
FLUSH_MS = 2000  # at the end of a process
SCOPE = InstrumentationScope("erless", __version__)
UNSET = Status(StatusCode.UNSET)


class QuerySpan:
    """A part of a traced query: what it did, and when.

    Args:
        traces: that it is one of.
        name: of the span.
        kind: of the span.
        parent: that it is a part of; None: it is a trace's first.
        trace: the trace's id and flags.
        began_ns: when, since the epoch.
        attributes: that are known already.
    """

    __slots__ = (
        "_attributes",
        "_began_ns",
        "_context",
        "_events",
        "_kind",
        "_name",
        "_over",
        "_parent",
        "_traces",
        "traceparent",
    )

    def __init__(
        self,
        traces: Traces,
        name: str,
        kind: SpanKind,
        parent: SpanContext | None,
        trace: tuple[int, int],
        began_ns: int,
        attributes: dict[str, Any],
    ) -> None:
        self._traces, self._name, self._kind, self._parent = traces, name, kind, parent
        self._began_ns, self._attributes = began_ns, attributes
        self._events: list[Event] = []
        self._over = False
        number, flags = trace
        own = _random_id(SPAN_BITS)
        self._context = SpanContext(number, own, False, TraceFlags(flags))
        self.traceparent = b"00-%032x-%016x-%02x" % (number, own, flags)

    def child(self, name: str, side: Literal["client", "internal"], **attributes: Any) -> QuerySpan:
        """A part of this part."""
        kind = SpanKind.CLIENT if side == "client" else SpanKind.INTERNAL
        trace = self._context.trace_id, int(self._context.trace_flags)
        began_ns = time.time_ns()
        return QuerySpan(self._traces, name, kind, self._context, trace, began_ns, attributes)

    def event(self, name: str, **attributes: Any) -> None:
        """Something happened now."""
        self._events.append(Event(name, attributes, time.time_ns()))

    def end(self, fault: str = "", **attributes: Any) -> None:
        """It is over; `fault`: why it failed. Only the first end counts."""
        if self._over:
            return
        self._over = True
        self._traces.export(
            ReadableSpan(
                self._name,
                self._context,
                self._parent,
                self._traces.resource,
                {**self._attributes, **attributes},
                self._events,
                kind=self._kind,
                status=Status(StatusCode.ERROR, fault) if fault else UNSET,
                start_time=self._began_ns,
                end_time=time.time_ns(),
                instrumentation_scope=SCOPE,
            )
        )


class Traces:
    """Begins the spans of one function's queries.

    Args:
        processor: takes the spans that have ended.
        resource: what they are of.
        sampler: says which queries are recorded.
        roots: whether a query that brings no trace may begin one.
    """

    def __init__(
        self, processor: SpanProcessor, resource: Resource, sampler: Sampler, roots: bool
    ) -> None:
        self._processor, self._sampler, self._roots = processor, sampler, roots
        self.export, self.resource = processor.on_end, _HashedResource(resource)
        # What the SDK's usual samplers do, without their contexts and results: most queries are not
        # sampled, and nothing else is done for them.
        self._by_parent = isinstance(sampler, ParentBased)
        root = getattr(sampler, "_root", sampler)
        self._bound = root.bound if isinstance(root, TraceIdRatioBased) else None

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
            parent, trace, flags = None, _random_id(TRACE_BITS), SAMPLED | RANDOM
        else:
            parent = _remote(traceparent)
            trace, flags = parent.trace_id, parent.trace_flags & (SAMPLED | RANDOM)
        if not self._samples(name, parent, trace):
            return None
        began_ns = time.time_ns() if began_ns is None else began_ns
        return QuerySpan(self, name, SpanKind.SERVER, parent, (trace, flags), began_ns, {})

    def _samples(self, name: str, parent: SpanContext | None, trace: int) -> bool:
        if parent is not None and self._by_parent:
            return True
        if self._bound is not None:
            return trace & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound
        context = Context()
        if parent is not None:
            context = set_span_in_context(NonRecordingSpan(parent), context)
        decided = self._sampler.should_sample(context, trace, name)
        return decided.decision is Decision.RECORD_AND_SAMPLE

    def record(self, name: str, traceparent: bytes, took_s: float, **attributes: Any) -> None:
        """A query with a wanted `traceparent` that took `took_s` seconds, and has just ended."""
        span = self.begin(name, traceparent, time.time_ns() - int(took_s * 1e9))
        if span is not None:
            span.end(**attributes)

    def close(self) -> None:
        """Export what is left, within FLUSH_MS. Blocks."""
        self._processor.force_flush(FLUSH_MS)


class _HashedResource(Resource):
    """A resource that keeps its hash: the exporter asks for each span, and the SDK writes JSON."""

    def __init__(self, resource: Resource) -> None:
        super().__init__(dict(resource.attributes), resource.schema_url)
        self._hash = super().__hash__()

    def __hash__(self) -> int:
        return self._hash


def _random_id(bits: int) -> int:
    """An id, which is not 0."""
    return random.getrandbits(bits) or 1


def _remote(traceparent: bytes) -> SpanContext:
    """The part of a trace that a client names."""
    _, trace, parent, flags = traceparent.split(b"-")
    return SpanContext(int(trace, 16), int(parent, 16), True, TraceFlags(int(flags, 16)))
