"""What runs on Spark's executors: our readers over a share of the log, into Arrow batches.

A task counts its share as one machine would (`erless.profile.tally`, bounded memory) and hands on
distinct rows with their counts, a window of 2^20 ids to a row of Spark's: so the shuffle moves rows
of tables and not accesses, and the JVM handles few large rows and not many small ones. Facts about
the log travel as rows too, with a negative table: a task that raised would be run again and again,
for a log that stays damaged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from erless.errors import ErlessError
from erless.profile.formats import LogFormat, LogSource, open_log_file
from erless.profile.names import LogNames
from erless.profile.spark.units import LogUnit
from erless.profile.tally import Tallies
from erless.progress import Silent
from erless.specs.model import ModelSpec

__all__ = [
    "ACCESSES",
    "FAULT",
    "SAMPLES",
    "SCHEMA",
    "UNKNOWN_SAMPLES",
    "WINDOW_ROWS",
    "CountTask",
    "WindowSums",
    "window_rows",
]

SCHEMA = "table int, id long, count long, note string, ids binary, counts binary"
ARROW_SCHEMA = pa.schema(
    [
        ("table", pa.int32()),
        ("id", pa.int64()),
        ("count", pa.int64()),
        ("note", pa.string()),
        ("ids", pa.binary()),
        ("counts", pa.binary()),
    ]
)
WINDOW_ROWS = 1 << 20  # ids of a row: 8 MB at most, 12 where counts are large, and 8 to add up
# In the place of a table: samples of table `id`; that they are not known; accesses in log `id`;
# what is wrong in unit `id`.
SAMPLES, UNKNOWN_SAMPLES, ACCESSES, FAULT = -1, -2, -3, -4


@dataclass(frozen=True)
class CountTask:
    """What all tasks share, and the share of each.

    model: as JSON; folder: of its bundle, for vocabularies; window_rows: ids of a row of Spark's.
    """

    model: str
    folder: str
    sources: tuple[LogSource, ...]
    log_format: str
    shares: tuple[tuple[tuple[int, LogUnit], ...], ...]
    window_rows: int = WINDOW_ROWS

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Count the shares whose numbers come in column `id`."""
        names = LogNames(ModelSpec.model_validate_json(self.model), Path(self.folder))
        for batch in batches:
            for number in batch.column("id").to_pylist():
                yield from self._count(names, self.shares[number])

    def _count(
        self, names: LogNames, share: tuple[tuple[int, LogUnit], ...]
    ) -> Iterator[pa.RecordBatch]:
        numbers = {name: number for number, name in enumerate(names.table_rows)}
        facts: list[tuple[int, int, int, str | None]] = []
        with tempfile.TemporaryDirectory(prefix="erless-profile-") as scratch:
            tallies = Tallies(names.table_rows, Path(scratch))
            for number, unit in share:
                try:
                    samples, tables, accesses = self._read(unit, names, tallies)
                except ErlessError as error:
                    yield _facts([(FAULT, number, 0, str(error))])
                    return  # nothing else is asked for
                facts.append((ACCESSES, unit.source, accesses, None))
                for table in tables:
                    kind = UNKNOWN_SAMPLES if samples is None else SAMPLES
                    facts.append((kind, numbers[table], samples or 0, None))
            yield _facts(facts)
            for name, number in numbers.items():
                for ids, counts in tallies.windows(name):
                    yield from _windows(number, ids, counts, self.window_rows)

    def _read(
        self, unit: LogUnit, names: LogNames, tallies: Tallies
    ) -> tuple[int | None, set[str], int]:
        """Count one unit: its samples, its tables and its accesses."""
        log = open_log_file(
            self.sources[unit.source], unit.file, names.rows, LogFormat(self.log_format)
        )
        accesses = 0
        for raw in log.chunks(Silent()):
            chunk = names.resolve(raw, log)
            tallies.add(chunk.table, chunk.ids, chunk.counts)
            accesses += len(chunk.ids)
        return log.samples, names.tables(log.tables), accesses


@dataclass(frozen=True)
class WindowSums:
    """Adds up the parts of windows that come one after another: `run` is a function for Spark.

    Columns of a part, in rows that are sorted by table, then id: a window's table, its first id,
    how many of its rows were touched; these as 32-bit offsets from the first, ascending, and their
    counts, as wide where all fit and otherwise as 64-bit integers, all little-endian. Facts pass as
    they are.
    """

    window_rows: int

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """One row for each window."""
        key: tuple[int, int] | None = None
        totals = np.zeros(self.window_rows, np.int64)
        for batch in batches:
            keys = zip(*(batch.column(name).to_pylist() for name in ("table", "id")), strict=True)
            for row, (table, base) in enumerate(keys):
                if key is not None and (table, base) != key:
                    yield _summed(*key, totals)
                    key = None
                if table < 0:
                    yield batch.slice(row, 1)
                    continue
                key = (table, base)
                offsets, counts = window_rows(batch, row)
                totals[offsets] += counts  # those of one part are distinct
        if key is not None:
            yield _summed(*key, totals)


def _summed(table: int, base: int, totals: NDArray[np.int64]) -> pa.RecordBatch:
    """The window of these totals, which are then 0."""
    touched = np.flatnonzero(totals)
    counts = totals[touched]
    totals[touched] = 0
    return _window(table, base, touched, counts)


def window_rows(batch: pa.RecordBatch, row: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets of the touched rows of the window in this row of a batch, ascending; their counts."""
    ids, counts = (batch.column(name)[row].as_buffer() for name in ("ids", "counts"))
    dtype = "<u4" if len(counts) == len(ids) else "<i8"
    return np.frombuffer(ids, "<u4").astype(np.int64), np.frombuffer(counts, dtype).astype(np.int64)


def _windows(
    table: int, ids: NDArray[np.int64], counts: NDArray[np.int64], window_rows: int
) -> Iterator[pa.RecordBatch]:
    """Touched rows in the order of ids as rows of windows."""
    first, last = int(ids[0]) // window_rows, int(ids[-1]) // window_rows
    bases = window_rows * np.arange(first, last + 2)
    cuts = np.searchsorted(ids, bases).tolist()
    for base, begin, end in zip(bases.tolist()[:-1], cuts[:-1], cuts[1:], strict=True):
        if end > begin:
            yield _window(table, base, ids[begin:end] - base, counts[begin:end])


def _window(
    table: int, base: int, offsets: NDArray[np.int64], counts: NDArray[np.int64]
) -> pa.RecordBatch:
    dtype = "<u4" if int(counts.max()) < 1 << 32 else "<i8"
    data = offsets.astype("<u4").tobytes(), counts.astype(dtype).tobytes()
    row = ([table], [base], [len(offsets)], [None], [data[0]], [data[1]])
    return _batch(row)


def _facts(facts: list[tuple[int, int, int, str | None]]) -> pa.RecordBatch:
    columns = list(zip(*facts, strict=True)) if facts else [(), (), (), ()]
    none = [None] * len(facts)
    return _batch((*columns, none, none))


def _batch(columns: Sequence[Sequence[Any]]) -> pa.RecordBatch:
    arrays = [
        pa.array(column, field.type) for column, field in zip(columns, ARROW_SCHEMA, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=ARROW_SCHEMA)
