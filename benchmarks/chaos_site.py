"""A deployment on this machine, and the ways to break it that `benchmarks.chaos` tries in turns."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from erless.deploy.desired_release import load_desired
from erless.deploy.local.faults import LocalReplica
from erless.deploy.local.supervisor.client import call
from erless.deploy.local.supervisor.folder.locks import WATCHDOG_LOCK, lock_holder
from erless.deploy.local.supervisor.folder.state_folder import StateFolder
from erless.deploy.local.supervisor.replica.liveness import read_process
from erless.deploy.local.supervisor.replica.orphans import find_orphans
from erless.deploy.local.target import LocalTarget
from erless.dlrm.queries import QueryFile, write_queries
from erless.dlrm.reference import Monolith
from erless.errors import ErlessError
from erless.pack.inputs import PackInputs
from erless.pack.packer import Packer
from erless.progress import Silent
from erless.serve.protocol.client import QueryClient
from erless.specs.churn import FaultKind
from erless.specs.config import Config, LocalConfig, TargetsConfig
from erless.specs.plan import Plan, Scaling
from erless.specs.stored import load_shard
from erless.storage.stores import open_store
from tests.releases import (
    TIERS,
    default_model,
    make_inputs,
    make_plan,
    random_query,
)

__all__ = ["EXACT", "FAULTS", "HEAL_S", "TIMEOUT_S", "Fault", "Site", "fill_disk"]

TIMEOUT_S = 10.0  # of a query: what takes longer has failed
HEAL_S = 90.0  # what has not healed after so long has not
EXACT = 1e-5
COPIES = 2


class Site:
    """A deployment, and the ways to break it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "disk" / "state"
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.small_disk = _mount(self.disk)
        made = _release(folder)
        self.store, self.blobs = made.store, made.blobs
        options = LocalConfig(state=self.state, window_s=20.0, grace_s=5.0)
        self.target = LocalTarget(Config(targets=TargetsConfig(local=options)))
        desired = load_desired(str(made.store), made.digest)
        self.url = self.target.deploy(desired, Silent(), HEAL_S).url
        self.faults = self.target.faults()
        file, model = QueryFile(made.queries), Monolith.load(made.bundle)
        self.queries = [file[index] for index in range(len(file))]
        self.expected = [model.predict(query) for query in self.queries]

    def facts(self) -> dict[str, Any] | None:
        """What the supervisor says; None where it does not. It is never started by this."""
        folder = StateFolder(self.state)
        try:
            facts: dict[str, Any] = call(folder, {"do": "status"}, 5.0)
        except (ErlessError, OSError, ValueError):
            return None
        finally:
            folder.close()
        return facts

    def replica(self, name: str) -> LocalReplica:
        """A function's first replica."""
        return next(found for found in self.faults.replicas() if found.function == name)

    def problem(self) -> str:
        """Why the deployment is not whole; empty where it is."""
        facts = self.facts()
        if facts is None:
            return "no supervisor answers"
        if lock_holder(self.state / WATCHDOG_LOCK) is None:
            return "no watchdog lives"
        pids = list(facts["supervisor"]["pids"])
        pids += [each["pid"] for function in facts["functions"] for each in function["replicas"]]
        if any((seen := read_process(pid)) and seen.state == "T" for pid in pids):
            return "a process is stopped"
        late = [each for each in facts["functions"] if each["ready"] < each["wanted"]]
        if late or not facts["functions"]:
            return ", ".join(f"{each['name']}: {each['reason'] or 'waits'}" for each in late)
        try:
            with QueryClient(self.url, timeout_s=TIMEOUT_S) as client:
                answer = client.predict(self.queries[0])
        except (ErlessError, OSError, ValueError) as error:
            return str(error)
        errors = np.abs(answer.predictions - self.expected[0])
        return "wrong" if (errors > EXACT * np.abs(self.expected[0])).any() else ""

    def close(self) -> None:
        """Leave nothing."""
        with contextlib.suppress(ErlessError):
            self.target.destroy(Silent(), HEAL_S)
        if self.small_disk:
            subprocess.run(["umount", "-l", str(self.disk)], check=False)


class Packed(NamedTuple):
    """A release in a store, and what it was made from."""

    store: Path
    digest: str
    bundle: Path
    queries: Path
    blobs: dict[str, Path]  # the largest file of each shard


def _release(folder: Path) -> Packed:
    """A model of three tables; two replicas of every function but the frozen one."""
    model = default_model(rows=60_000, dim=16)
    bundle, profile = make_inputs(folder, model)
    plan = make_plan(bundle, profile, TIERS)
    twice = Scaling(min_scale=COPIES, initial_scale=COPIES, max_scale=COPIES, target=1000)
    plan = Plan.create(
        model_digest=plan.model_digest,
        profile_digest=plan.profile_digest,
        policy=plan.policy,
        shards=tuple(
            shard.model_copy(update={"scaling": twice}) if shard.scaling.min_scale else shard
            for shard in plan.shards
        ),
        gateway=plan.gateway.model_copy(update={"scaling": twice}),
    )
    plan.save(folder / "plan.json")
    queries, store = folder / "queries.safetensors", folder / "store"
    write_queries(queries, random_query(model, 0, 512), [t.name for t in model.tables], 32)
    opened = open_store(str(store), create=True)
    inputs = PackInputs(bundle, profile, folder / "plan.json")
    release = Packer(inputs, opened).pack().release
    assert release is not None
    blobs = {
        shard.name: store
        / max(load_shard(opened, shard.digest).files(), key=lambda entry: entry.size_bytes).path
        for shard in release.remote
    }
    return Packed(store, release.digest, bundle, queries, blobs)


