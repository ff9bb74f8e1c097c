"""What the supervisor did, as JSON lines like those of the functions."""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import UTC, datetime
from typing import Any

__all__ = ["log_event"]


def log_event(message: str, function: str = "", **more: Any) -> None:
    """Write one line to stderr, which is the supervisor's log."""
    moment = datetime.now(UTC).isoformat(timespec="milliseconds")
    entry: dict[str, Any] = {"time": moment, "level": "info", "message": message}
    if function:
        entry["function"] = function
    with contextlib.suppress(OSError):  # a full disk must not stop the supervisor
        sys.stderr.write(json.dumps(entry | more) + "\n")
        sys.stderr.flush()
