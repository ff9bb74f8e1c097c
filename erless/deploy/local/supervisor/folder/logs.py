"""The functions' logs: one file per replica slot, JSON lines, rotated, never in the data path.

A replica writes to its file itself (O_APPEND), so a log needs no living supervisor. A file beyond
`ROTATE_BYTES` is copied to `NAME.1` and cut to nothing, which O_APPEND makes safe.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

__all__ = ["last_words", "log_file", "read_logs", "rotate"]

ROTATE_BYTES = 8 << 20
TAIL_BYTES = 64 << 10
FOLLOW_S = 0.2


def log_file(logs: Path, key: str, slot: int) -> Path:
    """Where replica `slot` of function `key` writes."""
    return logs / f"{key}.{slot}.log"


def rotate(file: Path, most_bytes: int = ROTATE_BYTES) -> bool:
    """Begin `file` anew where it has grown beyond `most_bytes`."""
    try:
        if file.stat().st_size <= most_bytes:
            return False
        shutil.copyfile(file, file.with_name(file.name + ".1"))
        with file.open("r+b") as opened:
            opened.truncate(0)
    except OSError:  # a full disk must not stop the supervisor; the next poll tries again
        return False
    return True


def last_words(file: Path, since: int = 0) -> str:
    """What the last line after byte `since` says: a JSON line's message, or the line itself."""
    lines = [line for line in _tail(file, since) if line.strip()]
    for line in reversed(lines):
        entry = _parse(line)
        if entry.get("message"):
            return str(entry["message"])
    return lines[-1].strip()[:500] if lines else ""


def _tail(file: Path, since: int = 0) -> list[str]:
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, 2)
            opened.seek(max(since if since <= size else 0, size - TAIL_BYTES))
            return opened.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def _parse(line: str) -> dict[str, object]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _moment(stamp: object, otherwise: float) -> float:
    """Seconds since 1970 of a line's time, ISO 8601 or a number; `otherwise` where it has none."""
    if isinstance(stamp, int | float):
        return float(stamp)
    try:
        return datetime.fromisoformat(str(stamp)).timestamp()
    except ValueError:
        return otherwise


def read_logs(
    logs: Path,
    display_name: Callable[[str], str | None],
    lines: int,
    follow: bool,
) -> Iterator[str]:
    """The last `lines` lines of all those files in order of time, then what comes.

    Args:
        logs: the folder.
        display_name: function key → the name to show before its lines; None leaves it out.
        lines: how many.
        follow: never end; new files are followed as well.
    """
    places: dict[Path, int] = {}
    stamped: list[tuple[float, str]] = []
    for file, name in _files(logs, display_name):
        places[file] = file.stat().st_size
        before = 0.0
        for line in _old(file):
            before = _moment(_parse(line).get("time"), before)
            stamped.append((before, f"{name} {line}"))
    stamped.sort(key=lambda entry: entry[0])
    yield from (line for _, line in (stamped[-lines:] if lines else []))
    while follow:
        time.sleep(FOLLOW_S)
        for file, name in _files(logs, display_name):
            yield from (f"{name} {line}" for line in _new(file, places))


def _files(logs: Path, display_name: Callable[[str], str | None]) -> Iterator[tuple[Path, str]]:
    for file in sorted(logs.glob("*.log")):
        key, _, _ = file.name.removesuffix(".log").rpartition(".")
        name = display_name(key or file.stem)
        if name is not None:
            yield file, name


def _old(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _new(file: Path, places: dict[Path, int]) -> Iterator[str]:
    """Whole lines after the place that was read last."""
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, 2)
            place = places.get(file, 0)
            opened.seek(place if place <= size else 0)  # it was rotated
            start = opened.tell()
            text = opened.read()
    except OSError:
        return
    whole = text.rfind(b"\n") + 1
    places[file] = start + whole
    yield from text[:whole].decode("utf-8", "replace").splitlines()
