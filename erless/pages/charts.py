"""Charts as inline SVG: nothing to load, sharp at any size, coloured by the page's variables.

Each chart is drawn twice, for a desktop and for a phone; the page's style sheet shows one. Text
therefore keeps its size whatever the screen. The data ride along for the crosshair.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CLOCK",
    "DECIMAL",
    "Axis",
    "ChartLine",
    "line_chart",
    "milliseconds",
    "number",
    "size",
]

Floats = NDArray[np.float64]
POINTS = 360  # most points of one line: about two per pixel of a phone
WIDTHS = {"wide": (860, 280), "narrow": (360, 260)}
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 28, 46
DECIMAL = (1.0, 2.0, 2.5, 5.0, 10.0)  # distances of ticks, times a power of ten
CLOCK = (1.0, 2.0, 3.0, 6.0, 10.0)  # of minutes and hours
LOG = (1.0, 2.0, 5.0)  # ticks of a decade, where few decades are shown


@dataclass(frozen=True)
class ChartLine:
    """One series; `colour` numbers the page's palette, 0 … 7.

    dash: a reference, drawn as a broad broken line below the others, so that one line upon it
    hides neither.
    """

    name: str
    x: Floats
    y: Floats
    colour: int
    dash: bool = False


@dataclass(frozen=True)
class _Frame:
    """A drawing's size and how values become pixels."""

    width: int
    height: int
    low_x: float
    high_x: float
    low_y: float
    high_y: float
    log_x: bool
    log_y: bool
    x_steps: Sequence[float]

    def x(self, value: Floats | float) -> Floats:
        low, high, at = self.low_x, self.high_x, np.asarray(value, np.float64)
        if self.log_x:
            low, high, at = math.log10(low), math.log10(high), np.log10(np.maximum(at, low))
        return np.asarray(LEFT + (at - low) / max(high - low, 1e-12) * self.inner_width)

    def y(self, value: Floats | float) -> Floats:
        low, high, at = self.low_y, self.high_y, np.asarray(value, np.float64)
        if self.log_y:
            low, high, at = math.log10(low), math.log10(high), np.log10(np.maximum(at, low))
        part = np.clip((at - low) / (high - low), 0, 1)
        return np.asarray(TOP + (1 - part) * (self.height - TOP - BOTTOM))

    @property
    def inner_width(self) -> float:
        return self.width - LEFT - RIGHT


def number(value: float) -> str:
    """A number for people: three significant digits, k and M.

    >>> number(0.01234), number(12.34), number(1234567), number(0)
    ('0.0123', '12.3', '1.23M', '0')
    """
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def milliseconds(value: float) -> str:
    """A duration of `value` ms for people; long ones in seconds.

    >>> milliseconds(3.25), milliseconds(25_606)
    ('3.25 ms', '25.6 s')
    """
    return f"{number(value / 1e3)} s" if value >= 1e4 else f"{number(value)} ms"


