"""Ask a replica through its admin socket: is it ready, what has it counted."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field

from erless.errors import ServeError

__all__ = ["Counters", "get_admin", "parse_counters"]

_LINE = re.compile(
    r"^erless_(requests_total|concurrency_seconds_total|request_seconds_bucket|cold_starts_total|"
    r"gathers_total|disk_reads_total|load_seconds|in_flight)"
    r'(?:\{(?:[^}]*?le="([^"]*)"[^}]*|[^}]*)\})? ([^ \n]+)',
    re.MULTILINE,
)
MAX_BYTES = 4 << 20


@dataclass(slots=True)
class Counters:
    """What one replica, or a function over all of its replicas, has counted so far.

    buckets: calls by upper bound in seconds, cumulative as Prometheus has them.
    """

    requests: float = 0.0
    concurrency_s: float = 0.0
    cold_starts: float = 0.0
    gathers: float = 0.0
    disk_reads: float = 0.0
    buckets: dict[float, float] = field(default_factory=dict)
    load_s: float = 0.0
    in_flight: float = 0.0

    def add(self, now: Counters, before: Counters) -> None:
        """Count what happened between two polls of one replica."""
        self.requests += max(0.0, now.requests - before.requests)
        self.concurrency_s += max(0.0, now.concurrency_s - before.concurrency_s)
        self.cold_starts += max(0.0, now.cold_starts - before.cold_starts)
        self.gathers += max(0.0, now.gathers - before.gathers)
        self.disk_reads += max(0.0, now.disk_reads - before.disk_reads)
        for bound, count in now.buckets.items():
            grown = max(0.0, count - before.buckets.get(bound, 0.0))
            self.buckets[bound] = self.buckets.get(bound, 0.0) + grown

    def copy(self) -> Counters:
        """A copy that later counts do not change."""
        return Counters(
            self.requests,
            self.concurrency_s,
            self.cold_starts,
            self.gathers,
            self.disk_reads,
            dict(self.buckets),
            self.load_s,
            self.in_flight,
        )

    def quantile_ms(self, share: float, since: Counters) -> float | None:
        """A latency quantile of the calls after `since`, within a bucket by a straight line."""
        bounds = sorted(self.buckets)
        counts = [self.buckets[bound] - since.buckets.get(bound, 0.0) for bound in bounds]
        if not counts or counts[-1] <= 0:
            return None
        rank, low, below = share * counts[-1], 0.0, 0.0
        for bound, count in zip(bounds, counts, strict=True):
            if count >= rank:
                if bound == float("inf"):
                    return low * 1e3
                part = (rank - below) / (count - below) if count > below else 1.0
                return (low + (bound - low) * part) * 1e3
            low, below = bound, count
        return low * 1e3


def parse_counters(text: str) -> Counters:
    """Read the lines of a `/metrics` page that scaling and status need.

    >>> parse_counters('erless_requests_total{code="200"} 5\\nerless_requests_total{code="503"} 1')
    Counters(requests=6.0, ...)
    """
    counters = Counters()
    for name, bound, number in _LINE.findall(text):
        value = float(number)
        match name:
            case "requests_total":
                counters.requests += value
            case "concurrency_seconds_total":
                counters.concurrency_s += value
            case "cold_starts_total":
                counters.cold_starts += value
            case "gathers_total":
                counters.gathers += value
            case "disk_reads_total":
                counters.disk_reads += value
            case "load_seconds":
                counters.load_s = value
            case "in_flight":
                counters.in_flight += value
            case _:
                key = float(bound)
                counters.buckets[key] = counters.buckets.get(key, 0.0) + value
    return counters


async def get_admin(path: str, target: str, timeout_s: float) -> tuple[int, str]:
    """GET `target` from the HTTP server on the unix socket `path`; status and body.

    Raises:
        ServeError: no answer in time, or not HTTP.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _get(path, target)
    except TimeoutError:
        raise ServeError(f"no answer in {timeout_s:g} s", 504, "deadline") from None
    except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise ServeError(f"no answer: {error}", 502, "shard") from error


async def _get(path: str, target: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(f"GET {target} HTTP/1.1\r\nhost: erless\r\nconnection: close\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ", 2)[1])
        fields = dict(line.lower().split(":", 1) for line in head[1:] if ":" in line)
        size = int(fields["content-length"]) if "content-length" in fields else -1
        if size > MAX_BYTES:
            raise ValueError(f"an answer of {size} bytes")
        body = await (reader.readexactly(size) if size >= 0 else reader.read(MAX_BYTES))
        return status, body.decode("utf-8", "replace")
    finally:
        writer.close()
