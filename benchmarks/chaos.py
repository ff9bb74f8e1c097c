"""Faults without end against a deployment under load: what fails, what is wrong, what heals.

    python -m benchmarks.chaos --minutes 15
    python -m benchmarks.chaos --minutes 1 --faults "kill a shard" "stop a gateway" --output json

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
import json
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.chaos_site import (
    EXACT,
    FAULTS,
    HEAL_S,
    TIMEOUT_S,
    Fault,
    Site,
    fill_disk,
)
from erless.dlrm.queries import Query
from erless.errors import ErlessError
from erless.serve.protocol.client import QueryClient

__all__ = ["Load"]

CLIENTS = 4
LATE_S = 1.0
CALM_S = 4.0  # between two faults
SHARE = 1 / 3  # of what the deployment can


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
            faults = [fault for fault in faults if fault.inject is not fill_disk]
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
