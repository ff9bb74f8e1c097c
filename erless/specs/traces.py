"""Published traces as traffic: a closed list of formats, each read line by line.

    autothrottle   a rate per line for each second, as microsoft/autothrottle has it (traces/*.txt)
    azure-2021     Azure Functions' invocations, two weeks of 2021: a CSV of app, func,
                   end_timestamp and duration; an invocation counts in the second that it began
    alibaba-2021   MSRTQps of Alibaba's microservices v2021: a CSV of timestamp (ms), msname,
                   msinstanceid, metric and value; the calls/s received (providerRPC_MCR, HTTP_MCR)
    twitter        the Twitter stream as archived: a JSON object per line; those with a
                   timestamp_ms of their own (not deletions) count in their second

`FORMAT:FILE#NAME` takes only the rows of one app (azure-2021) or msname (alibaba-2021).
A file is hostile until parsed: lines, rows and the time that they span are bounded, and a wrong
value is told by its line.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from erless.errors import TrafficError
from erless.storage.atomic import os_errors

__all__ = ["FORMATS", "PublishedTrace", "read_published"]

Floats = NDArray[np.float64]
FORMATS = ("autothrottle", "azure-2021", "alibaba-2021", "twitter")
LINE_BYTES = 1 << 20  # of a tweet with everything that it quotes
MOST_ROWS = 200_000_000
MOST_STEPS = 60 * 86_400  # seconds in two months
LARGEST = 1e15  # milliseconds since 1970 are 1.8e12
RECEIVED = ("providerRPC_MCR", "HTTP_MCR")


class PublishedTrace(NamedTuple):
    """Rates from the trace's first second on.

    qps: (n,) requests/s, each for `step_s`. counted: whether they are counts of single requests,
    not averages.
    """

    qps: Floats
    step_s: float
    counted: bool


def read_published(kind: str, path: Path, name: str = "") -> PublishedTrace:
    """The trace at `path`, which is in one of `FORMATS`.

    Args:
        kind: the format.
        path: of the file.
        name: the app or microservice whose rows count; empty: of all.

    Raises:
        ArtifactError: no such file.
        TrafficError: it is not in that format, has no rows, or spans too long a time.
    """
    if name and kind not in ("azure-2021", "alibaba-2021"):
        raise TrafficError(f"{path}: {kind} has no names to choose {name!r} from")
    with os_errors(path, "read"):
        if kind == "autothrottle":
            return _autothrottle(path)
        if kind == "azure-2021":
            return _counted(path, _azure(path, name))
        if kind == "twitter":
            return _counted(path, _twitter(path))
        return _alibaba(path, name)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, none longer than `LINE_BYTES`."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LINE_BYTES + 1):
            number += 1
            if len(line) > LINE_BYTES:
                raise TrafficError(f"{path}: line {number} is longer than {LINE_BYTES:,} bytes")
            if number > MOST_ROWS:
                raise TrafficError(f"{path}: more than {MOST_ROWS:,} lines")
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise TrafficError(f"{path}: line {number} is not UTF-8") from error


def _number(path: Path, line: int, what: str, text: str | None) -> float:
    """A number, of a size that a time or a rate may have."""
    try:
        value = float(text if text is not None else "")
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST:
        raise TrafficError(f"{path}: line {line}: {what} is {text!r}, not a number")
    return value


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """The values of `columns` in each row of a CSV whose first line names them."""
    places: list[int] = []
    for number, line in _lines(path):
        try:
            fields = next(csv.reader([line]), [])
        except csv.Error as error:
            raise TrafficError(f"{path}: line {number} is not CSV ({error})") from error
        if not places:
            missing = [name for name in columns if name not in fields]
            if missing:
                raise TrafficError(f"{path}: its first line names no column {missing[0]!r}")
            places = [fields.index(name) for name in columns]
        elif fields:
            if len(fields) <= max(places):
                raise TrafficError(f"{path}: line {number} has only {len(fields)} values")
            yield number, [fields[place] for place in places]


def _autothrottle(path: Path) -> PublishedTrace:
    rates = []
    for number, line in _lines(path):
        if not line:
            continue
        rate = _number(path, number, "the rate", line)
        if rate < 0:
            raise TrafficError(f"{path}: line {number}: a rate of {rate:g} is below 0")
        rates.append(rate)
        if len(rates) > MOST_STEPS:
            raise TrafficError(f"{path}: more than {MOST_STEPS:,} seconds")
    if not rates:
        raise TrafficError(f"{path}: no rates")
    return PublishedTrace(np.array(rates, np.float64), 1.0, counted=False)


def _azure(path: Path, name: str) -> Iterator[tuple[int, int]]:
    for number, row in _rows(path, ("app", "end_timestamp", "duration")):
        app, end, lasted = row
        if not name or app == name:
            end_s = _number(path, number, "end_timestamp", end)
            yield number, math.floor(end_s - _number(path, number, "duration", lasted))


def _twitter(path: Path) -> Iterator[tuple[int, int]]:
    for number, line in _lines(path):
        if not line:
            continue
        try:
            tweet = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TrafficError(f"{path}: line {number} is not JSON") from error
        stamp = tweet.get("timestamp_ms") if isinstance(tweet, dict) else None
        if stamp is not None:
            yield number, math.floor(_number(path, number, "timestamp_ms", str(stamp)) / 1e3)


def _counted(path: Path, events: Iterator[tuple[int, int]]) -> PublishedTrace:
    """Requests by second, from the seconds that they came in."""
    counts: dict[int, int] = {}
    for number, second in events:
        counts[second] = counts.get(second, 0) + 1
        if len(counts) > MOST_STEPS:
            raise TrafficError(f"{path}: line {number}: more than {MOST_STEPS:,} seconds")
    if not counts:
        raise TrafficError(f"{path}: no requests")
    first, last = min(counts), max(counts)
    if last - first >= MOST_STEPS:
        raise TrafficError(f"{path}: it spans {last - first:,} s, more than {MOST_STEPS:,}")
    seconds = np.zeros(last - first + 1)
    for second, count in counts.items():
        seconds[second - first] = count
    return PublishedTrace(seconds, 1.0, counted=True)


def _alibaba(path: Path, name: str) -> PublishedTrace:
    rates: dict[float, float] = {}
    for number, row in _rows(path, ("timestamp", "msname", "metric", "value")):
        stamp, service, metric, value = row
        if metric not in RECEIVED or (name and service != name):
            continue
        at_s = _number(path, number, "timestamp", stamp) / 1e3
        rate = _number(path, number, metric, value)
        if rate < 0:
            raise TrafficError(f"{path}: line {number}: {metric} of {rate:g} is below 0")
        rates[at_s] = rates.get(at_s, 0.0) + rate
        if len(rates) > MOST_STEPS:
            raise TrafficError(f"{path}: line {number}: more than {MOST_STEPS:,} times")
    if not rates:
        raise TrafficError(f"{path}: no {' or '.join(RECEIVED)}" + (f" of {name}" * bool(name)))
    times = np.array(sorted(rates))
    step_s = float(np.median(np.diff(times))) if len(times) > 1 else 60.0
    places = np.rint((times - times[0]) / step_s).astype(np.int64)
    if places[-1] >= MOST_STEPS:
        raise TrafficError(f"{path}: it spans {times[-1] - times[0]:,.0f} s")
    qps = np.zeros(int(places[-1]) + 1)
    for place, at_s in zip(places, times, strict=True):
        qps[place] += rates[float(at_s)]
    return PublishedTrace(qps, step_s, counted=False)
