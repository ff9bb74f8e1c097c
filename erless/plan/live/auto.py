"""When to plan anew by itself: after drift that lasts, at most so often, within a budget.

A short burst changes shares for minutes and is gone: drift counts once every look in `after_s` has
seen it. After a change nothing is planned anew for `at_most_every_s`, and what would move more
bytes than the budget of a day has left is put off and told.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["AutoReplan", "Replanning"]

DAY_S = 86_400.0


class Replanning(StrEnum):
    """What a look at the drift comes to."""

    CALM = "no drift"
    WAIT = "drift that may be a burst"
    REST = "drift, too soon after the last change"
    ACT = "drift that lasts: plan anew"


@dataclass
class AutoReplan:
    """Looks at drift now and then; time is told, in seconds, and never goes back.

    Args:
        after_s: drift must last so long.
        at_most_every_s: between two changes.
        bytes_a_day: most that changes of 24 h may move together.
    """

    after_s: float
    at_most_every_s: float
    bytes_a_day: float
    _since: float | None = None
    _changes: deque[tuple[float, int]] = field(default_factory=deque)

    def look(self, now_s: float, drifted: bool) -> Replanning:
        """What to do about what is seen now."""
        if not drifted:
            self._since = None
            return Replanning.CALM
        if self._since is None:
            self._since = now_s
        if now_s - self._since < self.after_s:
            return Replanning.WAIT
        if self._changes and now_s - self._changes[-1][0] < self.at_most_every_s:
            return Replanning.REST
        return Replanning.ACT

    def affords(self, now_s: float, moved_bytes: int) -> bool:
        """Whether the day's budget has room for a change of so many bytes."""
        while self._changes and now_s - self._changes[0][0] >= DAY_S and len(self._changes) > 1:
            self._changes.popleft()
        spent = sum(size for at_s, size in self._changes if now_s - at_s < DAY_S)
        return spent + moved_bytes <= self.bytes_a_day

    def changed(self, now_s: float, moved_bytes: int) -> None:
        """A change was made."""
        self._changes.append((now_s, moved_bytes))
        self._since = None

    def put_off(self, now_s: float) -> None:
        """Nothing was to be gained, or it could not be afforded: look again after `after_s`."""
        self._since = now_s
