"""A model served on this machine, and what its processes use: for everything that compares."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from erless.deploy.desired_release import load_desired
from erless.deploy.local.supervisor.client import call
from erless.deploy.local.supervisor.folder.state_folder import StateFolder
from erless.deploy.local.supervisor.replica.memory import pss_bytes
from erless.deploy.target import Target
from erless.deploy.targets import open_target
from erless.dlrm.queries import QueryFile
from erless.observe.loadtest.encoded_queries import Body, Expected, build, read_expected
from erless.progress import Silent
from erless.specs.config import Config

__all__ = ["LocalSystem", "System", "Traffic", "cpu_seconds", "erless", "local"]

ROOT = Path(__file__).parents[1]
START_S = 180.0


def erless(*arguments: object) -> str:
    """Run the command line."""
    command = [sys.executable, "-m", "erless", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def cpu_seconds(pid: int) -> float:
    """CPU that all threads of a process have used; finer than the clock ticks of psutil.

    Raises:
        OSError: it is gone.
    """
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


@dataclass(frozen=True)
class Traffic:
    """The queries that every system gets, and the answers that are expected."""

    bodies: Sequence[Body]
    expected: Expected

    @classmethod
    def read(cls, queries: Path, expected: Path) -> Traffic:
        """The queries of a file, and the monolith's predictions of them."""
        bodies = [build(query, index) for index, query in enumerate(QueryFile(queries))]
        return cls(bodies, read_expected(expected, bodies[0].batch))


@dataclass
class System:
    """One way to serve, running. `roots` are the processes whose trees it is made of."""

    name: str
    url: str
    roots: Callable[[], list[int]]
    qps: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    failed: int = 0
    largest_error: float = 0.0
    memory_bytes: int = 0
    used_s: dict[tuple[int, float], float] = field(default_factory=dict)  # CPU by process

    def tree(self) -> list[psutil.Process]:
        """All processes now."""
        processes: dict[int, psutil.Process] = {}
        for root in self.roots():
            try:
                process = psutil.Process(root)
                for member in [process, *process.children(recursive=True)]:
                    processes[member.pid] = member
            except psutil.NoSuchProcess:
                continue
        return list(processes.values())

    def cpu_s(self) -> float:
        """CPU seconds that the tree has used; of a process that is gone, those last seen."""
        for process in self.tree():
            try:
                times = process.cpu_times()
                self.used_s[process.pid, process.create_time()] = times.user + times.system
            except psutil.NoSuchProcess:
                continue
        return sum(self.used_s.values())

    def pss(self) -> int:
        """Proportional memory of the tree."""
        return sum(pss_bytes(process.pid) for process in self.tree())

    def row(self) -> dict[str, Any]:
        """Medians, and the spread of the throughput."""
        return {
            "system": self.name,
            "qps": round(statistics.median(self.qps), 1),
            "qps_rounds": [round(value, 1) for value in self.qps],
            "cpu_ms_per_query": round(statistics.median(self.cpu_ms), 3),
            "cpu_ms_rounds": [round(value, 3) for value in self.cpu_ms],
            "p50_ms": round(statistics.median(self.p50_ms), 3),
            "p99_ms": round(statistics.median(self.p99_ms), 3),
            "memory_bytes": self.memory_bytes,
            "failed": self.failed,
            "largest_relative_error": self.largest_error,
        }


@dataclass
class LocalSystem(System):
    """A release on target local, whose functions can be told apart."""

    target: Target = field(kw_only=True)
    state: Path = field(kw_only=True)

    def functions(self) -> dict[int, str]:
        """Process → the plan's name of the function that it is a replica of."""
        facts = call(StateFolder(self.state), {"do": "status"}, START_S)
        return {
            int(replica["pid"]): str(function["name"])
            for function in facts["functions"]
            for replica in function["replicas"]
        }


@contextmanager
def local(store: Path, state: Path, *, limits: bool = False) -> Iterator[LocalSystem]:
    """erless on target local; `limits`: each replica held to its plan's vCPU and memory."""
    config = Config()
    target = config.targets.local.model_copy(update={"state": state, "limits": limits})
    config = config.model_copy(
        update={"targets": config.targets.model_copy(update={"local": target})}
    )
    opened = open_target("local", config)
    try:
        deployed = opened.deploy(load_desired(str(store)), Silent(), START_S)
        supervisor = next(
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if "erless.deploy.local.supervisor" in (process.info["cmdline"] or ())
            and str(state) in (process.info["cmdline"] or ())
        )
        yield LocalSystem("erless", deployed.url, lambda: [supervisor], target=opened, state=state)
    finally:
        opened.destroy(Silent(), START_S)
