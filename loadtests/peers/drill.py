"""The same drill on erless and on Ray Serve: replicas die and hang under one steady load.

    python -m loadtests.peers.drill --ray-python peers/bin/python --qps 20 --duration 60

Both serve the same model and split with two replicas of everything on this machine, and the same
generator compares every answer with the monolith's. Ray's replicas are found by their process
names; one counts as ready while its process lives and is not stopped. Without Ray erless alone is
drilled, and the last line says so (`loadtests.peers.compare` says how Ray is installed).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from erless.deploy.local.target import LocalTarget
from erless.errors import DeployError
from erless.observe.drill.run import Drill, Observed
from erless.observe.drill.run import drill as run_drill
from erless.observe.drill.summary import summary_lines
from erless.observe.loadtest.locust.process import Load
from erless.specs.churn import FaultKind, FaultSite, LiveReplica, parse_churn
from erless.specs.functions import FunctionKind
from loadtests.peers.compare import make, ray_serve
from loadtests.systems import local

REPLICAS = 2
SETTLE_S = 30.0
_REPLICA = re.compile(r"^ray::ServeReplica:rm:([\w.-]+)")
SIGNALS = {
    FaultKind.KILL: signal.SIGKILL,
    FaultKind.GATEWAY: signal.SIGKILL,
    FaultKind.HANG: signal.SIGSTOP,
}


@dataclass(frozen=True, slots=True)
class RayReplica:
    """A process of Ray's. See `erless.specs.churn.LiveReplica`."""

    function: str
    kind: FunctionKind
    name: str
    ready: bool
    age_s: float


class RayFaults:
    """Faults of the Ray Serve application below the process `root`."""

    kinds = frozenset(SIGNALS)
    shared = False

    def __init__(self, root: int) -> None:
        self._root = root
        self._stopped: list[int] = []

    def replicas(self) -> Sequence[RayReplica]:
        """See `FaultSite.replicas`."""
        found = []
        for process in psutil.Process(self._root).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                match = _REPLICA.match(" ".join(process.cmdline()))
                if match is None:
                    continue
                gone = process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
                kind: FunctionKind = "gateway" if match[1] == "Gateway" else "sparse"
                age_s = time.time() - process.create_time()
                found.append(RayReplica(match[1], kind, str(process.pid), not gone, age_s))
        return found

    def inject(self, kind: FaultKind, victim: LiveReplica) -> None:
        """See `FaultSite.inject`."""
        try:
            os.kill(int(victim.name), SIGNALS[kind])
        except ProcessLookupError:
            raise DeployError(f"process {victim.name} of {victim.function} is gone") from None
        if kind is FaultKind.HANG:
            self._stopped.append(int(victim.name))

    def answered(self, replica: LiveReplica) -> int:
        """See `FaultSite.answered`."""
        return 0

    def undo(self) -> None:
        """See `FaultSite.undo`."""
        for pid in self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextmanager
def _erless(store: Path, folder: Path) -> Iterator[tuple[str, FaultSite]]:
    with local(store, folder / "state") as system:
        target = system.target
        assert isinstance(target, LocalTarget)  # noqa: S101 - `local` opens one
        yield system.url, target.faults()


@contextmanager
def _ray(python: str, store: Path, folder: Path) -> Iterator[tuple[str, FaultSite]]:
    with ray_serve(python, store, folder, tuned=False, replicas=REPLICAS) as system:
        yield system.url, RayFaults(system.roots()[0])


def main() -> None:
    """Drill both, and print each one's faults and what queries noticed."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--rows", type=int, default=20_000, help="per table of RM1")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--churn", default="kill:4s,hang:20s,gateway:30s")
    parser.add_argument("--duration", type=float, default=60.0)
    parser.add_argument("--calm", type=float, default=15.0)
    parser.add_argument("--qps", type=float, default=20.0)
    parser.add_argument("--good-ms", type=float, default=1000.0)
    parser.add_argument("--ray-python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=Path("peer-drills"))
    options = parser.parse_args()
    plan = Drill(
        parse_churn(options.churn),
        calm_s=options.calm,
        faulty_s=options.duration,
        settle_s=SETTLE_S,
        good_ms=options.good_ms,
    )
    probe = [options.ray_python, "-c", "import ray.serve"]
    with_ray = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    with tempfile.TemporaryDirectory(prefix="erless-peers-") as made:
        folder = Path(made)
        model, store, expected = make(folder, options.rows, options.shards, REPLICAS)
        words = ["--queries", str(model / "queries.safetensors"), "--expected", str(expected)]
        words += ["--check-every", "1", "--deadline-ms", "30000"]
        systems = {"erless": _erless(store, folder)}
        if with_ray:
            systems["Ray Serve"] = _ray(options.ray_python, store, folder)
        for name, system in systems.items():
            with system as (url, site):
                load = Load(
                    url,
                    plan.duration_s,
                    f"constant:{options.qps:g}",
                    options=tuple(words),
                )
                out = options.out / name.lower().replace(" ", "-")
                observed = Observed(fields={"title": f"Drill of {name}"}, overwrite=True)
                result = run_drill(load, plan, site, out, observed)
            assert result.drill is not None  # noqa: S101 - a drill's result has it
            print(f"{name}\n" + "\n".join(summary_lines(result.drill)), flush=True)
    if not with_ray:
        print(f"\nRay Serve was left out: {options.ray_python} has no ray[serve]")


if __name__ == "__main__":
    main()
