"""Which rows queries ask for, as one gateway replica sees it: a share of them, sampled.

The event loop copies the row ids of a sampled query and counts how many go to which shard; all else
(sorting, sketches, writing to the store) is done by a thread, in batches, at intervals. What waits
for it is bounded: beyond `MOST_WAITING` ids a sampled query is dropped, and told so.
"""

from __future__ import annotations

import math
import random
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.heat_sketch import TableSketch, capacities
from erless.dlrm.lanes import Lanes
from erless.dlrm.rows import Buckets
from erless.errors import ErlessError
from erless.serve.files import OpenGateway, Source
from erless.serve.logs import Log
from erless.serve.metrics import Metrics
from erless.serve.protocol.forms import Lookup
from erless.serve.settings import Settings
from erless.specs.heat import UNITS, HeatSpill, HeatTable, publish_heat
from erless.storage.store import Store

__all__ = ["HeatSampler", "LiveHeat", "SampledQuery"]

Ints = NDArray[np.int64]
INTERVALS = 20  # whose gathers by shard are kept
MOST_WAITING = 8_000_000  # ids: 64 MB
FOLDED_IDS = 2_000_000  # that wait: they are worked in before the interval ends
CLOSING_S = 2.0  # the last spill may take


@dataclass(frozen=True, slots=True)
class SampledQuery:
    """A query that was sampled.

    Args:
        values: (n,) row ids, table by table.
        ends: (T,) where each table's end.
        gathers: (S, T) how many go to which shard.
        samples: of its batch.
    """

    values: NDArray[Any]
    ends: Ints
    gathers: Ints
    samples: int


class LiveHeat:
    """Sketches of all tables, and what each shard saw lately. Knows no clock: time is told.

    Args:
        opened: the release.
        sample, half_life_s, memory_bytes: as in `Settings`.
        replica: name of its spills; a random one by default.
    """

    def __init__(
        self,
        opened: OpenGateway,
        *,
        sample: float,
        half_life_s: float,
        memory_bytes: int,
        replica: str = "",
    ) -> None:
        release = opened.release
        tables = release.model.tables
        self._names = [table.name for table in tables]
        self._fields = {
            "release": release.digest,
            "model": release.bundle_digest,
            "replica": replica or secrets.token_hex(6),
            "sample": sample,
            "half_life_s": half_life_s,
            "shards": tuple(shard.name for shard in release.shards),
        }
        counters = capacities([table.rows for table in tables], memory_bytes)
        self.sketches = [
            TableSketch(table.rows, most) for table, most in zip(tables, counters, strict=True)
        ]
        self._half_life_s, self._turned_s = half_life_s, 0.0
        self._shape = len(release.shards), len(tables)
        self._recent: deque[tuple[Ints, Ints, int, float]] = deque(maxlen=INTERVALS)
        self._begin_interval()
        self._samples = 0.0
        self._number = 0

    def _begin_interval(self) -> None:
        shards, _ = self._shape
        self._gathers = np.zeros(self._shape, np.int64)
        self._touched = np.zeros(shards, np.int64)
        self._queries = 0

    def add(self, queries: list[SampledQuery]) -> None:
        """Work queries in."""
        for query in queries:
            self._gathers += query.gathers
            self._touched += query.gathers.any(axis=1)
            self._samples += query.samples
        self._queries += len(queries)
        for number, sketch in enumerate(self.sketches):
            parts = []
            for query in queries:
                begin = query.ends[number - 1] if number else 0
                parts.append(query.values[begin : query.ends[number]])
            if parts:
                sketch.add(np.concatenate(parts))

    def pass_time(self, seconds: float) -> None:
        """An interval of `seconds` is over: what came before weighs less."""
        factor = 2 ** (-seconds / self._half_life_s)
        self._samples *= factor
        self._turned_s += seconds
        turned = self._turned_s >= self._half_life_s
        for sketch in self.sketches:
            sketch.decay(factor)
            if turned:
                sketch.turn()
        if turned:
            self._turned_s = 0.0
        self._recent.append((self._gathers, self._touched, self._queries, seconds))
        self._begin_interval()

    def shares(self) -> tuple[float, ...]:
        """The share of gathers of each shard, over the intervals that are kept; zeros if none."""
        gathers = sum((entry[0].sum(axis=1) for entry in self._recent), np.zeros(self._shape[0]))
        whole = float(gathers.sum())
        return tuple((gathers / whole).tolist()) if whole else (0.0,) * self._shape[0]

    def spill(self, store: Store, dropped: int = 0) -> HeatSpill:
        """Write all of it to the store.

        Raises:
            StorageError: the disk or service refused.
        """
        self._number += 1
        tensors: dict[str, NDArray[Any]] = {}
        tables = []
        for name, sketch in zip(self._names, self.sketches, strict=True):
            sketch.trim()
            order = np.argsort(-sketch.counts, kind="stable")
            tensors[f"ids.{name}"] = sketch.ids[order]
            tensors[f"counts.{name}"] = _in_units(sketch.counts[order])
            tensors[f"sampled.{name}"] = sketch.sampled
            tensors[f"sampled_counts.{name}"] = _in_units(sketch.sampled_counts)
            tensors[f"registers.{name}"] = sketch.registers
            tables.append(
                HeatTable(
                    table=name,
                    rows=sketch.rows,
                    capacity=sketch.capacity,
                    accesses=sketch.accesses,
                    squares=sketch.squares,
                    error=sketch.error,
                    level=sketch.level,
                )
            )
        shards, number = self._shape
        gathers = [entry[0] for entry in self._recent]
        tensors["recent.gathers"] = np.array(gathers, np.int64).reshape(-1, shards, number)
        touched = [entry[1] for entry in self._recent]
        tensors["recent.touched"] = np.array(touched, np.int64).reshape(-1, shards)
        tensors["recent.queries"] = np.array([entry[2] for entry in self._recent], np.int64)
        tensors["recent.seconds"] = np.array([entry[3] for entry in self._recent], np.float64)
        fields = {
            "number": self._number,
            "spilled_at_s": time.time(),
            "samples": self._samples,
            "dropped": dropped,
            "tables": tuple(tables),
        }
        return publish_heat(store, tensors, self._fields | fields)


