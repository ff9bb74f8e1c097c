"""How many may be treated in another way: answered with default vectors, or asked again."""

from __future__ import annotations

__all__ = ["ErrorBudget"]

SAVED = 20.0


class ErrorBudget:
    """At most `share` of all that come in the long run, and `saved` of them in a row.

    >>> budget = ErrorBudget(0.5)
    >>> sum(budget.spend() for _ in range(100))
    20
    >>> for _ in range(4):
    ...     budget.earn()
    >>> [budget.spend() for _ in range(3)]
    [True, True, False]
    """

    __slots__ = ("_left", "_saved", "_share")

    def __init__(self, share: float, saved: float = SAVED) -> None:
        self._share, self._saved = share, saved
        self._left = saved if share else 0.0

    def earn(self, count: int = 1) -> None:
        """`count` more have come."""
        self._left = min(self._saved, self._left + count * self._share)

    def spend(self, count: int = 1) -> bool:
        """Whether `count` more may be treated in the other way; they then count."""
        if self._left < count:
            return False
        self._left -= count
        return True
