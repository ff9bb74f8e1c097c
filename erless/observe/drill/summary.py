"""A drill's faults, kind by kind: the same rows in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from erless.specs.result import DrillResult, FaultResult

__all__ = ["HEADER", "fault_rows", "summary_lines"]

HEADER = (
    "fault",
    "times",
    "found",
    "healed",
    "most",
    "queries",
    "failed",
    "wrong",
    "late",
    "slowest",
)


def fault_rows(drill: DrillResult) -> list[list[str]]:
    """One row per kind of fault: medians of how long it took, and what became of queries."""
    kinds = dict.fromkeys(fault.kind for fault in drill.faults)
    return [_row(kind, [fault for fault in drill.faults if fault.kind == kind]) for kind in kinds]


def _row(kind: str, faults: Sequence[FaultResult]) -> list[str]:
    healed = [fault.healed_s for fault in faults if fault.healed_s is not None]
    found = [fault.found_s for fault in faults if fault.found_s is not None]
    unhealed = len(faults) - len(healed)
    return [
        kind,
        str(len(faults)),
        _seconds(found, 0.5),
        _seconds(healed, 0.5),
        f"{unhealed} not" if unhealed else _seconds(healed, 1.0),
        f"{sum(fault.queries for fault in faults):,}",
        f"{sum(fault.failed for fault in faults):,}",
        f"{sum(fault.wrong for fault in faults):,}",
        f"{sum(fault.late for fault in faults):,}",
        f"{max(fault.slowest_ms for fault in faults):,.0f} ms",
    ]


def _seconds(values: Sequence[float], quantile: float) -> str:
    return f"{np.quantile(values, quantile):.2f} s" if values else "–"


def summary_lines(drill: DrillResult) -> list[str]:
    """The outcome and the table, for a terminal of 80 columns."""
    rows = [list(HEADER), *fault_rows(drill)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEADER))]
    table = [
        " ".join(
            text.ljust(width) if place == 0 else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    skipped = f"; {drill.skipped} faults found no victim" if drill.skipped else ""
    return [
        f"{drill.queries:,} queries under faults: {drill.failed:,} failed, {drill.wrong:,} wrong, "
        f"{drill.late:,} later than {drill.good_ms:g} ms{skipped}",
        f"goodput {drill.goodput:.2%}, {drill.kept:.2%} of the {drill.calm_goodput:.2%} without",
        *table,
    ]
