"""What a container's limit leaves beside the rows: for queries in flight, and for changed rows."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["container_limit", "flight_bytes", "rewritten_bytes"]

SHARE = 0.5  # of what is free once all is loaded; the rest is for the allocator and the kernel
UNLIMITED_SHARE = 0.25  # of the machine's memory, where no container limits us
REWRITTEN_SHARE = 0.25  # likewise, for changed rows
REWRITTEN_UNLIMITED_SHARE = 1 / 16
LEAST_BYTES = 32 << 20  # one query of some size; a smaller container cannot serve
CGROUPS = Path("/sys/fs/cgroup")


def container_limit(groups: str, root: Path = CGROUPS) -> int | None:
    """Bytes that the control groups of a process allow it, the least of all; None: no limit.

    Args:
        groups: the text of /proc/PID/cgroup.
        root: where the groups are mounted, version 2 or 1.
    """
    limits: list[int] = []
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version1 = "memory" in controllers
        file = "memory.limit_in_bytes" if version1 else "memory.max"
        base = root / "memory" if version1 else root
        # a group's own folder may not be visible in a container, whose root then is the group's
        for folder in (base / path.lstrip("/"), *(base / path.lstrip("/")).parents):
            if folder != base and base not in folder.parents:
                break
            try:
                text = (folder / file).read_text().strip()
            except OSError:
                continue
            if text.isdigit() and int(text) < 1 << 60:  # version 1 writes a huge number for none
                limits.append(int(text))
    return min(limits, default=None)


def flight_bytes(configured: int | None, workers: int, reserved: int = 0) -> int:
    """The budget of this process for requests and answers, now that everything is loaded.

    Args:
        configured: by the settings, for the whole function; None: the container's limit decides.
        workers: processes that share the container.
        reserved: bytes of what is left that are for something else.
    """
    if configured is not None:
        return configured // workers
    return max(LEAST_BYTES, _part(SHARE, UNLIMITED_SHARE, reserved) // workers)


def rewritten_bytes(configured: int | None, workers: int, least: int = 0) -> int:
    """What this process may take for a copy of rows with those that generations changed in place,
    now that all rows are in memory.

    Args:
        configured, workers: as of `flight_bytes`.
        least: where nothing is configured.
    """
    if configured is not None:
        return configured // workers
    return max(least, _part(REWRITTEN_SHARE, REWRITTEN_UNLIMITED_SHARE)) // workers


def _part(of_left: float, of_machine: float, reserved: int = 0) -> int:
    """A part of what the container's limit leaves, without what is `reserved`; where there is no
    limit, of the machine's memory."""
    page = os.sysconf("SC_PAGE_SIZE")
    limit = container_limit(Path("/proc/self/cgroup").read_text(encoding="utf-8"))
    if limit is None:
        return int(of_machine * page * os.sysconf("SC_PHYS_PAGES"))
    resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * page
    return max(0, int(of_left * (limit - resident - reserved)))
