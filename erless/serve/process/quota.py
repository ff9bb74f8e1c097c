"""How often the container's CPU limit held this function up, as its control group counts it."""

from __future__ import annotations

from pathlib import Path

from erless.serve.metrics import Metrics

__all__ = ["export_throttling", "throttling"]

CGROUPS = Path("/sys/fs/cgroup")


def throttling(root: Path = CGROUPS) -> tuple[int, int] | None:
    """Periods of the CFS so far in which the container ran, and had spent its quota.

    None where it is not told: outside a container the root's group has no quota.
    """
    for folder in (root, root / "cpu"):  # version 2, and 1
        try:
            lines = (folder / "cpu.stat").read_text(encoding="ascii").splitlines()
            told = dict(line.split(None, 1) for line in lines)
            return int(told["nr_periods"]), int(told["nr_throttled"])
        except (OSError, KeyError, ValueError):
            continue
    return None


def export_throttling(metrics: Metrics, root: Path = CGROUPS) -> None:
    """Show both numbers, where they are told. All workers of a function read the same."""
    if throttling(root) is None:
        return
    metrics.gauge("cpu_periods", "CFS periods in which the container ran", lambda: _told(root)[0])
    metrics.gauge("cpu_throttled_periods", "of these, with its quota spent", lambda: _told(root)[1])


def _told(root: Path) -> tuple[int, int]:
    return throttling(root) or (0, 0)
