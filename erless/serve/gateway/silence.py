"""When a shard is silent, and how often it is asked again.

A replica that hangs keeps its connections: nothing tells it from one that is slow but the time
that passes. A call is silent after T = max(SILENT_S, SILENT_P99 × the shard's own p99), and is then
asked again on a new connection, which whoever still accepts takes up. T follows the load: calls of
a slow shard raise its p99, so that overload does not multiply them; a budget bounds what is left.
Behind an ingress a new connection may lead to the replica that hangs again, three times in a row:
the call is then asked again at longer intervals, until that replica's readiness has failed.

A function that has not answered for a while may be at zero, and its start takes as long as it
takes; or the gateway is new, and the replica that got its first call hangs. Nothing tells these
apart, so it is asked again after ASLEEP_S, twice that and so on, and the first call is left open:
should the function start, both are answered, and the first answer counts.
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
ASLEEP_S = 2.0  # for one that may be at zero; most functions have started by then
QUICK_RESENDS = 3  # of a call, each after T
MOST_RESENDS = 6  # the others after ASLEEP_S, twice that and so on
RESENT_SHARE = 0.02  # of all calls, in the long run
# in a row: behind Knative's ingress a replica of two that hangs takes half of all calls, new
# connections or not, until its readiness fails (5 s); so many do for 30 calls a second and gateway
RESENDS_SAVED = 200.0
ASLEEP_SAVED = 20.0  # the same, of calls to functions that may be at zero
LOOK_S = 0.02  # at least, between two looks at the calls of a query
LOOK_MOST_S = 0.25


def silent_after_s(endpoint: Endpoint, resent: int = 0) -> float:
    """Seconds without an answer after which a call is silent.

    Args:
        endpoint: that it went to.
        resent: how often it was asked again already.
    """
    if not endpoint.awake:
        return ASLEEP_S * 2.0**resent
    known = endpoint.p99_s < math.inf
    soon_s = max(SILENT_S, SILENT_P99 * endpoint.p99_s) if known else UNKNOWN_S
    if resent < QUICK_RESENDS:
        return soon_s
    return max(soon_s, ASLEEP_S * 2.0 ** (resent - QUICK_RESENDS))


class Resends:
    """The budget of calls that are asked again, and their count.

    Calls to functions that may be at zero have a budget of their own: many may wait for one start.
    """

    __slots__ = ("_asleep", "_awake", "_metrics")

    def __init__(self, metrics: Metrics) -> None:
        self._awake = ErrorBudget(RESENT_SHARE, RESENDS_SAVED)
        self._asleep = ErrorBudget(RESENT_SHARE, ASLEEP_SAVED)
        self._metrics = metrics

    def earn(self, calls: int) -> None:
        """So many calls are made."""
        self._awake.earn(calls)
        self._asleep.earn(calls)

    def spend(self, endpoint: Endpoint) -> bool:
        """Whether one more call to `endpoint` may be asked again; it then counts."""
        budget = self._awake if endpoint.awake else self._asleep
        if not budget.spend():
            return False
        self._metrics.resends += 1
        return True
