"""When a shard is silent, and how often it is asked again.

A replica that hangs keeps its connections: nothing tells it from one that is slow but the time
that passes. A call is silent after T = max(SILENT_S, SILENT_P99 × the shard's own p99), and is then
asked again on a new connection, which whoever still accepts takes up. T follows the load: calls of
a slow shard raise its p99, so that overload does not multiply them; a budget bounds what is left.
"""

from __future__ import annotations

import math

from erless.http.client.endpoint import Endpoint
from erless.serve.gateway.error_budget import ErrorBudget
from erless.serve.metrics import Metrics

__all__ = ["LOOK_MOST_S", "LOOK_S", "MOST_RESENDS", "SILENT_S", "Resends", "silent_after_s"]

SILENT_S = 0.05
SILENT_P99 = 4.0
UNKNOWN_S = 0.3  # while a shard's p99 is not known
MOST_RESENDS = 3  # of a call
RESENT_SHARE = 0.02  # of all calls, in the long run
# in a row: behind Knative's ingress a replica of two that hangs takes half of all calls, new
# connections or not, until its readiness fails (5 s); so many do for 30 calls a second and gateway
RESENDS_SAVED = 200.0
LOOK_S = 0.02  # at least, between two looks at the calls of a query
LOOK_MOST_S = 0.25


def silent_after_s(endpoint: Endpoint) -> float:
    """Seconds without an answer after which a call to `endpoint` is silent.

    Infinite for a function that may be at zero: its start takes as long as it takes.
    """
    if not endpoint.awake:
        return math.inf
    return max(SILENT_S, SILENT_P99 * endpoint.p99_s) if endpoint.p99_s < math.inf else UNKNOWN_S


class Resends:
    """The budget of calls that are asked again, and their count."""

    __slots__ = ("_budget", "_metrics")

    def __init__(self, metrics: Metrics) -> None:
        self._budget, self._metrics = ErrorBudget(RESENT_SHARE, RESENDS_SAVED), metrics

    def earn(self, calls: int) -> None:
        """So many calls are made."""
        self._budget.earn(calls)

    def spend(self) -> bool:
        """Whether one more call may be asked again; it then counts."""
        if not self._budget.spend():
            return False
        self._metrics.resends += 1
        return True
