"""What became of every query of a drill: before the faults, and during each of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from erless.observe.drill.injector import Injected
from erless.observe.loadtest.record import LoadRecord
from erless.observe.queries import QueryOutcomes
from erless.observe.results import Event
from erless.specs.result import DrillResult, FaultResult

__all__ = ["WRONG", "drill_result", "fault_events"]

WRONG = "wrong prediction"  # the locustfile's reason for an answer beyond the tolerance


def _good(log: QueryOutcomes, good_s: float) -> NDArray[np.bool_]:
    """Answered rightly, and soon enough."""
    failed = np.array([bool(failure) for failure in log.failure], bool)
    return ~failed & (np.nan_to_num(log.latency_s, nan=np.inf) <= good_s)


def _share(good: NDArray[np.bool_]) -> float:
    return float(good.mean()) if len(good) else 0.0


def drill_result(
    record: LoadRecord,
    injected: Sequence[Injected],
    *,
    churn: str,
    calm_s: float,
    good_ms: float,
    skipped: int,
) -> DrillResult:
    """Goodput of the calm part and of the rest, and each fault with the queries that it met.

    A query meets the last fault that came before its answer, where that had not healed when the
    query was due.

    Args:
        record: of all queries, with when the first was due.
        injected: the faults.
        churn: as it was asked for.
        calm_s: how long nothing was broken.
        good_ms: an answer that takes longer is late.
        skipped: faults that found no victim.
    """
    log, start_s = record.log, record.started_s or 0.0
    good = _good(log, good_ms / 1e3)
    calm = log.due_s < calm_s
    wrong = np.array([failure == WRONG for failure in log.failure], bool)
    failed = np.array([bool(failure) for failure in log.failure], bool) & ~wrong
    took_s = record.took_s
    met = _met(log.due_s, log.due_s + took_s, injected, start_s)
    faults = []
    for number, fault in enumerate(injected):
        here = met == number
        faults.append(
            FaultResult(
                t_s=round(fault.at_s - start_s, 3),
                kind=fault.kind.value,
                function=fault.function,
                replica=fault.replica,
                found_s=_rounded(fault.found_s),
                healed_s=_rounded(fault.healed_s),
                queries=int(here.sum()),
                failed=int((here & failed).sum()),
                wrong=int((here & wrong).sum()),
                late=int((here & ~good & ~failed & ~wrong).sum()),
                slowest_ms=round(float(took_s[here].max(initial=0.0)) * 1e3, 1),
            )
        )
    return DrillResult(
        churn=churn,
        calm_s=calm_s,
        good_ms=good_ms,
        calm_goodput=_share(good[calm]),
        goodput=_share(good[~calm]),
        queries=int((~calm).sum()),
        failed=int((failed & ~calm).sum()),
        wrong=int((wrong & ~calm).sum()),
        late=int((~good & ~failed & ~wrong & ~calm).sum()),
        skipped=skipped,
        faults=tuple(faults),
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _met(
    due_s: NDArray[np.float64],
    done_s: NDArray[np.float64],
    injected: Sequence[Injected],
    start_s: float,
) -> NDArray[np.int64]:
    """The number of the fault that each query met; -1: none."""
    began = np.array([fault.at_s - start_s for fault in injected], np.float64)
    ended = began + np.array(
        [np.inf if fault.healed_s is None else fault.healed_s for fault in injected], np.float64
    )
    last = np.searchsorted(began, done_s, side="right") - 1
    met = (last >= 0) & (due_s <= ended[np.maximum(last, 0)]) if len(began) else last >= 0
    return np.where(met, last, -1)


def fault_events(drill: DrillResult) -> list[Event]:
    """Each fault as an event of the result."""
    return [
        Event(fault.t_s, f"drill: {fault.kind}", fault.function, fault.replica)
        for fault in drill.faults
    ]