def _in_units(counts: NDArray[np.float64]) -> Ints:
    return np.rint(counts * UNITS).astype(np.int64)


class HeatSampler:
    """Samples queries on the event loop, and keeps a thread that counts them.

    Args:
        opened: the release.
        source: where it came from, and where spills go.
        settings, metrics, log: of this process.
    """

    def __init__(
        self,
        opened: OpenGateway,
        source: Source,
        settings: Settings,
        metrics: Metrics,
        log: Log,
    ) -> None:
        self._heat = LiveHeat(
            opened,
            sample=settings.sample,
            half_life_s=settings.heat_half_life_s,
            memory_bytes=settings.heat_bytes,
        )
        self._source, self._log, self._every_s = source, log, settings.heat_every_s
        self._share, self._tables = settings.sample, len(opened.release.model.tables)
        self._lane_tables = np.array(Lanes.of(opened.release.model).numbers, np.int64)
        self._holdings = [np.array(held, np.int64) for held in opened.holdings]
        self._home = _homes(opened)
        self._random = random.Random()  # noqa: S311
        self._left = self._gap()
        self._waiting: deque[SampledQuery] = deque()
        self._taken_ids = self._folded_ids = self._dropped = 0  # the thread counts the second
        self._refused = ""
        self._shares: tuple[float, ...] = (0.0,) * len(opened.release.shards)
        resident = sorted(opened.resident)
        names = [shard.name for shard in opened.release.shards]
        metrics.gauge(
            "resident_share",
            "gathers of sampled queries that the gateway answered itself, of all, lately",
            lambda: sum(self._shares[number] for number in resident),
        )
        metrics.gauges(
            "shard_share",
            "gathers of sampled queries that went to each shard, of all, lately",
            "shard",
            lambda: dict(zip(names, self._shares, strict=True)),
        )
        self._wake, self._over = threading.Event(), False
        self._thread = threading.Thread(target=self._keep, name="live heat", daemon=True)
        self._thread.start()

    # -- on the event loop

    def _gap(self) -> int:
        """Queries up to the next that is sampled: geometric, so that each is with equal chance."""
        if self._share >= 1:
            return 1
        return 1 + int(math.log(1 - self._random.random()) / math.log(1 - self._share))

    def is_sampled(self) -> bool:
        """Whether the query that has come shall be sampled; asked once for each."""
        self._left -= 1
        if self._left > 0:
            return False
        self._left = self._gap()
        return True

    def take(self, lookup: Lookup, buckets: Buckets, samples: int) -> None:
        """Sample a query, sorted by shard."""
        if self._taken_ids - self._folded_ids > MOST_WAITING:
            self._dropped += 1
            return
        counts = self._by_table(lookup)
        query = SampledQuery(
            lookup.values.copy(), np.cumsum(counts), self._by_shard(buckets, counts), samples
        )
        self._waiting.append(query)
        self._taken_ids += len(query.values)
        if self._taken_ids - self._folded_ids > FOLDED_IDS:
            self._wake.set()

    def _by_table(self, lookup: Lookup) -> Ints:
        """(T,) ids of each table."""
        if lookup.begins is None:
            of_tables: Ints = lookup.lengths.sum(axis=1, dtype=np.int64)
            return of_tables
        lanes = _sums(lookup.lengths, lookup.begins)
        return np.bincount(self._lane_tables, lanes, self._tables).astype(np.int64)

    def _by_shard(self, buckets: Buckets, counts: Ints) -> Ints:
        """(S, T) ids of each shard and table; what went to none of them stayed at home."""
        gathers = np.zeros((len(self._holdings), self._tables), np.int64)
        for number in buckets.touched():
            lengths, bags = buckets[number].lengths, buckets.bags(number)
            if bags is None:
                held = lengths.sum(axis=1, dtype=np.int64)
            else:
                held = _sums(lengths.reshape(-1), np.concatenate([[0], np.cumsum(bags)]))
            gathers[number, self._holdings[number]] = held
        kept = counts - gathers.sum(axis=0)
        for table, home in self._home:
            gathers[home, table] += kept[table]
        return gathers

    # -- in the thread

    def _keep(self) -> None:
        began = time.monotonic()
        while not self._over:
            self._wake.wait(max(0.0, began + self._every_s - time.monotonic()))
            self._wake.clear()
            try:
                self._fold()
                now = time.monotonic()
                if self._over or now - began >= self._every_s:
                    self._heat.pass_time(now - began)
                    began = now
                    self._shares = self._heat.shares()
                    self._heat.spill(self._source.open(), self._dropped)
                    self._refused = ""
            except ErlessError as error:
                self._tell(str(error))
            except Exception as error:  # a fault of ours: told, and counting goes on
                self._tell(f"{type(error).__name__}: {error}")

    def _fold(self) -> None:
        taken = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        self._heat.add(taken)
        self._folded_ids += sum(len(query.values) for query in taken)

    def _tell(self, reason: str) -> None:
        """Say once why live heat does not reach the store; counting goes on."""
        if reason != self._refused:
            self._refused = reason
            self._log.warning("live heat is not in the store", reason=reason)

    def close(self) -> None:
        """Count and write what is left, within two seconds."""
        self._over = True
        self._wake.set()
        self._thread.join(CLOSING_S)


def _sums(lengths: NDArray[Any], begins: Ints) -> Ints:
    """The sum of `lengths` between each two of `begins`."""
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return np.diff(ends[begins])


def _homes(opened: OpenGateway) -> list[tuple[int, int]]:
    """(table, resident shard) for each table whose rows are looked up at home first."""
    homes: dict[int, int] = {}
    for number in sorted(opened.resident):
        for table in opened.holdings[number]:
            homes.setdefault(table, number)
    return list(homes.items())
