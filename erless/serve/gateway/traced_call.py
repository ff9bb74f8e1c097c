"""A call to a function, recorded in its query's trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from erless.http.client.endpoint import CallError, Reply
from erless.serve.gateway.fan_out import ShardCall

if TYPE_CHECKING:
    from erless.serve.spans import QuerySpan

__all__ = ["TracedCall"]


class TracedCall(ShardCall):
    """As `ShardCall`, with a span of its own; what happens on the way are its events.

    Args:
        span: begun when the request was made, which carries it as its trace context.
        more: as of `ShardCall`.
    """

    __slots__ = ("_span",)

    def __init__(self, span: QuerySpan, *arguments: Any, **more: Any) -> None:
        self._span = span
        super().__init__(*arguments, **more)

    def _send_second(self) -> None:
        self._span.event("hedge")
        super()._send_second()

    def ask_again(self) -> None:
        """See `ShardCall`."""
        self._span.event("silent: asked again")
        super().ask_again()

    def _answered(self, result: Reply | CallError) -> None:
        asked = self.over
        super()._answered(result)
        if asked or not self.over:
            return
        if any(call.retried for call in self._sent):
            self._span.event("retry: its connection died before an answer")
        if isinstance(result, CallError):
            self._span.end(str(result))
            return
        if result.up_ms < result.took_s * 1e3:
            self._span.event("cold start", seconds=result.took_s - result.up_ms / 1e3)
        fault = f"answered {result.status}" if result.status >= 400 else ""
        self._span.end(fault, **{"http.response.status_code": result.status})

    def _degrade(self) -> bool:
        degraded = super()._degrade()
        if degraded:
            self._span.event("degraded: default vectors in place of its rows")
            self._span.end()
        return degraded

    def abort(self) -> None:
        """See `ShardCall`."""
        super().abort()
        self._span.end("given up")
