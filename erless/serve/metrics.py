"""What a function counts, and its text for Prometheus.

Counting is plain arithmetic on the event loop's thread; the text (exposition format 0.0.4) is made
when it is asked for, of all workers of the function. Names: docs/functions.md.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from erless.specs.latency import BUCKETS_S

__all__ = ["Metrics"]

_COUNTERS = {
    "gathers": "rows gathered in this process",
    "bytes_received": "bytes of bodies that clients sent",
    "bytes_sent": "bytes of bodies sent to clients",
}
_GATEWAY_COUNTERS = {
    "fan_out": "calls to shards and the dense function",
    "coalesced": "queries answered together with others that came in the same moment",
    "degraded": "queries answered with default vectors",
    "cold_starts": "queries that waited for a function to start",
    "retries": "calls repeated because their connection died before an answer",
    "hedges": "second calls to a slow shard",
    "resends": "calls asked again on a new connection because a shard was silent",
    "silent_connections": "connections given up because no answer came on them",
}


class Metrics:
    """Counters of one process.

    Args:
        kind: of the function.
        digest: of the artifact that it serves.
        release: the gateway's and dense function's release, else "".
        version: of erless.
        clock: seconds, monotonic.
    """

    def __init__(
        self, kind: str, digest: str, release: str, version: str, clock: Callable[[], float]
    ) -> None:
        self.info = {"function": kind, "digest": digest, "release": release, "version": version}
        self._names = _COUNTERS | (_GATEWAY_COUNTERS if kind == "gateway" else {})
        self._clock = clock
        self.codes: dict[int, int] = {}
        self.kinds: dict[str, int] = {}
        self.unknown: dict[str, int] = {}  # feature → ids that no rule knows
        self.alerts: dict[str, int] = {}
        self._buckets = [0] * (len(BUCKETS_S) + 1)
        self._seconds = 0.0
        self.in_flight = 0
        self._concurrency = 0.0
        self._changed = clock()
        self.load_s = 0.0
        self._gauges: dict[str, tuple[str, Callable[[], Mapping[str, float]]]] = {}
        self.gathers = self.bytes_received = self.bytes_sent = 0
        self.fan_out = self.degraded = self.cold_starts = self.retries = self.hedges = 0
        self.resends = self.silent_connections = self.coalesced = 0
        self._elsewhere: dict[str, str] = {}  # counters that are kept by somebody else
        self._read_elsewhere: Callable[[], Sequence[int]] = tuple
        self._before: dict[str, int] = {}  # what a worker that crashed had of them
        # What the other workers of the function counted, as `counts` gives it.
        self.others: Callable[[], Sequence[dict[str, Any]]] = tuple

    def count_elsewhere(self, names: Mapping[str, str], read: Callable[[], Sequence[int]]) -> None:
        """Take counters in that somebody else keeps: name → meaning, and their values in order."""
        self._elsewhere, self._read_elsewhere = dict(names), read

    def begin(self) -> float:
        """An infer call has come; returns the time."""
        now = self._clock()
        self._concurrency += self.in_flight * (now - self._changed)
        self._changed = now
        self.in_flight += 1
        return now

    def end(self, began: float, code: int) -> float:
        """It is answered with status `code`; returns the seconds it took."""
        now = self._clock()
        self._concurrency += self.in_flight * (now - self._changed)
        self._changed = now
        self.in_flight -= 1
        self.codes[code] = self.codes.get(code, 0) + 1
        took = now - began
        self._seconds += took
        self._buckets[bisect_left(BUCKETS_S, took)] += 1
        return took

    def answered_at_once(self, began: float, gathers: int, received: int, sent: int) -> float:
        """A call that came at `began` was answered at once; returns the seconds it took."""
        now = self._clock()
        took = now - began
        self._concurrency += self.in_flight * (now - self._changed) + took
        self._changed = now
        self.codes[200] = self.codes.get(200, 0) + 1
        self._seconds += took
        self._buckets[bisect_left(BUCKETS_S, took)] += 1
        self.gathers += gathers
        self.bytes_received += received
        self.bytes_sent += sent
        return took

    def failed(self, kind: str) -> None:
        """Count an infer call, or a request that could not be read, that failed for `kind`."""
        self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def unknown_ids(self, counts: Mapping[str, int]) -> None:
        """Count the ids of a query that their features' rules do not know: feature → how many."""
        for name, count in counts.items():
            self.unknown[name] = self.unknown.get(name, 0) + count

    def alerted(self, kind: str) -> None:
        """Count something that nobody should have done, by the kind of its alert."""
        self.alerts[kind] = self.alerts.get(kind, 0) + 1

    def gauge(self, name: str, what: str, read: Callable[[], float]) -> None:
        """From now on tell also what `read` says, of this process alone."""
        self._gauges[name] = (what, lambda: {"": read()})

    def gauges(
        self, name: str, what: str, label: str, read: Callable[[], Mapping[str, float]]
    ) -> None:
        """As `gauge`, of several things: the value of `label` → what is told of it."""
        self._gauges[name] = (
            what,
            lambda: {f'{{{label}="{key}"}}': value for key, value in read().items()},
        )

    def counts(self) -> dict[str, Any]:
        """Everything counted so far, for JSON."""
        now = self._clock()
        return {
            "codes": {str(code): count for code, count in self.codes.items()},
            "kinds": dict(self.kinds),
            "unknown": dict(self.unknown),
            "alerts": dict(self.alerts),
            "buckets": list(self._buckets),
            "seconds": self._seconds,
            "in_flight": self.in_flight,
            "concurrency": self._concurrency + self.in_flight * (now - self._changed),
            "load_s": self.load_s,
            **{name: getattr(self, name) for name in self._names},
            **{
                name: self._before.get(name, 0) + count
                for name, count in zip(self._elsewhere, self._read_elsewhere(), strict=True)
            },
        }

    def resume_from(self, counts: dict[str, Any]) -> None:
        """Begin at `counts`, where a worker that crashed stopped counting."""
        self.codes = {int(code): count for code, count in counts.get("codes", {}).items()}
        self.kinds = dict(counts.get("kinds", {}))
        self.unknown = dict(counts.get("unknown", {}))
        self.alerts = dict(counts.get("alerts", {}))
        self._buckets = list(counts.get("buckets", self._buckets))
        self._seconds = counts.get("seconds", 0.0)
        self._concurrency = counts.get("concurrency", 0.0)
        for name in self._names:
            setattr(self, name, counts.get(name, 0))
        self._before = {name: counts.get(name, 0) for name in self._elsewhere}

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        counts = self.counts()
        for other in self.others():
            counts = _sum(counts, other)
        return ("\n".join(self._lines(counts)) + "\n").encode()

    def _lines(self, counts: dict[str, Any]) -> Iterator[str]:
        labels = ",".join(f'{name}="{value}"' for name, value in self.info.items())
        yield from _metric("info", "gauge", "what runs here", [(f"{{{labels}}}", 1)])
        codes = [(f'{{code="{code}"}}', count) for code, count in sorted(counts["codes"].items())]
        yield from _metric("requests_total", "counter", "infer calls answered", codes)
        kinds = [(f'{{kind="{kind}"}}', count) for kind, count in sorted(counts["kinds"].items())]
        yield from _metric("errors_total", "counter", "requests that failed, by kind", kinds)
        unknown = sorted(counts["unknown"].items())
        features = [(f'{{feature="{name}"}}', count) for name, count in unknown]
        if features:
            yield from _metric(
                "unknown_ids_total", "counter", "ids that their feature does not know", features
            )
        alerts = [(f'{{kind="{kind}"}}', count) for kind, count in sorted(counts["alerts"].items())]
        if alerts:
            yield from _metric("alerts_total", "counter", "what nobody should do, by kind", alerts)
        yield "# HELP erless_request_seconds time that infer calls took"
        yield "# TYPE erless_request_seconds histogram"
        cumulative = list(accumulate(counts["buckets"]))
        for bound, count in zip(BUCKETS_S, cumulative, strict=False):
            yield f'erless_request_seconds_bucket{{le="{bound}"}} {count}'
        yield f'erless_request_seconds_bucket{{le="+Inf"}} {cumulative[-1]}'
        yield f"erless_request_seconds_sum {counts['seconds']}"
        yield f"erless_request_seconds_count {cumulative[-1]}"
        yield from _metric("in_flight", "gauge", "infer calls now", [("", counts["in_flight"])])
        yield from _metric(
            "concurrency_seconds_total",
            "counter",
            "integral of infer calls in flight over time",
            [("", counts["concurrency"])],
        )
        for name, meaning in (self._names | self._elsewhere).items():
            yield from _metric(f"{name}_total", "counter", meaning, [("", counts[name])])
        for name, (meaning, read) in self._gauges.items():
            yield from _metric(name, "gauge", meaning, list(read().items()))
        yield from _metric(
            "load_seconds", "gauge", "from process start to ready", [("", counts["load_s"])]
        )


def _sum(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Counts of two workers, added; of the load times the longer."""
    total: dict[str, Any] = {}
    for name, value in first.items():
        more = second.get(name, type(value)())
        if isinstance(value, dict):
            total[name] = {
                key: value.get(key, 0) + more.get(key, 0) for key in sorted({*value, *more})
            }
        elif isinstance(value, list):
            total[name] = [a + b for a, b in zip(value, more or [0] * len(value), strict=True)]
        else:
            total[name] = max(value, more) if name == "load_s" else value + more
    return total


def _metric(
    name: str, metric_type: str, meaning: str, samples: Sequence[tuple[str, float]]
) -> Iterator[str]:
    yield f"# HELP erless_{name} {meaning}"
    yield f"# TYPE erless_{name} {metric_type}"
    for labels, value in samples:
        yield f"erless_{name}{labels} {value}"