def _mount(place: Path) -> bool:
    """A small file system of its own; False where this user may not mount."""
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(place)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


# Faults. Each breaks something and returns how to let go of it; most leave nothing to let go of.

Release = Callable[[], None]


def _nothing() -> None:
    """There is nothing to let go of."""


def _break_one(name: str, kind: FaultKind) -> Callable[[Site], Release]:
    """Break one replica of a function, as a drill does."""

    def inject(site: Site) -> Release:
        site.faults.inject(kind, site.replica(name))
        return _nothing

    return inject


def _signal_supervisor(number: signal.Signals) -> Callable[[Site], Release]:
    def inject(site: Site) -> Release:
        pid = StateFolder(site.state).supervisor_pid()
        assert pid is not None
        os.kill(pid, number)
        return _nothing

    return inject


def _kill_watchdog(site: Site) -> Release:
    pid = lock_holder(site.state / WATCHDOG_LOCK)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return _nothing


def _kill_zygote(site: Site) -> Release:
    facts = site.facts()
    assert facts is not None
    os.kill(facts["supervisor"]["pids"][1], signal.SIGKILL)
    return _nothing


def _kill_everything(site: Site) -> Release:
    """All functions, the zygote and the supervisor; its watchdog is what is left."""
    pid = StateFolder(site.state).supervisor_pid()
    orphans = find_orphans(site.state)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
    for orphan in orphans:
        orphan.send(signal.SIGKILL)
        os.close(orphan.pidfd)
    return _nothing


def fill_disk(site: Site) -> Release:
    """No byte is left where state and logs are written; a shard dies meanwhile."""
    filler = site.disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    site.faults.inject(FaultKind.KILL, site.replica("hot"))
    return filler.unlink


def _remove_store(site: Site) -> Release:
    """The store is not there; a shard dies meanwhile, and cannot start."""
    aside = site.store.with_name("store-aside")
    site.store.rename(aside)
    site.faults.inject(FaultKind.KILL, site.replica("cold"))

    def give_back() -> None:
        aside.rename(site.store)

    return give_back


def _damage(site: Site, change: Callable[[Path], None]) -> Release:
    """Change a file that replicas map; put back what it was."""
    file = site.blobs["cold"]
    content = file.read_bytes()
    file.chmod(0o644)
    change(file)

    def mend() -> None:
        with file.open("r+b") as opened:
            opened.truncate(len(content))
            opened.write(content)

    return mend


def _overwrite_file(site: Site) -> Release:
    def overwrite(file: Path) -> None:
        with file.open("r+b") as opened:
            opened.write(b"\xa5" * file.stat().st_size)

    return _damage(site, overwrite)


def _truncate_file(site: Site) -> Release:
    return _damage(site, lambda file: os.truncate(file, 100))


def _remove_sockets(site: Site) -> Release:
    for entry in (site.state / "run").iterdir():
        if entry.is_socket():
            entry.unlink()
    return _nothing


def _exhaust_descriptors(site: Site) -> Release:
    """A gateway and a shard have no descriptors left for new connections."""
    limited = {
        pid: resource.prlimit(pid, resource.RLIMIT_NOFILE)
        for pid in (site.replica("gateway").pid, site.replica("hot").pid)
    }
    for pid, (_, hard) in limited.items():
        used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, hard))

    def give_back() -> None:
        for pid, limits in limited.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)

    return give_back


@dataclass(frozen=True)
class Fault:
    """How to break something; `copies`: another replica can answer while it lasts.

    hold_s: it is let go of after so long.
    """

    name: str
    inject: Callable[[Site], Release]
    copies: bool
    hold_s: float = 0.0


FAULTS = (
    Fault("kill a shard", _break_one("hot", FaultKind.KILL), copies=True),
    Fault("stop a shard", _break_one("cold", FaultKind.HANG), copies=True),
    Fault("kill a gateway", _break_one("gateway", FaultKind.GATEWAY), copies=False),
    Fault("stop a gateway", _break_one("gateway", FaultKind.HANG), copies=False),
    Fault("kill the zygote", _kill_zygote, copies=True),
    Fault("kill the supervisor", _signal_supervisor(signal.SIGKILL), copies=True),
    Fault("stop the supervisor", _signal_supervisor(signal.SIGSTOP), copies=True),
    Fault("kill the watchdog", _kill_watchdog, copies=True),
    Fault("kill everything", _kill_everything, copies=False),
    Fault("fill the disk", fill_disk, copies=True, hold_s=8.0),
    Fault("take the store away", _remove_store, copies=True, hold_s=8.0),
    Fault("overwrite a file", _overwrite_file, copies=False, hold_s=8.0),
    Fault("truncate a file", _truncate_file, copies=False, hold_s=8.0),
    Fault("remove the sockets", _remove_sockets, copies=True),
    Fault("exhaust descriptors", _exhaust_descriptors, copies=True, hold_s=5.0),
)
