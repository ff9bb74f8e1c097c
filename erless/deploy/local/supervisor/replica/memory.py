"""What a process holds: its proportional set size, so that pages shared by replicas count once."""

from __future__ import annotations

from pathlib import Path

__all__ = ["pss_bytes"]


def pss_bytes(pid: int) -> int:
    """PSS of a process of this user; its resident size where the kernel has no PSS; 0 if gone."""
    for name, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        try:
            text = Path(f"/proc/{pid}/{name}").read_text(encoding="ascii", errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return 0
