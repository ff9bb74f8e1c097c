"""How many may be treated in another way: answered with default vectors, or asked again."""

from __future__ import annotations

__all__ = ["ErrorBudget"]

SAVED = 20.0  # that may be spent at once


class ErrorBudget:
    """At most `share` of all that come in the long run, and `SAVED` of them in a row.

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

    def earn(self, count: int = 1) -> None:
        """`count` more have come."""
        self._left = min(SAVED, self._left + count * self._share)

    def spend(self) -> bool:
        """Whether one more may be treated in the other way; it then counts."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
