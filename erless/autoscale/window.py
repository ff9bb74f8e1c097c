"""The load of one function over the last seconds: an average over any part of a bounded past.

Knative keeps one bucket per second and averages whole buckets (serving:
pkg/autoscaler/aggregation/bucketing.go). Here each value covers the time since the one before it,
so the average is exact however uneven the polls are, and equals Knative's where they are even.
As there:

- a window that has not filled yet is averaged over the part that has;
- time without data is left out while it lasts, and counts as zero once there is data again;
- but after a whole window without data the average begins anew, with the first value. A burst onto
  a function that idled at zero is seen whole.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["WindowedLoad"]

DIGITS = 6  # Knative's rounding: a sum's last bits must not cost a replica
BUCKET_S = 1.0  # Knative's granularity: the first bucket of a value is the one that ends a gap


class RunningTotal(NamedTuple):
    """∫ value dt since the first record, up to `at_s`; a gap of `gap_s` without data ends there."""

    at_s: float
    total: float
    gap_s: float = 0.0

    def begins_anew(self, window_s: float) -> bool:
        """Whether the gap before it is one that a window does not look over."""
        return self.gap_s > 0 and self.gap_s + BUCKET_S >= window_s


class WindowedLoad(NamedTuple):
    """Immutable. `points`, oldest first: data ends with the last. Nobody was there to ask since.

    The last poll was at `polled_s`.
    """

    points: tuple[RunningTotal, ...]
    polled_s: float

    @classmethod
    def begin(cls, now_s: float) -> WindowedLoad:
        """Nothing is known before `now_s`."""
        return cls((RunningTotal(now_s, 0.0),), now_s)

    def record(self, now_s: float, value: float, window_s: float) -> WindowedLoad:
        """Add `value`, the average since the last poll; drop values older than `window_s`.

        A value at, or before, the time of the last poll is not recorded: it covers no time.
        """
        if now_s <= self.polled_s:
            return self
        points, since_s = self.points, self.polled_s
        last = points[-1]
        if since_s > last.at_s:
            after = RunningTotal(since_s, last.total, since_s - last.at_s)
            anew = len(points) == 1 or after.begins_anew(window_s)
            points = (after,) if anew else (*points, after)
        oldest, drop = now_s - window_s, 0
        while drop + 1 < len(points) and points[drop + 1].at_s <= oldest:
            drop += 1
        newest = RunningTotal(now_s, last.total + value * (now_s - since_s))
        return WindowedLoad((*points[drop:], newest), now_s)

    def record_nothing(self, now_s: float) -> WindowedLoad:
        """There was nobody to ask since the last poll: no replica, and no call that waited."""
        return self._replace(polled_s=max(now_s, self.polled_s))

    def average(self, window_s: float) -> float:
        """Over the data of the last `window_s` before the newest poll; 0 where there is none.

        >>> WindowedLoad.begin(0).record(2, 10, 60).record(4, 30, 60).average(2)
        30.0
        >>> WindowedLoad.begin(0).record(2, 10, 60).record(4, 30, 60).average(60)
        20.0
        >>> WindowedLoad.begin(0).record(2, 9, 60).record_nothing(80).record(82, 30, 60).average(60)
        30.0
        """
        points = self.points
        end_s, end, _ = points[-1]
        start_s = self.polled_s - window_s
        if end_s <= start_s:
            return 0.0
        place = len(points) - 1
        while place > 0 and points[place].at_s > start_s:
            if points[place].begins_anew(window_s):
                break
            place -= 1
        at_s, total, _ = points[place]
        if at_s < start_s:  # the window begins within a value: a line between two totals
            next_s, following, _ = points[place + 1]
            total += (following - total) * (start_s - at_s) / (next_s - at_s)
            at_s = start_s
        return round((end - total) / (end_s - at_s), DIGITS) if end_s > at_s else 0.0
