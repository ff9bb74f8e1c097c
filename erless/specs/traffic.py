"""Traffic over time: shapes by name, or a recorded trace. Load tests and the simulator share it.

    constant:100          100 queries/s
    step:50,150,50        equal parts of the duration, one rate each
    ramp:10,200           from the first rate to the last, linearly
    spike:50,400          the first rate, but the second during the middle tenth
    diurnal:20,200        one sine wave per duration, lowest at both ends
    sawtooth:20,200       four rises from the first rate to the second, each falling at once
    trace.csv, .parquet   columns t_s and qps: each rate holds until the next row
    autothrottle:FILE     a published trace; also azure-2021, alibaba-2021, twitter (`traces.py`)
    0.1*…                 any of these with a tenth of its queries, drawn at random

Arrivals are a Poisson process of that rate: queries come whether or not earlier ones were answered.
Where a published trace counts single requests, as many come in each second. A trace is thinned to
rescale it; its time is never stretched, which would flatten its bursts.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.errors import TrafficError
from erless.specs.traces import FORMATS, read_published
from erless.storage.atomic import os_errors

__all__ = ["SHAPES", "Traffic", "parse_traffic", "read_trace"]

Floats = NDArray[np.float64]
SHAPES = ("constant", "step", "ramp", "spike", "diurnal", "sawtooth")
TEETH = 4
POINTS = 2000  # of a curved or sloped shape
GAP = 10  # times the usual distance of rows: a longer one is a gap


@dataclass(frozen=True)
class Traffic:
    """Queries per second as steps.

    Args:
        name: shown in reports.
        t_s: (n,) ascending seconds, the first 0: where each rate begins.
        qps: (n,) rates, 0 or more.
        duration_s: where the last rate ends.
        notes: what was assumed about a trace.
        counted: `qps` times its step is a count of queries, not an expectation.
    """

    name: str
    t_s: Floats
    qps: Floats
    duration_s: float
    notes: tuple[str, ...] = ()
    counted: bool = False

    def at(self, t_s: Floats | float) -> Floats:
        """Rate at each time; 0 after the end."""
        place = np.searchsorted(self.t_s, t_s, side="right") - 1
        inside = (np.asarray(t_s) >= 0) & (np.asarray(t_s) < self.duration_s)
        return np.asarray(np.where(inside, self.qps[np.maximum(place, 0)], 0.0))

    def expected(self, edges_s: Floats) -> Floats:
        """Expected queries between neighbouring `edges_s`, exactly: (n-1,)."""
        knots = np.append(self.t_s, self.duration_s)
        total = np.concatenate([[0.0], np.cumsum(self.qps * np.diff(knots))])
        return np.diff(np.interp(edges_s, knots, total))

    def arriving(self, expected: Floats, generator: np.random.Generator) -> NDArray[np.int64]:
        """Queries that come where so many are `expected`: a Poisson draw, or the count itself."""
        if self.counted:
            return np.asarray(np.floor(expected + generator.random(len(expected))), np.int64)
        return np.asarray(generator.poisson(expected), np.int64)

    def arrivals(self, generator: np.random.Generator, scale: float = 1.0) -> Floats:
        """Arrivals in ascending order, seconds; `scale` multiplies the rate."""
        knots = np.append(self.t_s, self.duration_s)
        expected = self.qps * scale * np.diff(knots)
        total = np.concatenate([[0.0], np.cumsum(expected)])
        if self.counted:
            count = self.arriving(expected, generator)
            place = np.repeat(np.arange(len(count)), count)
            inside = generator.random(len(place)) * np.diff(knots)[place]
            return np.sort(self.t_s[place] + inside)
        number = generator.poisson(total[-1])
        drawn = np.sort(generator.random(number)) * total[-1]
        place = np.searchsorted(total, drawn, side="right") - 1
        place = np.clip(place, 0, len(self.qps) - 1)
        rate = self.qps[place] * scale
        inside = (drawn - total[place]) / np.where(rate > 0, rate, np.inf)
        return np.asarray(self.t_s[place] + inside)

    def thinned(self, share: float, seed: int = 0) -> Traffic:
        """Each query stays with probability `share`, independently of all others.

        Raises:
            TrafficError: `share` is not above 0 and at most 1.
        """
        if not 0 < share <= 1:
            raise TrafficError(f"{self.name} cannot be thinned by {share:g}: 0 < share ≤ 1")
        qps = self.qps * share
        if self.counted:
            steps = np.diff(np.append(self.t_s, self.duration_s))
            counts = np.rint(self.qps * steps).astype(np.int64)
            qps = np.random.default_rng(seed).binomial(counts, share) / steps
        note = f"thinned at random: {share:g} of the queries"
        return replace(self, name=f"{share:g}*{self.name}", qps=qps, notes=(*self.notes, note))

    @property
    def queries(self) -> float:
        """Expected queries in all."""
        return float(self.expected(np.array([0.0, self.duration_s]))[0])

    @property
    def peak(self) -> float:
        """Highest rate."""
        return float(self.qps.max())


def parse_traffic(text: str, duration_s: float | None = None) -> Traffic:
    """A shape such as `step:50,150,50` over `duration_s`, or a trace; `SHARE*` before it thins it.

    >>> parse_traffic("step:10,30", 20).at(np.array([0.0, 9.9, 10.0, 20.0])).tolist()
    [10.0, 10.0, 30.0, 0.0]

    Raises:
        TrafficError: no such shape or trace, wrong rates, or a trace that cannot be replayed.
    """
    share, star, whole = text.partition("*")
    if star and _is_number(share):
        return parse_traffic(whole, duration_s).thinned(float(share))
    name, colon, rates_text = text.partition(":")
    if colon and name in FORMATS:
        return _published(name, rates_text, duration_s)
    if not colon or name not in SHAPES:
        if Path(text).suffix in (".csv", ".parquet"):
            return read_trace(Path(text), duration_s)
        raise TrafficError(
            f"traffic {text!r}: neither a trace (.csv, .parquet) nor a shape like "
            f"step:50,150; shapes are {', '.join(SHAPES)}; published traces are FORMAT:FILE with "
            f"{', '.join(FORMATS)}"
        )
    rates = _rates(text, rates_text)
    duration = 60.0 if duration_s is None else duration_s
    if not (math.isfinite(duration) and duration > 0):
        raise TrafficError(f"traffic {text!r}: a duration of {duration:g} s is not above 0")
    needed = {"constant": 1, "step": len(rates)}.get(name, 2)
    if len(rates) != needed:
        raise TrafficError(f"traffic {text!r}: {name} takes {needed} rates, found {len(rates)}")
    t_s, qps = _shape(name, rates, duration)
    return Traffic(text, t_s, qps, duration)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _published(kind: str, text: str, duration_s: float | None) -> Traffic:
    """A published trace, cut to `duration_s`."""
    place, _, name = text.partition("#")
    trace = read_published(kind, Path(place), name)
    length_s = len(trace.qps) * trace.step_s
    if duration_s is not None and duration_s < length_s:
        length_s = duration_s
    t_s = np.arange(len(trace.qps), dtype=np.float64) * trace.step_s
    keep = t_s < length_s
    counted = trace.counted and length_s % trace.step_s == 0
    title = f"{kind}:{Path(place).name}" + (f"#{name}" if name else "")
    return Traffic(title, t_s[keep], trace.qps[keep], length_s, (), counted)


def _rates(text: str, rates_text: str) -> list[float]:
    try:
        rates = [float(rate) for rate in rates_text.split(",")]
    except ValueError:
        raise TrafficError(f"traffic {text!r}: {rates_text!r} are not rates like 50,150") from None
    wrong = [rate for rate in rates if not (math.isfinite(rate) and rate >= 0)]
    if wrong:
        raise TrafficError(f"traffic {text!r}: a rate of {wrong[0]:g} queries/s is not 0 or more")
    return rates


def _shape(name: str, rates: Sequence[float], duration: float) -> tuple[Floats, Floats]:
    """Steps of a shape: where each begins, and its rate."""
    low, high = rates[0], rates[-1]
    if name in ("constant", "step"):
        return np.arange(len(rates)) * duration / len(rates), np.asarray(rates, np.float64)
    if name == "spike":
        return np.array([0, 0.45, 0.55]) * duration, np.array([low, high, low])
    part = (np.arange(POINTS) + 0.5) / POINTS
    if name == "ramp":
        height = part
    elif name == "sawtooth":
        height = part * TEETH % 1.0
    else:
        height = (1 - np.cos(2 * np.pi * part)) / 2
    return np.arange(POINTS) * duration / POINTS, low + (high - low) * height


def read_trace(path: Path, duration_s: float | None = None) -> Traffic:
    """A recorded trace: columns `t_s` (seconds, ascending) and `qps`; begins at its first row.

    The last rate holds for as long as rows usually do. A longer distance than usual is a gap: the
    rate before it holds, and a note says so.

    Raises:
        ArtifactError: no such file.
        TrafficError: not such a table, no rows, a time that is negative or out of order, a rate
            that is missing or negative.
    """
    with os_errors(path, "read"):
        columns = _columns(path)
    t_s, qps = columns
    if not len(t_s):
        raise TrafficError(f"{path}: no rows")
    for row, (at, rate) in enumerate(zip(t_s, qps, strict=True), 1):
        if not math.isfinite(at) or at < 0:
            raise TrafficError(f"{path}: row {row}: t_s is {at:g}: a time must be 0 or later")
        if not math.isfinite(rate) or rate < 0:
            raise TrafficError(f"{path}: row {row}: qps is {rate:g}: a rate must be 0 or more")
        if row > 1 and at <= t_s[row - 2]:
            raise TrafficError(f"{path}: row {row}: t_s is {at:g}, not after {t_s[row - 2]:g}")
    steps = np.diff(t_s)
    usual = float(np.median(steps)) if len(steps) else (duration_s or 60.0)
    notes = tuple(
        f"{path.name}: no rows from {t_s[i]:g} s to {t_s[i + 1]:g} s: {qps[i]:g} queries/s hold"
        for i in np.flatnonzero(steps > GAP * usual)
    )
    start = float(t_s[0])
    end = float(t_s[-1]) - start + usual
    keep = t_s - start < (duration_s or math.inf)
    return Traffic(path.name, (t_s - start)[keep], qps[keep], min(end, duration_s or end), notes)


def _columns(path: Path) -> tuple[Floats, Floats]:
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(path, columns=["t_s", "qps"])
            columns = {name: table.column(name).to_pylist() for name in ("t_s", "qps")}
        else:
            columns = _text_columns(path)
    except KeyError as error:
        raise TrafficError(f"{path}: no column {error}; a trace has t_s and qps") from error
    except ValueError as error:
        raise TrafficError(f"{path}: not a trace of t_s and qps ({error})") from error
    return _numbers(path, "t_s", columns["t_s"]), _numbers(path, "qps", columns["qps"])


def _text_columns(path: Path) -> dict[str, list[str]]:
    """The two columns of a table in text, by their names in its first line."""
    data = path.read_bytes()
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TrafficError(f"{path}: line {line} is not UTF-8") from error
    rows = list(csv.DictReader(lines))
    for row, fields in enumerate(rows, 1):
        if None in fields:
            raise TrafficError(f"{path}: row {row} has more values than the table has columns")
    return {name: [fields[name] for fields in rows] for name in ("t_s", "qps")}


def _numbers(path: Path, name: str, column: Sequence[Any]) -> Floats:
    """A column as numbers; NaN where a field is empty."""
    numbers = np.full(len(column), math.nan)
    for row, value in enumerate(column, 1):
        try:
            numbers[row - 1] = math.nan if value in (None, "") else float(value)
        except (TypeError, ValueError) as error:
            raise TrafficError(f"{path}: row {row}: {name} is {value!r}, not a number") from error
    return numbers
