"""What every page about a run draws with: lines over its time, and totals of its functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from erless.observe.results import StoredResult
from erless.pages.charts import CLOCK, DECIMAL, Axis, ChartLine, line_chart, milliseconds, size
from erless.specs.result import RunResult

__all__ = [
    "LATENCY",
    "MEMORY",
    "REPLICAS",
    "TRAFFIC",
    "lines_over_time",
    "sla_line",
    "time_unit",
    "total_of_functions",
]

TIME_UNITS = (
    ("s", 1.0, 900.0),
    ("min", 60.0, 4 * 3600.0),
    ("h", 3600.0, 100 * 3600.0),
    ("d", 86400.0, np.inf),
)
TRAFFIC = Axis("traffic (queries/s)")
LATENCY = Axis("latency (ms)", text=milliseconds, log=True)
MEMORY = Axis("memory (bytes)", text=size)
REPLICAS = Axis("replicas (count)")


def lines_over_time(
    lines: Sequence[ChartLine],
    y_axis: Axis,
    *,
    marks: Sequence[tuple[float, str]] = (),
    limit: tuple[float, str] | None = None,
    stacked: bool = False,
) -> str:
    """A chart of lines over time, x in seconds; the axis is in the unit that suits its length."""
    longest = max((float(line.x.max(initial=0.0)) for line in lines), default=0.0)
    name, unit_s = time_unit(longest)
    return line_chart(
        [replace(line, x=line.x / unit_s) for line in lines],
        Axis(f"time ({name})", steps=DECIMAL if name == "s" else CLOCK),
        y_axis,
        marks=[(at / unit_s, label) for at, label in marks],
        limit=limit,
        stacked=stacked,
    )


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit in which to write a time of that length, and how many seconds it has."""
    return next((name, unit_s) for name, unit_s, most in TIME_UNITS if seconds <= most)


def sla_line(document: RunResult) -> tuple[float, str] | None:
    """The latency objective as a horizontal line: its milliseconds and its label."""
    limit = document.sla_p95_ms
    return (limit, f"SLA {milliseconds(limit)}") if limit else None


def total_of_functions(stored: StoredResult, column: str, name: str, colour: int) -> ChartLine:
    """The sum of `column` over all functions at each time of the result."""
    times = np.unique(stored.functions["t_s"])
    place = np.searchsorted(times, stored.functions["t_s"])
    values = stored.functions[column].astype(np.float64)
    sums = np.bincount(place, values, len(times)).astype(np.float64)
    return ChartLine(name, times, sums, colour)