def size(count: float) -> str:
    """Bytes for people.

    >>> size(2_600_000_000), size(80_500_000), size(1_500)
    ('2.6 GB', '80.5 MB', '1.5 kB')
    """
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(count) >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count:.0f} B"


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    name: its title, with the unit in parentheses. text: how values are written. log: logarithmic;
    a y axis then begins below the smallest value above 0. steps: distances of ticks to choose
    from, times a power of ten, on an x axis that is not logarithmic.
    """

    name: str
    text: Callable[[float], str] = number
    log: bool = False
    steps: Sequence[float] = DECIMAL


def line_chart(
    lines: Sequence[ChartLine],
    x_axis: Axis,
    y_axis: Axis,
    *,
    limit: tuple[float, str] | None = None,
    marks: Sequence[tuple[float, str]] = (),
    stacked: bool = False,
) -> str:
    """Lines over x, or areas stacked on each other.

    Args:
        lines: series; NaN breaks a line.
        x_axis, y_axis: titles, and how values are written and spaced.
        limit: a horizontal line (value, name) such as the SLA.
        marks: vertical lines (x, name).
        stacked: areas, first series lowest; all series share their x. References are lines.
    """
    thin = [_thin(line) for line in lines if len(line.x)]
    if not thin:
        return '<p class="none">no data</p>'
    drawn = _stack(thin) if stacked else thin
    low_y, high_y = _y_range(drawn, limit[0] if limit else 0.0, y_axis.log)
    low_x, high_x = (float(f([f(line.x) for line in drawn])) for f in (min, max))
    parts = []
    for name, (width, height) in WIDTHS.items():
        frame = _Frame(
            width, height, low_x, high_x, low_y, high_y, x_axis.log, y_axis.log, x_axis.steps
        )
        body = [_axes(frame, x_axis.text, y_axis.text), _titles(frame, x_axis.name, y_axis.name)]
        body += [_mark(frame, at, label) for at, label in marks]
        body += _areas(frame, [line for line in drawn if not line.dash]) if stacked else []
        lines_only = [line for line in drawn if line.dash or not stacked]
        body += [_path(frame, line) for line in sorted(lines_only, key=lambda each: not each.dash)]
        if limit:
            body.append(_limit(frame, *limit))
        ends = (
            f'data-left="{LEFT}" data-width="{frame.inner_width:g}" data-low="{low_x:g}" '
            f'data-high="{high_x:g}" data-log="{int(x_axis.log)}"'
        )
        parts.append(
            f'<svg class="chart {name}" viewBox="0 0 {width} {height}" role="img" '
            f'aria-label="{escape(y_axis.name)} over {escape(x_axis.name)}" {ends}>'
            f'{"".join(body)}<line class="cross" y1="{TOP}" y2="{height - BOTTOM}"/></svg>'
        )
    return (
        f'<div class="plot">{_legend(lines)}{"".join(parts)}<div class="tip" hidden></div>'
        f'<script type="application/json">{_crosshair_data(thin, x_axis, y_axis)}</script></div>'
    )


def _crosshair_data(lines: Sequence[ChartLine], x_axis: Axis, y_axis: Axis) -> str:
    """The values that the crosshair shows, as JSON that may stand in a page."""
    data = {
        "x": x_axis.name,
        "y": y_axis.name,
        "series": [
            {
                "name": line.name,
                "x": _rounded(line.x),
                "y": _rounded(line.y),
                "colour": line.colour,
                "text": [_value_text(y_axis.text, value) for value in line.y],
            }
            for line in lines
        ],
    }
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _thin(line: ChartLine) -> ChartLine:
    """At most `POINTS` points; each stands for its bucket's maximum, so no spike is lost."""
    count = len(line.x)
    if count <= POINTS:
        return line
    edges = np.linspace(0, count, POINTS + 1).astype(np.int64)[:-1]
    safe = np.where(np.isnan(line.y), -np.inf, line.y)
    top = np.maximum.reduceat(safe, edges)
    return ChartLine(
        line.name, line.x[edges], np.where(np.isinf(top), np.nan, top), line.colour, line.dash
    )


def _stack(lines: Sequence[ChartLine]) -> list[ChartLine]:
    """Each upon those before it; references stay as they are."""
    total = np.zeros(len(lines[0].y))
    stacked = []
    for line in lines:
        if line.dash:
            stacked.append(line)
            continue
        total = total + np.nan_to_num(line.y)
        stacked.append(ChartLine(line.name, line.x, total, line.colour))
    return stacked


def _value_text(text: Callable[[float], str], value: float) -> str | None:
    return text(float(value)) if np.isfinite(value) else None


def _rounded(values: Floats) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values]


def _y_range(lines: Sequence[ChartLine], limit: float, log_y: bool) -> tuple[float, float]:
    """Where the y axis begins and ends."""
    values = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
    high = max(float(values.max(initial=0.0)), limit, 1e-12)
    if not log_y:
        step = _step(high, 4)
        return 0.0, math.ceil(high / step - 1e-9) * step
    low = float(values[values > 0].min(initial=high))
    ticks = [
        part * 10.0**power
        for power in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        for part in LOG
    ]
    begin = max(tick for tick in ticks if tick <= low * 0.999)
    return begin, min(tick for tick in ticks if tick >= high * (1 - 1e-9))


def _step(span: float, count: int, steps: Sequence[float] = DECIMAL) -> float:
    """A round distance of ticks, so that about `count` fit into `span`.

    >>> _step(95, 4), _step(600, 8), _step(1.0, 4)
    (25.0, 100.0, 0.25)
    """
    power = 10.0 ** math.floor(math.log10(max(span, 1e-12) / count))
    return next(part * power for part in steps if part * power >= span / count)


