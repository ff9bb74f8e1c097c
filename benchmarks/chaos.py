"""Faults without end against a deployment under load: what fails, what is wrong, what heals.

    python benchmarks/chaos.py --minutes 15
    python benchmarks/chaos.py --minutes 1 --faults "kill a shard" "stop a gateway" --output json

A small model runs on target `local`, two replicas of every function but the frozen one. Clients
query it at a third of what it can, on a clock, and compare every answer with the monolith's. In
turns, in random order, one thing after the other is broken, held so for a while where that is its
nature, and let go. From then on nobody helps: no verb is called. A fault has healed when every
function has the replicas that it wants and queries are answered rightly.

Queries that fail while a fault without a second copy lasts (a gateway that had them in flight, a
file that all replicas map) are counted apart: nothing could have answered them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from erless.deploy.desired_release import load_desired  # noqa: E402
from erless.deploy.local.faults import LocalReplica  # noqa: E402
from erless.deploy.local.supervisor.client import call  # noqa: E402
from erless.deploy.local.supervisor.folder.locks import WATCHDOG_LOCK, lock_holder  # noqa: E402
from erless.deploy.local.supervisor.folder.state_folder import StateFolder  # noqa: E402
from erless.deploy.local.supervisor.replica.liveness import read_process  # noqa: E402
from erless.deploy.local.supervisor.replica.orphans import find_orphans  # noqa: E402
from erless.deploy.local.target import LocalTarget  # noqa: E402
from erless.dlrm.queries import Query, QueryFile, write_queries  # noqa: E402
from erless.dlrm.reference import Monolith  # noqa: E402
from erless.errors import ErlessError  # noqa: E402
from erless.pack.packer import Packer  # noqa: E402
from erless.progress import Silent  # noqa: E402
from erless.serve.protocol.client import QueryClient  # noqa: E402
from erless.specs.churn import FaultKind  # noqa: E402
from erless.specs.config import Config, LocalConfig, TargetsConfig  # noqa: E402
from erless.specs.plan import Plan, Scaling  # noqa: E402
from erless.specs.stored import load_shard  # noqa: E402
from erless.storage.stores import open_store  # noqa: E402
from tests.releases import (  # noqa: E402
    TIERS,
    default_model,
    make_inputs,
    make_plan,
    random_query,
)

__all__ = ["FAULTS", "Fault", "Load", "Site"]

CLIENTS = 4
TIMEOUT_S = 10.0  # of a query: what takes longer has failed
LATE_S = 1.0
HEAL_S = 90.0  # what has not healed after so long has not
CALM_S = 4.0  # between two faults
EXACT = 1e-5
SHARE = 1 / 3  # of what the deployment can
COPIES = 2


class Sent(NamedTuple):
    """One query: when it was sent, when it was over, and what became of it."""

    begun_s: float
    done_s: float
    fault: str
    wrong: bool


class Load:
    """Clients that query on a clock, and compare each answer with the monolith's."""

    def __init__(self, url: str, queries: list[Query], expected: list[np.ndarray]) -> None:
        self._url, self._queries, self._expected = url, queries, expected
        self.sent: list[Sent] = []
        self._end = threading.Event()
        self._threads: list[threading.Thread] = []

    def capacity(self, seconds: float) -> float:
        """Queries per second that all clients get answered, one after the other."""
        until_s = time.monotonic() + seconds
        counts = [0] * CLIENTS

        def run(number: int) -> None:
            with QueryClient(self._url, timeout_s=TIMEOUT_S) as client:
                while time.monotonic() < until_s:
                    client.predict(self._queries[counts[number] % len(self._queries)])
                    counts[number] += 1

        threads = [threading.Thread(target=run, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / seconds

    @contextmanager
    def running(self, rate: float) -> Iterator[None]:
        """Send `rate` queries per second until the block ends."""
        self._threads = [
            threading.Thread(target=self._run, args=(number, rate)) for number in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._end.set()
            for thread in self._threads:
                thread.join()

    def _run(self, number: int, rate: float) -> None:
        began_s, count = time.monotonic(), 0
        client = QueryClient(self._url, timeout_s=TIMEOUT_S)
        while not self._end.is_set():
            due_s = began_s + (count * CLIENTS + number) / rate
            count += 1
            self._end.wait(max(0.0, due_s - time.monotonic()))
            begun_s = time.monotonic()
            if begun_s - due_s > LATE_S:  # a client that was held up does not make up for it
                count = round((begun_s - began_s) * rate / CLIENTS)
            index = (count * CLIENTS + number) % len(self._queries)
            fault, wrong = "", False
            try:
                answer = client.predict(self._queries[index])
            except (ErlessError, OSError, ValueError) as error:
                fault = f"{type(error).__name__}: {error}"
            else:
                expected = self._expected[index]
                errors = np.abs(answer.predictions - expected) > EXACT * np.abs(expected)
                wrong = bool(errors.any())
            self.sent.append(Sent(begun_s, time.monotonic(), fault, wrong))
        client.close()


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
    release = Packer(bundle, profile, folder / "plan.json", opened).pack().release
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


def _fill_disk(site: Site) -> Release:
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
    Fault("fill the disk", _fill_disk, copies=True, hold_s=8.0),
    Fault("take the store away", _remove_store, copies=True, hold_s=8.0),
    Fault("overwrite a file", _overwrite_file, copies=False, hold_s=8.0),
    Fault("truncate a file", _truncate_file, copies=False, hold_s=8.0),
    Fault("remove the sockets", _remove_sockets, copies=True),
    Fault("exhaust descriptors", _exhaust_descriptors, copies=True, hold_s=5.0),
)


@dataclass
class Outcome:
    """One fault: when it began, when it was let go of, when all was well again."""

    fault: Fault
    began_s: float
    released_s: float = 0.0
    healed_s: float | None = None
    problem: str = ""


@dataclass
class Run:
    """A run: faults in turns, for as long as it lasts."""

    site: Site
    seconds: float
    faults: Sequence[Fault]
    generator: random.Random
    outcomes: list[Outcome] = field(default_factory=list)

    def go(self) -> None:
        """Break things until the time is over."""
        until_s = time.monotonic() + self.seconds
        turn: list[Fault] = []
        while time.monotonic() < until_s:
            turn = turn or self.generator.sample(self.faults, len(self.faults))
            time.sleep(CALM_S)
            outcome = self._break(turn.pop())
            self.outcomes.append(outcome)
            healed_s = outcome.healed_s and outcome.healed_s - outcome.released_s
            words = f"healed in {healed_s:.1f} s" if healed_s else f"NOT: {outcome.problem}"
            print(f"{outcome.fault.name:22} {words}", file=sys.stderr, flush=True)

    def _break(self, fault: Fault) -> Outcome:
        outcome = Outcome(fault, time.monotonic())
        release = fault.inject(self.site)
        time.sleep(fault.hold_s)
        release()
        outcome.released_s = time.monotonic()
        time.sleep(0.3)  # until the kernel has told whoever watches
        while time.monotonic() < outcome.released_s + HEAL_S:
            outcome.problem = self.site.problem()
            if not outcome.problem:
                outcome.healed_s = time.monotonic()
                break
            time.sleep(0.1)
        return outcome


def _table(run: Run, sent: Sequence[Sent]) -> list[dict[str, Any]]:
    """One row per fault: queries that were under way while it lasted, and what became of them."""
    rows = []
    for fault in run.faults:
        outcomes = [outcome for outcome in run.outcomes if outcome.fault is fault]
        if not outcomes:
            continue
        due = [query for outcome in outcomes for query in sent if _lasts(outcome, query)]
        healed = [o.healed_s - o.released_s for o in outcomes if o.healed_s is not None]
        rows.append(
            {
                "fault": fault.name,
                "second_copy": fault.copies,
                "times": len(outcomes),
                "healed": len(healed),
                "heal_s": round(statistics.median(healed), 2) if healed else None,
                "heal_most_s": round(max(healed), 2) if healed else None,
                "queries": len(due),
                "failed": sum(bool(query.fault) for query in due),
                "wrong": sum(query.wrong for query in due),
                "slowest_s": round(max((q.done_s - q.begun_s for q in due), default=0.0), 2),
                "reasons": sorted({query.fault[:90] for query in due if query.fault})[:3],
            }
        )
    return rows


def _lasts(outcome: Outcome, query: Sent) -> bool:
    """The fault lasted while the query was under way."""
    end_s = outcome.healed_s or outcome.released_s + HEAL_S
    return query.done_s >= outcome.began_s and query.begun_s <= end_s


def _document(run: Run, sent: Sequence[Sent], capacity: float) -> dict[str, Any]:
    single = [outcome for outcome in run.outcomes if not outcome.fault.copies]
    counted = [query for query in sent if not any(_lasts(outcome, query) for outcome in single)]
    failed = sum(bool(query.fault) for query in counted)
    return {
        "capacity_qps": round(capacity, 1),
        "queries": len(sent),
        "failed": sum(bool(query.fault) for query in sent),
        "wrong": sum(query.wrong for query in sent),
        "counted": len(counted),
        "counted_failed": failed,
        "counted_failed_percent": round(100 * failed / max(1, len(counted)), 4),
        "counted_wrong": sum(query.wrong for query in counted),
        "faults": len(run.outcomes),
        "healed": sum(outcome.healed_s is not None for outcome in run.outcomes),
        "table": _table(run, sent),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, and return 1 where something did not heal or was answered wrongly."""
    names = [fault.name for fault in FAULTS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--faults", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", choices=("text", "json"), default="text")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="erless-chaos-"))
    site = Site(folder)
    try:
        load = Load(site.url, site.queries, site.expected)
        capacity = load.capacity(5.0)
        faults = [fault for fault in FAULTS if fault.name in options.faults]
        if not site.small_disk:
            faults = [fault for fault in faults if fault.inject is not _fill_disk]
        generator = random.Random(options.seed)  # noqa: S311
        run = Run(site, 60 * options.minutes, faults, generator)
        with load.running(capacity * SHARE):
            run.go()
            time.sleep(CALM_S)
    finally:
        site.close()
        shutil.rmtree(folder, ignore_errors=True)
    document = _document(run, load.sent, capacity)
    print(json.dumps(document, indent=2) if options.output == "json" else _text(document))
    return 0 if document["healed"] == document["faults"] and not document["wrong"] else 1


def _text(document: dict[str, Any]) -> str:
    lines = [
        f"{'fault':22} {'copy':>4} {'times':>5} {'healed':>6} {'in s':>6} {'most':>6} "
        f"{'queries':>8} {'failed':>6} {'wrong':>5} {'slowest s':>9}"
    ]
    lines += [
        f"{row['fault']:22} {'yes' if row['second_copy'] else 'no':>4} {row['times']:5} "
        f"{row['healed']:6} {row['heal_s'] or 0:6.2f} {row['heal_most_s'] or 0:6.2f} "
        f"{row['queries']:8} {row['failed']:6} {row['wrong']:5} {row['slowest_s']:9.2f}"
        for row in document["table"]
    ]
    lines += [
        f"  {row['fault']}: {reason}" for row in document["table"] for reason in row["reasons"]
    ]
    summary = {name: value for name, value in document.items() if name != "table"}
    return "\n".join([*lines, ", ".join(f"{name} {value}" for name, value in summary.items())])


if __name__ == "__main__":
    sys.exit(main())
