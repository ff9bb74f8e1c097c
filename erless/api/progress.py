"""A callback that is told how far a stage is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from erless.progress import Step, Unit

__all__ = ["Callback", "ProgressCalls"]

Callback = Callable[[str, int, int | None], None]  # (step, done, of how many or None)


class ProgressCalls:
    """Tells `callback` of each step as it begins and advances."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback

    @contextmanager
    def step(self, label: str, total: int | None, unit: Unit) -> Iterator[Step]:
        """One step of a stage."""
        yield _Counted(self._callback, label, total)


class _Counted:
    def __init__(self, callback: Callback, label: str, total: int | None) -> None:
        self._callback, self._label, self._total = callback, label, total
        self._done = 0
        callback(label, 0, total)

    def advance(self, amount: int) -> None:
        """`amount` more units are done."""
        self._done += amount
        self._callback(self._label, self._done, self._total)
