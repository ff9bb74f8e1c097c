"""Trace ids that are drawn before a query has a span: most are not sampled, and get none.

Imports OpenTelemetry's SDK: only what records traces imports this module.
"""

from __future__ import annotations

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

__all__ = ["DrawnTraceIds"]


class DrawnTraceIds(RandomIdGenerator):
    """Random ids; the next new trace gets the id that was drawn last, which a sampler has seen."""

    def __init__(self) -> None:
        self._drawn = 0

    def draw(self) -> int:
        """The id of the next new trace, if there will be one."""
        self._drawn = super().generate_trace_id()
        return self._drawn

    def generate_trace_id(self) -> int:
        """The id that was drawn; a random one where none was."""
        drawn, self._drawn = self._drawn, 0
        return drawn or super().generate_trace_id()
