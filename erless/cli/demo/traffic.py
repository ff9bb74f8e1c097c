"""Queries on their way: an open loop of phases, and one query after the other.

Every answer is compared with the monolith's. Latency runs from the moment a query was due.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock, local

import numpy as np
import psutil
from numpy.typing import NDArray

from erless.cli.demo.inputs import Prepared
from erless.dlrm.queries import Query
from erless.errors import ErlessError
from erless.observe.queries import QueryOutcomes
from erless.serve.protocol.client import Answered, QueryClient

__all__ = ["Answers", "arrivals", "cpu_per_query", "one_by_one", "open_loop", "relative_error"]

CLIENTS = 16
WARM = 32  # queries before CPU is measured
Floats = NDArray[np.float64]


@dataclass
class Answers:
    """What came back, in the order in which it was due."""

    due_s: list[float] = field(default_factory=list)
    latency_s: list[float] = field(default_factory=list)
    failure: list[str] = field(default_factory=list)
    degraded: list[bool] = field(default_factory=list)
    cold: list[bool] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def add(
        self,
        due_s: float,
        latency_s: float,
        answer: Answered | None,
        error: float,
        failure: str = "",
    ) -> None:
        """One query."""
        self.due_s.append(due_s)
        self.latency_s.append(latency_s if answer is not None else float("nan"))
        self.failure.append(failure)
        self.degraded.append(answer is not None and answer.degraded)
        self.cold.append(answer is not None and answer.cold_start)
        if answer is not None:
            self.errors.append(error)

    def extend(self, others: Answers, shift_s: float) -> None:
        """Add `others`, which were due `shift_s` later than they say."""
        self.due_s += [due_s + shift_s for due_s in others.due_s]
        for name in ("latency_s", "failure", "degraded", "cold", "errors"):
            getattr(self, name).extend(getattr(others, name))

    def log(self) -> QueryOutcomes:
        """As columns."""
        return QueryOutcomes(
            due_s=np.array(self.due_s),
            latency_s=np.array(self.latency_s),
            failure=self.failure,
            degraded=np.array(self.degraded, bool),
            cold=np.array(self.cold, bool),
        )


def relative_error(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest over the samples of a query."""
    difference = np.abs(actual.astype(np.float64) - expected)
    return float((difference / np.maximum(np.abs(expected), 1e-12)).max(initial=0.0))


def arrivals(phases: Sequence[tuple[float, float]], seed: int = 0) -> Floats:
    """When queries are due: Poisson, at `(queries/s, seconds)` one phase after the other."""
    generator = np.random.default_rng(seed)
    due, begin = [], 0.0
    for rate, seconds in phases:
        count = generator.poisson(rate * seconds)
        due.append(begin + np.sort(generator.random(count)) * seconds)
        begin += seconds
    return np.concatenate(due) if due else np.empty(0)


def open_loop(
    urls: Sequence[str],
    queries: Sequence[Query],
    expected: Sequence[NDArray[np.float32]],
    due_s: Floats,
) -> Answers:
    """Send a query at each of `due_s`, without waiting for the answers to earlier ones.

    Each of `urls` has as many clients.
    """
    answers, lock = Answers(), Lock()
    clients = local()
    pending = iter(enumerate(due_s.tolist()))
    start = time.monotonic()

    def work(number: int) -> None:
        clients.own = QueryClient(urls[number % len(urls)])
        with clients.own as client:
            while True:
                with lock:
                    place, due = next(pending, (-1, 0.0))
                if place < 0:
                    return
                time.sleep(max(0.0, start + due - time.monotonic()))
                index = place % len(queries)
                try:
                    answer = client.predict(queries[index])
                except ErlessError as error:
                    with lock:
                        answers.add(due, 0.0, None, 0.0, str(error))
                    continue
                took = time.monotonic() - start - due
                error_found = relative_error(answer.predictions, expected[index])
                with lock:
                    answers.add(due, took, answer, error_found)

    with ThreadPoolExecutor(CLIENTS) as pool:
        for client_result in [pool.submit(work, number) for number in range(CLIENTS)]:
            client_result.result()
    return answers


def one_by_one(
    url: str, queries: Sequence[Query], expected: Sequence[NDArray[np.float32]], count: int
) -> tuple[Answers, list[NDArray[np.float32]]]:
    """`count` queries, each sent when the one before is answered; answers and predictions."""
    answers = Answers()
    predictions = []
    start = time.monotonic()
    with QueryClient(url) as client:
        for index in itertools.islice(itertools.cycle(range(len(queries))), count):
            due = time.monotonic() - start
            answer = client.predict(queries[index])
            error = relative_error(answer.predictions, expected[index])
            answers.add(due, answer.took_s, answer, error)
            predictions.append(answer.predictions)
    return answers, predictions


def cpu_per_query(
    url: str, prepared: Prepared, pids: Callable[[], list[int]]
) -> tuple[float, Answers, list[NDArray[np.float32]]]:
    """CPU of the processes `pids` per query, in ms, with one query at a time."""
    one_by_one(url, prepared.queries, prepared.expected, min(WARM, len(prepared.queries)))
    running = [psutil.Process(pid) for pid in pids()]
    before = _cpu_s(running)
    count = prepared.calm
    answers, predictions = one_by_one(url, prepared.queries, prepared.expected, count)
    return (_cpu_s(running) - before) * 1e3 / count, answers, predictions


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        if process.is_running():
            times = process.cpu_times()
            total += times.user + times.system
    return total
