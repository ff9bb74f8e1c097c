"""The record that the locustfile keeps: one line per query, readable at any moment.

    # start <seconds since 1970>
    due <TAB> seconds <TAB> failure <TAB> relative error <TAB> flags

Flags are d (degraded), c (cold start) and r (sent again, since its connection ended).

A run that was stopped, or a generator that was killed, leaves what it had written; a last line cut
short is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from erless.observe.queries import QueryOutcomes
from erless.specs.result import PredictionCheck
from erless.storage.atomic import os_errors

__all__ = ["LoadRecord", "read_record"]

FIELDS = 5
EDGES = (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1.0)


@dataclass(frozen=True)
class LoadRecord:
    """What was sent and came back.

    Args:
        started_s: seconds since 1970 of the first query's clock; None: nothing was sent.
        log: the queries.
        took_s: (n,) from when each was due to its answer, or to its failure.
        errors: relative errors of the answers that were checked.
    """

    started_s: float | None
    log: QueryOutcomes
    took_s: NDArray[np.float64]
    errors: NDArray[np.float64]

    def prediction(self, tolerance: float) -> PredictionCheck | None:
        """How far answers were from what was expected; None where none was checked."""
        if not len(self.errors):
            return None
        finite = np.where(np.isfinite(self.errors), self.errors, EDGES[-1] * 10)
        place = np.searchsorted(EDGES, finite)
        counts = np.bincount(np.minimum(place, len(EDGES) - 1), minlength=len(EDGES))
        histogram = [(edge, int(count)) for edge, count in zip(EDGES, counts, strict=True) if count]
        return PredictionCheck(
            checked=len(self.errors),
            wrong=int((self.errors > tolerance).sum()),
            tolerance=tolerance,
            max_relative_error=float(finite.max()),
            histogram=tuple(histogram),
        )


def read_record(path: Path) -> LoadRecord:
    """Read the record at `path`; lines that are cut short are left out.

    Raises:
        ArtifactError: no such file.
    """
    with os_errors(path, "read"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    started: float | None = None
    rows: list[tuple[float, float, str, float, str]] = []
    for line in lines:
        if not line.endswith("\n"):
            break
        if line.startswith("# start "):
            at = float(line.removeprefix("# start "))
            started = at if started is None else min(started, at)
            continue
        fields = line[:-1].split("\t")
        if len(fields) == FIELDS:
            due, took, failure, error, flags = fields
            rows.append((float(due), float(took), failure, float(error), flags))
    due_s = np.array([row[0] for row in rows], np.float64)
    took_s = np.array([row[1] for row in rows], np.float64)
    answered = np.array([not row[2] for row in rows], bool)
    errors = np.array([row[3] for row in rows], np.float64)
    log = QueryOutcomes(
        due_s=due_s,
        latency_s=np.where(answered, took_s, math.nan),
        failure=[row[2] for row in rows],
        degraded=np.array(["d" in row[4] for row in rows], bool),
        cold=np.array(["c" in row[4] for row in rows], bool),
    )
    return LoadRecord(started, log, took_s, errors[~np.isnan(errors)])
