"""Hold replicas to their plan's vCPU and memory through a cgroup (v2), where that is possible.

It is where this process may create groups below its own with the controllers `cpu` and `memory`:
as root on cgroup v2, or with a delegated group (`systemd-run --user --scope -p Delegate=yes`).
Elsewhere `available` says why not, and replicas run without limits.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from erless.deploy.supervisor.spec import FunctionSpec

__all__ = ["available", "confine", "release"]

PERIOD_US = 100_000
NEEDED = {"cpu", "memory"}


def _own_group() -> Path | None:
    """This process's group in the v2 hierarchy."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        parts = line.split(" - ")
        if len(parts) == 2 and parts[1].startswith("cgroup2 "):
            mount = Path(line.split()[4])
            for each in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
                if each.startswith("0::"):
                    return mount / each[3:].lstrip("/")
    return None


def available() -> str:
    """Empty where limits work, else the reason why they do not."""
    group = _own_group()
    if group is None:
        return "no cgroup v2 hierarchy is mounted"
    try:
        controllers = set((group / "cgroup.controllers").read_text(encoding="ascii").split())
    except OSError as error:
        return f"{group}: {error.strerror}"
    if not controllers >= NEEDED:
        missing = ", ".join(sorted(NEEDED - controllers))
        return f"{group} is not given the controllers {missing}"
    try:
        (group / "cgroup.subtree_control").write_text("+cpu +memory", encoding="ascii")
    except OSError as error:
        return f"{group} may not have groups below it: {error.strerror}"
    return ""


def confine(spec: FunctionSpec, state: Path, slot: int, pid: int) -> Path | None:
    """Put `pid` into a group of its own; None where the system refused (see `available`)."""
    own = _own_group()
    if own is None:
        return None
    mark = hashlib.sha256(str(state).encode()).hexdigest()[:8]
    group = own / f"erless-{mark}-{spec.key}-{slot}"
    try:
        group.mkdir(exist_ok=True)
        quota = max(1000, round(spec.vcpu * PERIOD_US))
        (group / "cpu.max").write_text(f"{quota} {PERIOD_US}", encoding="ascii")
        if spec.memory_bytes:
            (group / "memory.max").write_text(str(spec.memory_bytes), encoding="ascii")
        (group / "cgroup.procs").write_text(str(pid), encoding="ascii")
    except OSError:
        release(group)
        return None
    return group


def release(group: Path | None) -> None:
    """Remove a group whose processes have ended."""
    if group is not None:
        with contextlib.suppress(OSError):
            group.rmdir()
