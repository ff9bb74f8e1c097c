"""Horizontal bars of stacked parts, as plain HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from erless.pages.charts import number

__all__ = ["Bar", "bar_chart"]


@dataclass(frozen=True)
class Bar:
    """One bar: parts are (name, value, colour)."""

    label: str
    parts: tuple[tuple[str, float, int], ...]

    @property
    def total(self) -> float:
        """Length of the bar."""
        return sum(value for _, value, _ in self.parts)


def bar_chart(
    bars: Sequence[Bar], *, text: Callable[[float], str] = number, legend: bool = True
) -> str:
    """Horizontal bars of stacked parts, longest full width; plain HTML, so it wraps by itself.

    `legend`: of the parts' names; not needed where each bar has one part of its own name.
    """
    longest = max([bar.total for bar in bars] or [0.0]) or 1.0
    named: dict[str, int] = {}
    rows = []
    for bar in bars:
        pieces = []
        for name, value, colour in bar.parts:
            named.setdefault(name, colour)
            share = 100 * value / longest
            pieces.append(
                f'<i style="width:{share:.2f}%;background:var(--c{colour})" '
                f'title="{escape(name)}: {escape(text(value))}"></i>'
            )
        rows.append(
            f'<div class="bar"><span>{escape(bar.label)}</span><b>{"".join(pieces)}</b>'
            f"<em>{escape(text(bar.total))}</em></div>"
        )
    keys = "".join(
        f'<li><i style="background:var(--c{colour})"></i>{escape(name)}</li>'
        for name, colour in named.items()
    )
    listed = f'<ul class="legend">{keys}</ul>' if legend and len(named) > 1 else ""
    return f'<div class="bars">{listed}{"".join(rows)}</div>'
