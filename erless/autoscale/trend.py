"""The trend of a function's load: a least-squares line through its last seconds, and its noise."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

__all__ = ["LEAST_POINTS", "LoadPoint", "Trend", "fit"]

LEAST_POINTS = 4  # fewer say nothing about a slope


class LoadPoint(NamedTuple):
    """Requests per second, averaged since the point before."""

    now_s: float
    rate: float


class Trend(NamedTuple):
    """A line over time. Rates in requests/s.

    level: where it is at `at_s`. slope: requests/s per second. noise: standard deviation of one
    point around it, at least what the counting of random arrivals alone brings.
    """

    at_s: float
    level: float
    slope: float
    noise: float

    def at(self, now_s: float) -> float:
        """The line's rate, at least 0."""
        return max(0.0, self.level + self.slope * (now_s - self.at_s))

    def highest(self, now_s: float, horizon_s: float) -> float:
        """The line's largest value from `now_s` until `horizon_s` later."""
        return max(self.at(now_s), self.at(now_s + horizon_s))


def fit(points: tuple[LoadPoint, ...]) -> Trend | None:
    """The line through `points`, in ascending order; None where they are too few.

    >>> fit(tuple(LoadPoint(t, 10.0 + t) for t in range(8)))
    Trend(at_s=7, level=17.0, slope=1.0, noise=4.123105625617661)
    """
    count = len(points)
    if count < LEAST_POINTS:
        return None
    at_s = points[-1].now_s
    mean_t = sum(point.now_s - at_s for point in points) / count
    mean = sum(point.rate for point in points) / count
    spread = sum((point.now_s - at_s - mean_t) ** 2 for point in points)
    joint = sum((point.now_s - at_s - mean_t) * point.rate for point in points)
    slope = joint / spread
    level = max(0.0, mean - slope * mean_t)
    rest = sum((point.rate - mean - slope * (point.now_s - at_s - mean_t)) ** 2 for point in points)
    gap_s = (at_s - points[0].now_s) / (count - 1)
    counting = sqrt(max(level, 0.0) / gap_s)  # a Poisson count of λΔt, as a rate
    return Trend(at_s, level, slope, max(sqrt(rest / (count - 2)), counting))
