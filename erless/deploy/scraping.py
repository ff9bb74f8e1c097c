"""Somebody walks a table: shards that are hardly ever asked are asked far more than the odds allow.

The plan says which share of all gathers each shard gets. Of n gathers in a window a shard then has
about n · share, in calls of several rows each: with g rows in a call on average, the calls are
about Poisson with mean n · share / g. An alarm takes a tail below `TAIL` and `TIMES` as many calls
as expected, so that neither noise nor a profile that was a little wrong raises one.

Live traffic differs from the profile that was planned for, and moves. So a share is what the plan
says or what quiet windows have shown, whichever is larger; a window may at most double it. The
first window only learns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from erless.specs.odds import ShardOdds

__all__ = ["ScrapingWatch"]

WINDOW_S = 60.0
TAIL = 1e-9  # one false alarm in 2,000 years of windows of a shard, were calls independent
TIMES = 3.0
LEAST_GATHERS = 10_000  # of all shards in a window: fewer tell nothing
LEAST_CALLS = 20.0
LEARNING = 0.3  # weight of the last window in what is expected of the next
LEAST_SHARE = 1e-6  # of a frozen shard whose rows the profile never saw

Counts = Mapping[tuple[str, Any], float]  # (function, process or pod) → gathers so far


class ScrapingWatch:
    """Counts gathers in windows, and compares them with the odds.

    Args:
        odds: of the shards that are watched, by function.
        clock: seconds, monotonic.
    """

    def __init__(self, odds: Mapping[str, ShardOdds], clock: Callable[[], float]) -> None:
        self._odds, self._clock = dict(odds), clock
        self._began_s = clock()
        self._last: Counts = {}
        self._window: dict[str, float] = {}
        self._learned: dict[str, float] | None = None

    def observe(self, counts: Counts) -> dict[str, str]:
        """Take the counters of all functions, the gateway's among them.

        Returns:
            function → what is wrong with it; at most once a window.
        """
        for (function, process), count in counts.items():
            grown = count - self._last.get((function, process), 0.0)
            self._window[function] = self._window.get(function, 0.0) + max(0.0, grown)
        self._last = dict(counts)
        whole = sum(self._window.values())
        if self._clock() - self._began_s < WINDOW_S or whole < LEAST_GATHERS:
            return {}
        window, self._window, self._began_s = self._window, {}, self._clock()
        found = {
            function: reason
            for function in self._odds
            if self._learned is not None
            and (reason := self._judge(function, window.get(function, 0.0), whole))
        }
        self._learn(window, whole, found)
        return found

    def _expected(self, function: str) -> float:
        learned = (self._learned or {}).get(function, 0.0)
        return max(self._odds[function].share, learned, LEAST_SHARE)

    def _judge(self, function: str, gathers: float, whole: float) -> str:
        """What is wrong with `gathers` of a shard among `whole`; empty where nothing is."""
        from scipy.stats import poisson

        share, rows = self._expected(function), max(1.0, self._odds[function].rows_per_call)
        calls, mean = gathers / rows, whole * share / rows
        if calls < max(LEAST_CALLS, TIMES * mean):
            return ""
        if poisson.sf(int(calls) - 1, mean) >= TAIL:
            return ""
        return (
            f"{gathers:,.0f} of {whole:,.0f} gathers, {whole * share:,.0f} are expected: "
            "somebody may be walking its tables"
        )

    def _learn(self, window: Mapping[str, float], whole: float, found: Mapping[str, str]) -> None:
        before = self._learned or {}
        learned = {}
        for function in self._odds:
            seen, expected = window.get(function, 0.0) / whole, self._expected(function)
            quiet = min(seen, 2.0 * expected) if function not in found else expected
            earlier = before.get(function, quiet)
            learned[function] = (1.0 - LEARNING) * earlier + LEARNING * quiet
        self._learned = learned
