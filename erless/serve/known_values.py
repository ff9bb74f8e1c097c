"""Values that a client may show, from a file that is looked at while functions run, or fixed.

A new value can be put in front of the old one, and the old one be taken away, without a restart.
"""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import Callable
from pathlib import Path

from erless.errors import ConfigError

__all__ = ["AGAIN_S", "KnownValues"]

AGAIN_S = 1.0  # between two looks at the file


class KnownValues:
    """What is accepted; compared in constant time.

    Args:
        values: what is accepted at first.
        file: where they come from; None: they stay.
        read: the values in a file; raises ConfigError.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        values: tuple[bytes, ...],
        file: Path | None,
        read: Callable[[Path], tuple[bytes, ...]],
        clock: Callable[[], float],
    ) -> None:
        self.values, self._file, self._read, self._clock = values, file, read, clock
        self._looked, self._changed = clock(), self._written()

    def accepts(self, value: bytes) -> bool:
        """Whether `value` is one of them.

        One that is not known is refused only after a look at the file: it may have been put there
        less than `AGAIN_S` ago. One that was taken away is accepted for at most `AGAIN_S` more.
        """
        self.refresh(self._clock())
        if self._knows(value):
            return True
        self._look()
        return self._knows(value)

    def refresh(self, now: float) -> None:
        """Read the file again, where it has changed; at most once in `AGAIN_S` seconds."""
        if now - self._looked >= AGAIN_S:
            self._looked = now
            self._look()

    def _knows(self, value: bytes) -> bool:
        return sum(hmac.compare_digest(value, known) for known in self.values) > 0

    def _written(self) -> tuple[int, int]:
        """Tells one content of the file from the next."""
        if self._file is None:
            return 0, 0
        stat = self._file.stat()
        return stat.st_mtime_ns, stat.st_ino

    def _look(self) -> None:
        """Read the file again where it has changed."""
        if self._file is None:
            return
        with contextlib.suppress(OSError, ConfigError):  # being replaced: what was known stays
            changed = self._written()
            if changed != self._changed:
                self.values = self._read(self._file)
                self._changed = changed
