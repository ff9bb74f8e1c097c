"""A drill on the page of its result: what was broken, how soon it healed, what queries noticed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from erless.observe.drill.summary import HEADER, fault_rows
from erless.pages.charts import Axis, ChartLine, line_chart, number
from erless.pages.page import figure, table
from erless.specs.result import DrillResult, FaultResult

__all__ = ["drill_parts", "drill_tiles", "fault_marks"]

MOST_MARKS = 60
COLOURS = {"kill": 5, "hang": 1, "gateway": 3, "drain": 2, "add": 0}


def drill_tiles(drill: DrillResult | None) -> list[tuple[str, str]]:
    """The outcome in numbers."""
    if drill is None:
        return []
    return [
        (f"{drill.failed:,} / {drill.wrong:,}", "failed / wrong while things broke"),
        (f"{drill.kept:.2%}", f"goodput kept, within {number(drill.good_ms)} ms"),
        (f"{len(drill.faults):,}", f"faults: {drill.churn.replace(',', ', ')}"),
    ]


def fault_marks(drill: DrillResult) -> list[tuple[float, str]]:
    """Where faults came, for a chart over time; the rarest kinds where there are many."""
    by_kind: dict[str, list[FaultResult]] = {}
    for fault in drill.faults:
        by_kind.setdefault(fault.kind, []).append(fault)
    marks: list[tuple[float, str]] = []
    for faults in sorted(by_kind.values(), key=len):
        if len(marks) + len(faults) <= MOST_MARKS:
            marks += [(fault.t_s, f"{fault.kind}: {fault.function}") for fault in faults]
    return sorted(marks)


def drill_parts(drill: DrillResult | None) -> list[str]:
    """The table of faults by kind, and how long each took to heal."""
    if drill is None or not drill.faults:
        return []
    unhealed = [fault for fault in drill.faults if fault.healed_s is None]
    caption = (
        "Found: until the victim counts as ready no more. Healed: until as many are ready as "
        "before. Of a replica that joins: until it is ready, and until its first answer. "
        "Medians, and the most; queries that were under way meanwhile."
    )
    if unhealed:
        names = dict.fromkeys(f"{fault.kind} of {fault.function}" for fault in unhealed)
        caption += f" Not healed within the run: {', '.join(names)}."
    return [
        figure("Faults", caption, table(HEADER, fault_rows(drill), "faults")),
        _healing(drill.faults),
    ]


def _healing(faults: Sequence[FaultResult]) -> str:
    lines = []
    for kind in dict.fromkeys(fault.kind for fault in faults):
        healed = [
            (fault.t_s, fault.healed_s)
            for fault in faults
            if fault.kind == kind and fault.healed_s is not None
        ]
        if healed:
            at_s, took_s = np.array(healed, np.float64).T
            lines.append(ChartLine(kind, at_s, took_s, COLOURS.get(kind, 7)))
    if not lines:
        return ""
    chart = line_chart(lines, Axis("time (s)"), Axis("until healed (s)", log=True))
    return figure("Until healed", "Each fault at the moment when it came.", chart)
