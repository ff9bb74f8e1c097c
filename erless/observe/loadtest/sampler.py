"""What runs while queries are sent: replicas and memory per function, asked every few seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.errors import ErlessError
from erless.observe.results import Event
from erless.specs.functions import FunctionKind
from erless.specs.result import FunctionResult, Usage

__all__ = ["FunctionSample", "Probe", "Sample", "Sampler", "columns_of", "usage", "usage_of"]

EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class FunctionSample:
    """One function at one moment, with the memory of all its replicas."""

    name: str
    kind: FunctionKind
    tier: str
    ready: int
    wanted: int
    rps: float
    p95_ms: float | None
    memory_bytes: int
    disk_bytes: int = 0
    disk_reads_s: float | None = None

    @classmethod
    def of(cls, function: object) -> FunctionSample:
        """The sample that a target's row of `status` is: it has all of these fields, and more."""
        return cls(**{field.name: getattr(function, field.name) for field in fields(cls)})


@dataclass(frozen=True, slots=True)
class Sample:
    """All functions at one moment. at_s: seconds since 1970."""

    at_s: float
    functions: tuple[FunctionSample, ...]
    model_wise_bytes: int = 0


Probe = Callable[[], tuple[Sequence[FunctionSample], int]]


class Sampler:
    """Asks `probe` in a thread of its own while its block runs.

    Args:
        probe: what runs now, and what as many whole models would hold.
        every_s: pause between two questions.
    """

    def __init__(self, probe: Probe | None, every_s: float = EVERY_S) -> None:
        self.samples: list[Sample] = []
        self.troubles: list[str] = []
        self._probe, self._every_s = probe, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Sampler:
        if self._probe is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def _run(self) -> None:
        while self._probe is not None and not self._stop.is_set():
            begin = time.time()
            try:
                functions, whole = self._probe()
            except ErlessError as error:  # the target is busy or gone: say so, go on asking
                if str(error) not in self.troubles:
                    self.troubles.append(str(error))
            else:
                self.samples.append(Sample((begin + time.time()) / 2, tuple(functions), whole))
            self._stop.wait(max(0.0, self._every_s - (time.time() - begin)))


def columns_of(samples: Sequence[Sample], start_s: float) -> dict[str, NDArray[Any]]:
    """The `FUNCTIONS` columns."""
    rows = [
        (round(sample.at_s - start_s, 3), function)
        for sample in samples
        for function in sample.functions
    ]
    return {
        "t_s": np.array([at for at, _ in rows], np.float64),
        "function": np.array([row.name for _, row in rows], object),
        "ready": np.array([row.ready for _, row in rows], np.int64),
        "wanted": np.array([row.wanted for _, row in rows], np.int64),
        "rps": np.array([row.rps for _, row in rows], np.float64),
        "p95_ms": np.array([np.nan if row.p95_ms is None else row.p95_ms for _, row in rows]),
        "memory_bytes": np.array([row.memory_bytes for _, row in rows], np.int64),
    }


def usage_of(samples: Sequence[Sample]) -> dict[str, Any]:
    """`RunResult` fields about what ran; samples are evenly spaced."""
    if not samples:
        return {}
    memory = [sum(function.memory_bytes for function in sample.functions) for sample in samples]
    replicas = [sum(function.ready for function in sample.functions) for sample in samples]
    by_name: dict[str, list[FunctionSample]] = {}
    for sample in samples:
        for function in sample.functions:
            by_name.setdefault(function.name, []).append(function)
    return {
        "memory_bytes": usage(memory),
        "replicas": usage(replicas),
        "functions": tuple(
            FunctionResult(
                name=name,
                kind=moments[0].kind,
                tier=moments[0].tier,
                replicas=usage([sample.ready for sample in moments], len(samples)),
                memory_bytes=usage([sample.memory_bytes for sample in moments], len(samples)),
                zero_share=1 - sum(sample.ready > 0 for sample in moments) / len(samples),
                **_disk_of(moments, len(samples)),
            )
            for name, moments in by_name.items()
        ),
    }


def _disk_of(moments: Sequence[FunctionSample], count: int) -> dict[str, Usage]:
    """`FunctionResult` fields about rows on disks; none where there are no such rows."""
    if not any(sample.disk_bytes for sample in moments):
        return {}
    return {
        "disk_bytes": usage([sample.disk_bytes for sample in moments], count),
        "disk_reads_s": usage([sample.disk_reads_s or 0.0 for sample in moments], count),
    }


def wakings(samples: Sequence[Sample], start_s: float) -> list[Event]:
    """Functions that went from zero replicas to some."""
    events = []
    before: dict[str, int] = {}
    for sample in samples:
        for function in sample.functions:
            if before.get(function.name) == 0 and function.ready > 0:
                events.append(Event(sample.at_s - start_s, "cold start", function.name, "woke"))
            before[function.name] = function.ready
    return events


def usage(values: Sequence[float], count: int | None = None) -> Usage:
    """Of evenly spaced samples; `count`: how many there were in all, absent ones counting 0."""
    return Usage(mean=sum(values) / (count or len(values)), peak=max(values))
