"""Bound what a process may use: time, memory, files and processes, by the kernel's own limits."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import NamedTuple

__all__ = ["Limits", "set_limits"]


class Limits(NamedTuple):
    """What a process may use beyond what it has used already."""

    cpu_s: int
    memory_bytes: int
    open_files: int = 64


def set_limits(limits: Limits) -> None:
    """Apply `limits` to this process, on top of what it uses already.

    It may write no byte to a file (RLIMIT_FSIZE), start nothing (RLIMIT_NPROC, which does not
    hold for root) and leave no core.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(used.ru_utime + used.ru_stime) + 1 + limits.cpu_s
    memory = _mapped_bytes() + limits.memory_bytes
    for name, bound in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_CORE, 0),
    ):
        _, most = resource.getrlimit(name)
        value = bound if most == resource.RLIM_INFINITY else min(bound, most)
        resource.setrlimit(name, (value, value))


def _mapped_bytes() -> int:
    """Address space that this process has mapped; 64 GiB where the kernel does not say."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 64 << 30
    return int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
