"""A supervisor with toy functions: what its tests share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

from erless.deploy.local.supervisor.client import command
from erless.deploy.local.supervisor.folder.state_folder import StateFolder
from erless.deploy.local.supervisor.replica.admin import get_admin, parse_counters
from erless.deploy.local.supervisor.replica.orphans import end_all, find_orphans
from erless.deploy.local.supervisor.spec import FunctionSpec, ReleaseSpec, StoredState, Timing
from erless.specs.plan import Scaling

QUICK = {"window_s": 2.0, "grace_s": 0.2}
MODULE = "erless.deploy.local.supervisor"
WAIT_S = 60.0  # generous: the machine may be busy
TIMING = Timing(poll_s=0.1, backoff_s=0.1, backoff_most_s=1.0)


def function(kind: str, name: str, digest: str, **more: Any) -> FunctionSpec:
    scaling = Scaling.model_validate({**QUICK, **more.pop("scaling", {})})
    return FunctionSpec(
        key=f"{kind}-{digest}",
        name=name,
        kind=kind,
        tier="",
        digest=digest.ljust(64, "0"),
        module="tests.deploy.toy",
        env=more,
        scaling=scaling,
    )


def release(
    name: str, shared: str = "a1", gateway: dict[str, Any] | None = None, **cold: str
) -> ReleaseSpec:
    """A hot shard, a frozen one and a gateway that says `name`; `cold`: the frozen one's env."""
    return ReleaseSpec(
        key=f"key-{name}",
        release=name.ljust(64, "0"),
        deployed_at="",
        functions=(
            function("sparse", "hot-0", shared),
            function(
                "sparse", "frozen", f"f{name}", scaling={"min_scale": 0, "initial_scale": 0}, **cold
            ),
            function(
                "gateway",
                "gateway",
                f"g{name}",
                TOY_NAME=name,
                scaling={"metric": "concurrency", "target": 2, "max_scale": 3},
                **(gateway or {}),
            ),
        ),
    )


class Box:
    """One state folder, and the calls that its supervisor answers."""

    def __init__(self, path: Path) -> None:
        self.folder = StateFolder(path)

    def deploy(self, release: ReleaseSpec, timeout_s: float = WAIT_S, **settings: Any) -> str:
        """The URL."""
        done = command(
            self.folder,
            {
                "do": "deploy",
                "release": release.model_dump(mode="json"),
                "settings": StoredState(timing=TIMING, **settings).model_dump(mode="json"),
            },
            timeout_s,
        )
        return f"http://127.0.0.1:{done['port']}/infer"

    def status(self) -> dict[str, Any]:
        facts: dict[str, Any] = command(self.folder, {"do": "status"}, WAIT_S)
        return facts

    def function(self, name: str) -> dict[str, Any]:
        functions = self.status()["functions"]
        return next(facts for facts in functions if facts["name"] == name)

    def until(self, name: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until `holds` is true of the facts of function `name`, and return them."""
        deadline = time.monotonic() + WAIT_S
        while not holds(facts := self.function(name)):
            assert time.monotonic() < deadline, facts
            time.sleep(0.05)
        return facts

    def in_flight(self, name: str) -> float:
        """Calls that a function's replicas work on, by their own count."""
        facts = self.function(name)
        sockets = [
            self.folder.socket_path(f"{facts['key']}.{replica['slot']}")
            for replica in facts["replicas"]
        ]
        pages = [asyncio.run(get_admin(path, "/metrics", WAIT_S))[1] for path in sockets]
        return sum(parse_counters(page).in_flight for page in pages)

    def kill_supervisor(self) -> None:
        """By SIGKILL; its watchdog lives."""
        pid = self.folder.supervisor_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + WAIT_S
        while self.folder.supervisor_pid() == pid:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def kill_watched(self) -> None:
        """Kill the supervisor and its watchdog, so that nobody brings either back."""
        _kill_supervision(self.folder.path)

    def processes(self) -> int:
        """How many processes of functions there are, supervised or not."""
        processes = find_orphans(self.folder.path)
        for process in processes:
            os.close(process.pidfd)
        return sum(bool(process.function) for process in processes)

    def left_with(self, count: int) -> None:
        """Wait until so many processes of functions are left."""
        deadline = time.monotonic() + WAIT_S
        while self.processes() != count:
            assert time.monotonic() < deadline, self.processes()
            time.sleep(0.05)

    def end(self) -> None:
        """Whatever the test did, nothing is left."""
        kill_everything(self.folder.path)
        self.folder.close()


def until(done: Callable[[], bool]) -> None:
    """Wait until `done` says so."""
    deadline = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def supervision(state: Path) -> Iterator[int]:
    """Live supervisors and watchdogs of the folder `state`, those that just start among them."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if words[1:2] == ["-m"] and words[2].startswith(MODULE) and words[3] == str(state):
                yield int(entry.name)


def kill_everything(state: Path) -> None:
    """Kill the supervisor of the folder `state`, its watchdog and all functions, like a reboot."""
    _kill_supervision(state)
    end_all(state, 0.0)


def _kill_supervision(state: Path) -> None:
    while pids := list(supervision(state)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=WAIT_S) as answer:  # noqa: S310
        document: dict[str, Any] = json.loads(answer.read())
        return document


class Load:
    """Threads that query until the block ends: what they were told, and what went wrong."""

    def __init__(self, url: str, threads: int = 4) -> None:
        self.answers: list[str] = []
        self.errors: list[str] = []
        self._url, self._end = url, Event()
        self._threads = [Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                self.answers.append(get(self._url)["release"])
            except Exception as error:
                self.errors.append(repr(error))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
