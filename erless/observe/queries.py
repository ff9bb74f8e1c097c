"""From single queries to a timeline: what was due when, how late its answer was, what went wrong.

A query counts in the step in which it was *due*. Latency runs from then, so a client or server that
falls behind cannot hide the wait (no coordinated omission).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.specs.result import Latency

__all__ = ["QueryOutcomes", "latency_of", "timeline_of", "totals_of"]

Floats = NDArray[np.float64]
QUANTILES = (0.50, 0.95, 0.99)


@dataclass(frozen=True)
class QueryOutcomes:
    """Columns over queries.

    Args:
        due_s: (n,) seconds into the run at which each was due.
        latency_s: (n,) from due to answered; NaN where no right answer came.
        failure: n reasons, "" where it was answered.
        degraded, cold: (n,) bool, as the gateway said.
    """

    due_s: Floats
    latency_s: Floats
    failure: Sequence[str]
    degraded: NDArray[np.bool_]
    cold: NDArray[np.bool_]


def latency_of(latency_s: Floats) -> Latency:
    """Mean and quantiles of the answered."""
    good = latency_s[np.isfinite(latency_s)]
    if not len(good):
        return Latency()
    p50, p95, p99 = (float(quantile) * 1e3 for quantile in np.quantile(good, QUANTILES))
    return Latency(mean_ms=float(good.mean()) * 1e3, p50_ms=p50, p95_ms=p95, p99_ms=p99)


def timeline_of(
    log: QueryOutcomes, duration_s: float, step_s: float, sla_ms: float | None
) -> dict[str, NDArray[Any]]:
    """The `TIMELINE` columns in steps of `step_s`. `late` is a share of the step's queries."""
    steps = max(1, int(np.ceil(duration_s / step_s)))
    place = np.clip((log.due_s / step_s).astype(np.int64), 0, steps - 1)
    failed = np.array([bool(failure) for failure in log.failure], bool)
    late = failed | (log.latency_s * 1e3 > (sla_ms or np.inf))
    count = np.bincount(place, minlength=steps).astype(np.float64)
    span = np.full(steps, step_s)
    span[-1] = max(duration_s - step_s * (steps - 1), 1e-9)
    columns: dict[str, NDArray[Any]] = {
        "t_s": np.arange(steps) * step_s,
        "offered_qps": count / span,
        "failed_qps": np.bincount(place, failed, steps) / span,
        "served_qps": np.bincount(place, ~failed, steps) / span,
        "late": np.bincount(place, late, steps) / np.maximum(count, 1),
        "degraded": np.bincount(place, log.degraded, steps).astype(np.int64),
        "cold_starts": np.bincount(place, log.cold, steps).astype(np.int64),
    }
    quantiles = np.full((3, steps), np.nan)
    good = ~failed & np.isfinite(log.latency_s)
    order = np.argsort(place[good], kind="stable")
    edges = np.searchsorted(place[good][order], np.arange(steps + 1))
    values = log.latency_s[good][order] * 1e3
    for step in range(steps):
        if edges[step] < edges[step + 1]:
            quantiles[:, step] = np.quantile(values[edges[step] : edges[step + 1]], QUANTILES)
    columns.update(zip(("p50_ms", "p95_ms", "p99_ms"), quantiles, strict=True))
    return columns


def totals_of(log: QueryOutcomes, sla_ms: float | None) -> dict[str, Any]:
    """`RunResult` fields about queries."""
    failures = Counter(failure for failure in log.failure if failure)
    late = sum(failures.values()) + int((log.latency_s * 1e3 > (sla_ms or np.inf)).sum())
    queries = len(log.due_s)
    return {
        "queries": queries,
        "answered": queries - sum(failures.values()),
        "failures": dict(failures.most_common()),
        "degraded": int(log.degraded.sum()),
        "cold_starts": int(log.cold.sum()),
        "late_share": late / queries if queries else 0.0,
        "latency": latency_of(log.latency_s),
        "sla_p95_ms": sla_ms,
    }
