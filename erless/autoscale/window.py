"""The load of one function over the last seconds: an average over any part of a bounded past.

Knative keeps one bucket per second and averages whole buckets (serving:
pkg/autoscaler/aggregation/bucketing.go). Here each value covers the time since the one before it,
so the average is exact however uneven the polls are, and equals Knative's where they are even.
As there, a window that has not filled yet is averaged over the part that has.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["WindowedLoad"]

DIGITS = 6  # Knative's rounding: a sum's last bits must not cost a replica


class WindowedLoad(NamedTuple):
    """Immutable. `points` are (time in s, ∫ value dt since the first), oldest first."""

    points: tuple[tuple[float, float], ...]

    @classmethod
    def begin(cls, now_s: float) -> WindowedLoad:
        """Nothing is known before `now_s`."""
        return cls(((now_s, 0.0),))

    def record(self, now_s: float, value: float, window_s: float) -> WindowedLoad:
        """`value` was the average since the last record; what is older than `window_s` goes.

        A value at, or before, the time of the last record is not recorded: it covers no time.
        """
        points = self.points
        last_s, total = points[-1]
        if now_s <= last_s:
            return self
        oldest, drop = now_s - window_s, 0
        while drop + 1 < len(points) and points[drop + 1][0] <= oldest:
            drop += 1
        return WindowedLoad((*points[drop:], (now_s, total + value * (now_s - last_s))))

    def average(self, window_s: float) -> float:
        """Over the last `window_s` before the newest record.

        >>> WindowedLoad.begin(0).record(2, 10, 60).record(4, 30, 60).average(2)
        30.0
        >>> WindowedLoad.begin(0).record(2, 10, 60).record(4, 30, 60).average(60)
        20.0
        """
        points = self.points
        end_s, end = points[-1]
        start_s = end_s - window_s
        place = len(points) - 1
        while place > 0 and points[place][0] > start_s:
            place -= 1
        at_s, total = points[place]
        if at_s < start_s:  # the window begins within a value: a line between two totals
            next_s, following = points[place + 1]
            total += (following - total) * (start_s - at_s) / (next_s - at_s)
            at_s = start_s
        return round((end - total) / (end_s - at_s), DIGITS) if end_s > at_s else 0.0
