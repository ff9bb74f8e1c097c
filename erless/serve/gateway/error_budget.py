"""How many queries default vectors may answer: the error budget of `cold_miss: default`."""

from __future__ import annotations

__all__ = ["ErrorBudget"]

SAVED = 20.0  # queries' worth that may be spent at once


class ErrorBudget:
    """At most `share` of all queries in the long run, and `SAVED` of them in a row.

    >>> budget = ErrorBudget(0.5)
    >>> sum(budget.spend() for _ in range(100))
    20
    >>> for _ in range(4):
    ...     budget.earn()
    >>> [budget.spend() for _ in range(3)]
    [True, True, False]
    """

    __slots__ = ("_left", "_share")

    def __init__(self, share: float) -> None:
        self._share = share
        self._left = SAVED if share else 0.0

    def earn(self) -> None:
        """One more query has come."""
        self._left = min(SAVED, self._left + self._share)

    def spend(self) -> bool:
        """Whether one more query may be answered with default vectors; it then counts."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
