"""Traces by OpenTelemetry: one query is one trace, from its client to every function it asked.

The library is imported only where OTEL_EXPORTER_OTLP_ENDPOINT is set; the SDK reads its own
variables (sampler, headers, delays). A gateway samples by its client's trace, or by the sampler
where the client brings none; a function behind it records what the gateway records, and starts no
trace. A query that is not sampled costs the drawing of a trace id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from erless.serve.logs import Log
from erless.serve.settings import Settings

if TYPE_CHECKING:
    from erless.serve.spans import Traces

__all__ = ["open_traces", "trace_id"]


def trace_id(traceparent: bytes | None) -> str:
    """The trace of a valid W3C traceparent, for logs; "" without one.

    >>> trace_id(b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    '0af7651916cd43dd8448eb211c80319c'
    """
    return traceparent[3:35].decode("ascii") if traceparent else ""


def open_traces(settings: Settings, log: Log) -> Traces | None:
    """What records traces; None where no collector is named, or the library is missing."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import NoOpTracer

        from erless.serve.spans import Traces
    except ImportError as error:
        log.warning(
            f"OTEL_EXPORTER_OTLP_ENDPOINT is set and {error.name} is not installed: no traces; "
            "pip install 'erless[otel]'"
        )
        return None
    attributes = {"service.name": f"erless-{settings.kind}", "erless.digest": settings.digest}
    provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
    if isinstance(provider.get_tracer("erless"), NoOpTracer):
        return None  # OTEL_SDK_DISABLED
    return Traces(
        BatchSpanProcessor(OTLPSpanExporter()),
        provider.resource,
        provider.sampler,
        roots=settings.kind in ("gateway", "monolith"),
    )
