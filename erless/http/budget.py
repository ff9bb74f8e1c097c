"""How much memory requests and answers may hold at once, in a whole process."""

from __future__ import annotations

__all__ = ["BudgetShare", "MemoryBudget"]


class MemoryBudget:
    """A number of bytes that may be held at once.

    Args:
        limit_bytes: as much as may be held.

    >>> budget = MemoryBudget(100)
    >>> budget.take(70), budget.take(40), budget.held_bytes
    (True, False, 70)
    >>> budget.give(70)
    >>> budget.take(40)
    True
    """

    __slots__ = ("held_bytes", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def take(self, size: int) -> bool:
        """Hold `size` bytes more; False, and nothing held, where that would exceed the limit."""
        if self.held_bytes + size > self.limit_bytes:
            return False
        self.held_bytes += size
        return True

    def give(self, size: int) -> None:
        """Give back `size` bytes that were held."""
        self.held_bytes -= size

    def resize(self, limit_bytes: int) -> None:
        """Change the limit; what is held already stays."""
        self.limit_bytes = limit_bytes


class BudgetShare:
    """What one connection holds of a budget, by purpose.

    Args:
        budget: of the process.

    >>> budget = MemoryBudget(100)
    >>> share = BudgetShare(budget)
    >>> share.hold("body", 60), share.hold("body", 110), share.hold("body", 80)
    (True, False, True)
    >>> share.release()
    >>> budget.held_bytes
    0
    """

    __slots__ = ("_budget", "_held")

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._held: dict[str, int] = {}

    def hold(self, purpose: str, size: int) -> bool:
        """Set what `purpose` holds to `size` bytes; False, and no change, if that is too much."""
        more = size - self._held.get(purpose, 0)
        if more > 0 and not self._budget.take(more):
            return False
        if more < 0:
            self._budget.give(-more)
        self._held[purpose] = size
        return True

    def release(self) -> None:
        """Give back everything that is held."""
        self._budget.give(sum(self._held.values()))
        self._held.clear()
