"""Every verb of target `local`, interrupted at random moments: what is left, and does it go on?

    python benchmarks/interruptions.py --moments 50
    python benchmarks/interruptions.py --moments 5 --verbs destroy rollback --output json

A verb runs as a process of its own, as a user starts it, and is sent SIGINT or SIGKILL after a
random time within what the verb takes. Then three things are asked, without any help between them:

- the state is one of those that the verb may leave: the one before it, or the one after it;
- where a release is deployed its gateway answers as that release must;
- the same verb, called again, ends well and leaves what it should.

A failure is counted with its words; the exit code is 1 where there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from erless.deploy.desired_release import load_desired  # noqa: E402
from erless.deploy.local.supervisor.folder.state_folder import StateFolder  # noqa: E402
from erless.deploy.local.supervisor.replica.orphans import find_orphans  # noqa: E402
from erless.deploy.local.supervisor.spec import Timing  # noqa: E402
from erless.deploy.local.target import LocalTarget  # noqa: E402
from erless.dlrm.queries import QueryFile  # noqa: E402
from erless.dlrm.reference import Monolith  # noqa: E402
from erless.errors import ErlessError, NotDeployedError  # noqa: E402
from erless.progress import Silent  # noqa: E402
from erless.serve.protocol.client import QueryClient  # noqa: E402
from erless.specs.config import Config, LocalConfig, TargetsConfig  # noqa: E402
from tests.releases import Made, make_release  # noqa: E402

__all__ = ["CHANGES", "READS", "Place", "Sweep"]

WAIT_S = 60.0
SETTLE_S = 20.0  # what an interrupted verb began is undone, or completed, within
EXACT = 1e-5
SIGNALS = {"SIGINT": signal.SIGINT, "SIGKILL": signal.SIGKILL}
NOTHING = ""  # the "release" of a place where nothing is deployed
CHANGES = ("deploy first", "deploy second", "rollback", "destroy")
READS = ("status", "history", "logs", "predict")


class Place:
    """One state folder, two releases, and what each must answer."""

    def __init__(self, folder: Path) -> None:
        self.first = make_release(folder / "one", store=str(folder / "store"))
        self.second = make_release(folder / "two", store=str(folder / "store"), seed=1)
        self.state = folder / "state"
        self.config = folder / "erless.yaml"
        self.config.write_text(
            f"store: {self.first.store}\n"
            f"targets:\n  local:\n    state: {self.state}\n    poll_s: 0.2\n"
        )
        self.queries = self.first.queries
        options = LocalConfig(state=self.state, poll_s=0.2)
        config = Config(targets=TargetsConfig(local=options))
        self.target = LocalTarget(config, Timing(poll_s=0.2))
        self._query = QueryFile(self.queries)[0]
        self._expected = {
            made.release.digest: Monolith.load(made.bundle).predict(self._query)
            for made in (self.first, self.second)
        }

    def deploy(self, made: Made) -> None:
        """Make a release current, uninterrupted."""
        self.target.deploy(load_desired(made.store, made.release.digest), Silent(), WAIT_S)

    def destroy(self) -> None:
        """Leave nothing."""
        self.target.destroy(Silent(), WAIT_S)

    def current(self) -> str:
        """The digest of the release that is deployed; `NOTHING` where none is."""
        try:
            return self.target.status().release
        except NotDeployedError:
            return NOTHING

    def problem(self) -> str:
        """Why the deployment does not answer as it must; empty where it does."""
        try:
            status = self.target.status()
        except NotDeployedError:
            return ""
        with QueryClient(status.answering_url()) as client:
            answer = client.predict(self._query)
        expected = self._expected[answer.release]
        wrong = np.abs(answer.predictions - expected) > EXACT * np.abs(expected)
        return "a wrong answer" if wrong.any() else ""

    def leftovers(self) -> str:
        """What is left of a place where nothing is deployed: processes, or files."""
        orphans = find_orphans(self.state)
        for orphan in orphans:
            os.close(orphan.pidfd)
        if orphans:
            return f"{len(orphans)} processes are left"
        if StateFolder(self.state).supervisor_pid() is not None:
            return "a supervisor is left"
        return ""

    def command(self, verb: str) -> list[str]:
        """The words of a verb."""
        first, second = self.first.release.digest, self.second.release.digest
        words = {
            "deploy first": ["deploy", "--release", first],
            "deploy second": ["deploy", "--release", second],
            "rollback": ["rollback", first],
            "destroy": ["destroy", "--yes"],
            "status": ["status"],
            "history": ["history"],
            "logs": ["logs"],
            "predict": ["predict", str(self.queries)],
        }[verb]
        return [sys.executable, "-m", "erless", *words]

    def start(self, verb: str) -> subprocess.Popen[str]:
        """Run a verb as a process of its own."""
        return subprocess.Popen(
            self.command(verb),
            cwd=self.config.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@dataclass
class Sweep:
    """One verb and one signal: at how many moments, what was left, what went wrong."""

    verb: str
    signal: str
    takes_s: float = 0.0
    moments: int = 0
    left: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def run(self, place: Place, moments: int, generator: random.Random) -> None:
        """Interrupt the verb `moments` times, at random moments of what it takes."""
        before, after = self._states(place)
        self._prepare(place)
        if fault := self._again(place, after):
            self.faults.append(f"uninterrupted: {fault}")
        for _ in range(moments):
            after_s = generator.uniform(0, self.takes_s)
            try:
                self._prepare(place)
                fault = self._interrupt(place, after_s, before, after)
            except (ErlessError, OSError, subprocess.SubprocessError) as error:
                fault = f"{type(error).__name__}: {error}"
            self.moments += 1
            if fault:
                self.faults.append(f"after {after_s:.3f} s: {fault}")

    def _states(self, place: Place) -> tuple[str, str]:
        first, second = place.first.release.digest, place.second.release.digest
        return {
            "deploy first": (NOTHING, first),
            "deploy second": (first, second),
            "rollback": (second, first),
            "destroy": (first, NOTHING),
        }.get(self.verb, (first, first))

    def _prepare(self, place: Place) -> None:
        """The state from which the verb starts."""
        if self.verb == "deploy first":
            place.destroy()
        elif self.verb == "rollback":
            place.deploy(place.first)
            place.deploy(place.second)
        else:
            place.deploy(place.first)

    def _interrupt(self, place: Place, after_s: float, before: str, after: str) -> str:
        process = place.start(self.verb)
        time.sleep(after_s)
        process.send_signal(SIGNALS[self.signal])
        output, _ = process.communicate(timeout=WAIT_S)
        ended = process.returncode
        if ended not in (0, 130, -signal.SIGINT, -signal.SIGKILL):
            return f"exit code {ended}: {output[-300:]}"
        left = place.current()
        self.left["after" if left == after else "before"] += before != after
        if left not in (before, after) or (ended == 0 and left != after):
            return f"exit code {ended}, and it left {left[:12] or 'nothing'}"
        fault = place.problem()
        if left == NOTHING:
            fault = fault or _settled(place.leftovers)
        return fault or self._again(place, after)

    def _again(self, place: Place, after: str) -> str:
        """Call the verb, uninterrupted; how long it takes bounds the next moment."""
        began_s = time.perf_counter()
        again = place.start(self.verb)
        output, _ = again.communicate(timeout=WAIT_S)
        took_s = time.perf_counter() - began_s
        self.takes_s = (self.takes_s + took_s) / 2 if self.takes_s else took_s
        if again.returncode:
            return f"called again it fails: {output[-300:]}"
        left = place.current()
        if left != after:
            return f"called again it leaves {left[:12] or 'nothing'}"
        if fault := place.problem():
            return f"called again: {fault}"
        fault = place.leftovers() if after == NOTHING else ""
        if after == NOTHING and place.state.exists():
            fault = fault or "files are left"
        return fault and f"called again: {fault}"

    def document(self) -> dict[str, Any]:
        """One row of the table."""
        return {
            "verb": self.verb,
            "signal": self.signal,
            "takes_s": round(self.takes_s, 2),
            "moments": self.moments,
            "left_before": self.left["before"],
            "left_after": self.left["after"],
            "faults": self.faults,
        }


def _settled(problem: Callable[[], str]) -> str:
    """The problem that is still there after `SETTLE_S`."""
    deadline_s = time.monotonic() + SETTLE_S
    while (found := problem()) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=50, help="per verb and signal")
    parser.add_argument("--verbs", nargs="+", default=[*CHANGES, *READS])
    parser.add_argument("--signals", nargs="+", default=list(SIGNALS), choices=list(SIGNALS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", choices=("text", "json"), default="text")
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory(prefix="erless-interruptions-") as folder:
        place = Place(Path(folder))
        try:
            for verb in options.verbs:
                for name in options.signals:
                    sweep = Sweep(verb, name)
                    sweep.run(place, options.moments, random.Random(options.seed))  # noqa: S311
                    rows.append(sweep.document())
                    if options.output == "text":
                        print(_line(rows[-1]), flush=True)
        finally:
            place.destroy()
    if options.output == "json":
        print(json.dumps(rows, indent=2))
    return 1 if any(row["faults"] for row in rows) else 0


def _line(row: dict[str, Any]) -> str:
    line = (
        f"{row['verb']:14} {row['signal']:8} {row['takes_s']:5.2f} s  {row['moments']:3} moments: "
        f"{row['left_before']:3} before, {row['left_after']:3} after, {len(row['faults'])} faults"
    )
    return "\n".join([line, *(f"    {fault}" for fault in row["faults"])])


if __name__ == "__main__":
    sys.exit(main())