def _path(frame: _Frame, line: ChartLine) -> str:
    """The line; a point without neighbours is a dot."""
    pieces, pen, finite = [], "M", np.isfinite(line.y)
    xs, ys = frame.x(line.x), frame.y(np.nan_to_num(line.y))
    for x, y, good in zip(xs, ys, finite, strict=True):
        if good:
            pieces.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L" if good else "M"
    kind = "line dash" if line.dash else "line"
    beside = np.pad(finite, 1)
    alone = finite & ~beside[:-2] & ~beside[2:]
    dots = "".join(
        f'<circle r="3" cx="{x:.1f}" cy="{y:.1f}" style="fill:var(--c{line.colour})"/>'
        for x, y in zip(xs[alone], ys[alone], strict=True)
    )
    drawn = f'<path class="{kind}" style="stroke:var(--c{line.colour})" d="{"".join(pieces)}"/>'
    return drawn + dots


def _areas(frame: _Frame, lines: Sequence[ChartLine]) -> list[str]:
    below, drawn = np.zeros(len(lines[0].y)), []
    for line in lines:
        x = frame.x(line.x)
        upper = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, frame.y(line.y), strict=True))
        lower = " ".join(
            f"{a:.1f},{b:.1f}" for a, b in zip(x[::-1], frame.y(below)[::-1], strict=True)
        )
        drawn.append(
            f'<polygon class="area" style="fill:var(--c{line.colour})" points="{upper} {lower}"/>'
        )
        below = line.y
    return drawn


def _axes(frame: _Frame, x_text: Callable[[float], str], y_text: Callable[[float], str]) -> str:
    parts = []
    for value in _y_ticks(frame):
        y = float(frame.y(value))
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{frame.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{y + 4:.1f}">'
            f"{escape(y_text(value))}</text>"
        )
    for value in _x_ticks(frame):
        x, edge = float(frame.x(value)), frame.width - RIGHT
        anchor = "end" if edge - x < 16 else "middle"
        parts.append(
            f'<text class="tick" text-anchor="{anchor}" x="{x:.1f}" '
            f'y="{frame.height - BOTTOM + 16}">{escape(x_text(value))}</text>'
        )
    return "".join(parts)


def _titles(frame: _Frame, x_name: str, y_name: str) -> str:
    """The x axis' title below its middle, the y axis' above it: no width is lost."""
    middle = LEFT + frame.inner_width / 2
    return (
        f'<text class="tick" text-anchor="middle" x="{middle:.1f}" y="{frame.height - 6}">'
        f'{escape(x_name)}</text><text class="tick" x="4" y="13">{escape(y_name)}</text>'
    )


def _y_ticks(frame: _Frame) -> list[float]:
    if not frame.log_y:
        return np.arange(0, frame.high_y * 1.001, _step(frame.high_y, 4)).tolist()
    low, high = frame.low_y * (1 - 1e-9), frame.high_y * (1 + 1e-9)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    parts = LOG if high / low < 1e3 else LOG[:1]
    ticks = [part * 10.0**power for power in powers for part in parts]
    return [tick for tick in ticks if low <= tick <= high]


def _x_ticks(frame: _Frame) -> list[float]:
    if frame.log_x:
        low, high = math.ceil(math.log10(frame.low_x)), math.floor(math.log10(frame.high_x))
        if high - low < 2:  # few whole powers: their parts as well
            parts = [part * 10.0**power for power in range(low - 1, high + 1) for part in LOG]
            return [tick for tick in parts if frame.low_x <= tick <= frame.high_x]
        every = 1 if frame.width > 500 or high - low < 5 else 2
        return [10.0**power for power in range(low, high + 1, every)]
    span = frame.high_x - frame.low_x
    step = _step(span, 4 if frame.width < 500 else 8, frame.x_steps)
    first = math.ceil(frame.low_x / step - 1e-9)
    last = math.floor(frame.high_x / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _limit(frame: _Frame, value: float, name: str) -> str:
    y = float(frame.y(value))
    return (
        f'<line class="limit" x1="{LEFT}" x2="{frame.width - RIGHT}" y1="{y:.1f}" '
        f'y2="{y:.1f}"/><text class="limit-name" text-anchor="end" x="{frame.width - RIGHT - 2}" '
        f'y="{y - 4:.1f}">{escape(name)}</text>'
    )


def _mark(frame: _Frame, at: float, name: str) -> str:
    x = float(frame.x(at))
    return (
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" '
        f'y2="{frame.height - BOTTOM}"><title>{escape(name)}</title></line>'
    )


def _legend(lines: Sequence[ChartLine]) -> str:
    if len(lines) < 2:
        return ""
    keys = "".join(
        f'<li><i class="{"dash" if line.dash else ""}" style="background:var(--c{line.colour})">'
        f"</i>{escape(line.name)}</li>"
        for line in lines
    )
    return f'<ul class="legend">{keys}</ul>'
