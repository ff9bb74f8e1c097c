"""Hold replicas to their plan's vCPU and memory by cgroups (v1 or v2), where that is possible.

It is where this process may make groups below its own with the controllers cpu and memory: as root,
or in a group delegated by systemd. Elsewhere `obstacle` says why not.

With v2, a group that has processes of its own may not give controllers to groups below it (but for
the root): the supervisor then has to be alone, and steps aside into a group of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from erless.deploy.local.supervisor.spec import FunctionSpec

__all__ = ["Group", "confine", "obstacle", "release", "resize", "throttling"]

PERIOD_US = 100_000
LEAST_QUOTA_US = 1_000  # the kernel's
NEEDED = ("cpu", "memory")
ASIDE = "erless-supervisor"

Group = tuple[Path, ...]  # one folder with v2, one per controller with v1


@dataclass(frozen=True, slots=True)
class _Hierarchy:
    """Where this process stands: `folders` by controller; with v2 both are the same."""

    version: int
    folders: dict[str, Path]


def _hierarchy() -> _Hierarchy | None:
    """The hierarchy that has the controllers, if there is one."""
    mounts: dict[str, Path] = {}
    unified: Path | None = None
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        mount, _, source = line.partition(" - ")
        filesystem, _, options = source.split(" ", 2)
        point = Path(mount.split()[4])
        if filesystem == "cgroup2":
            unified = point
        elif filesystem == "cgroup":
            mounts |= dict.fromkeys(options.split(","), point)
    places: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, names, place = line.split(":", 2)
        places |= dict.fromkeys(names.split(","), place.lstrip("/"))
    if unified is not None:
        folder = unified / places.get("", "").removesuffix(f"/{ASIDE}")
        with contextlib.suppress(OSError):
            available = (folder / "cgroup.controllers").read_text(encoding="ascii").split()
            if set(NEEDED) <= set(available):
                return _Hierarchy(2, dict.fromkeys(NEEDED, folder))
    if all(controller in mounts and controller in places for controller in NEEDED):
        return _Hierarchy(
            1, {controller: mounts[controller] / places[controller] for controller in NEEDED}
        )
    return None


def obstacle() -> str:
    """Why limits cannot be kept here; empty where they can. Tries it, and leaves nothing."""
    hierarchy = _hierarchy()
    if hierarchy is None:
        return "no cgroup hierarchy here has the controllers cpu and memory"
    try:
        if hierarchy.version == 2:
            _delegate(hierarchy.folders["cpu"])
        for folder in set(hierarchy.folders.values()):
            trial = folder / f"erless-trial-{os.getpid()}"
            trial.mkdir()
            trial.rmdir()
    except OSError as error:
        return f"no group may be made below {error.filename}: {error.strerror}"
    return ""


def _delegate(folder: Path) -> None:
    """Give the groups below `folder` their controllers; we leave it first, as v2 demands."""
    control = folder / "cgroup.subtree_control"
    if set(NEEDED) <= set(control.read_text(encoding="ascii").split()):
        return
    try:
        control.write_text("+cpu +memory", encoding="ascii")
    except OSError:
        aside = folder / ASIDE
        aside.mkdir(exist_ok=True)
        (aside / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        control.write_text("+cpu +memory", encoding="ascii")


def confine(spec: FunctionSpec, state: Path, slot: int, pid: int) -> Group:
    """Put `pid` into groups with its plan's limits; empty where the system refused.

    A replica whose vCPU may change has the largest until it is ready.
    """
    hierarchy = _hierarchy()
    if hierarchy is None:
        return ()
    mark = hashlib.sha256(str(state).encode()).hexdigest()[:8]
    name = f"erless-{mark}-{spec.key}-{slot}"
    group = tuple(dict.fromkeys(hierarchy.folders[controller] / name for controller in NEEDED))
    quota = _quota_us(spec.largest_vcpu)
    settings: dict[str, str] = {}
    if hierarchy.version == 2:
        settings["cpu.max"] = f"{quota} {PERIOD_US}"
        settings["memory.max"] = str(spec.memory_bytes or "max")
    else:
        settings["cpu.cfs_period_us"] = str(PERIOD_US)
        settings["cpu.cfs_quota_us"] = str(quota)
        settings["memory.limit_in_bytes"] = str(spec.memory_bytes or -1)
    try:
        for folder in group:
            folder.mkdir(exist_ok=True)
        for setting, value in settings.items():
            controller = setting.partition(".")[0]
            (hierarchy.folders[controller] / name / setting).write_text(value, encoding="ascii")
        for folder in group:
            (folder / "cgroup.procs").write_text(str(pid), encoding="ascii")
    except OSError:
        release(group)
        return ()
    return group


def _quota_us(vcpu: float) -> int:
    return max(LEAST_QUOTA_US, round(vcpu * PERIOD_US))


def resize(group: Group, vcpu: float) -> bool:
    """Let the processes of a group use `vcpu` from now on; False where the system refused.

    What they do goes on: the kernel takes the new quota with the next period.
    """
    if not group:
        return False
    unified = group[0] / "cpu.max"
    quota, text = group[0] / "cpu.cfs_quota_us", str(_quota_us(vcpu))
    if unified.exists():
        quota, text = unified, f"{text} {PERIOD_US}"
    try:
        quota.write_text(text, encoding="ascii")
    except OSError:  # the group has gone with its last process
        return False
    return True


def throttling(group: Group) -> tuple[int, int]:
    """Periods in which a group wanted to run, and in how many it had spent its quota, so far."""
    if not group:
        return 0, 0
    try:
        lines = (group[0] / "cpu.stat").read_text(encoding="ascii").splitlines()
        stat = dict(line.split(None, 1) for line in lines)
        return int(stat["nr_periods"]), int(stat["nr_throttled"])
    except (OSError, KeyError, ValueError):
        return 0, 0


def release(group: Group) -> None:
    """Remove groups whose processes have ended."""
    for folder in group:
        with contextlib.suppress(OSError):
            folder.rmdir()
