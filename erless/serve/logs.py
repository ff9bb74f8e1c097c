"""JSON lines on stderr, one per event, each with its time as ISO 8601 in UTC."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, Literal

__all__ = ["Log"]

Level = Literal["debug", "info", "warning", "error"]
_ORDER = {"debug": 0, "info": 1, "warning": 2, "error": 3}


class Log:
    """Writes events of at least `level`, each with `fields`.

    >>> Log("warning", function="sparse").info("not written")
    """

    def __init__(self, level: Level, **fields: Any) -> None:
        self._least = _ORDER[level]
        self._fields = fields
        self.debugging = self._least == 0

    def debug(self, message: str, **more: Any) -> None:
        """Write what helps to find a fault."""
        self._write("debug", message, more)

    def info(self, message: str, **more: Any) -> None:
        """Write what happens in normal service."""
        self._write("info", message, more)

    def warning(self, message: str, **more: Any) -> None:
        """Write what went wrong and was dealt with."""
        self._write("warning", message, more)

    def error(self, message: str, *, trace: BaseException | None = None, **more: Any) -> None:
        """Write what went wrong, and the traceback of `trace`."""
        if trace is not None:
            more["trace"] = "".join(traceback.format_exception(trace))
        self._write("error", message, more)

    def _write(self, level: Level, message: str, more: dict[str, Any]) -> None:
        if _ORDER[level] < self._least:
            return
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = {"time": moment, "level": level, "message": message}
        text = json.dumps(entry | self._fields | more, default=str)
        with contextlib.suppress(OSError):  # a full disk must not stop a function
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
