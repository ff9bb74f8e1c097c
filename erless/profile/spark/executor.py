"""What runs on Spark's executors: our readers over a share of the log, into Arrow batches.

A task counts its share as one machine would (`erless.profile.tally`, bounded memory) and hands on
distinct rows with their counts, so that the shuffle moves rows of tables and not accesses. Facts
about the log travel as rows too, with a negative table: a task that raised would be run again and
again, for a log that stays damaged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from erless.errors import ErlessError
from erless.profile.formats import LogFormat, LogSource, open_log_file
from erless.profile.names import LogNames
from erless.profile.spark.units import LogUnit
from erless.profile.tally import Tallies
from erless.progress import Silent
from erless.specs.model import ModelSpec

__all__ = ["ACCESSES", "FAULT", "SAMPLES", "SCHEMA", "UNKNOWN_SAMPLES", "CountTask"]

SCHEMA = "table int, id long, count long, note string"
ARROW_SCHEMA = pa.schema(
    [("table", pa.int32()), ("id", pa.int64()), ("count", pa.int64()), ("note", pa.string())]
)
BATCH_ROWS = 1 << 20
# In the place of a table: samples of table `id`; that they are not known; accesses in log `id`;
# what is wrong in unit `id`.
SAMPLES, UNKNOWN_SAMPLES, ACCESSES, FAULT = -1, -2, -3, -4


@dataclass(frozen=True)
class CountTask:
    """What all tasks share, and the share of each.

    model: as JSON; folder: of its bundle, for vocabularies.
    """

    model: str
    folder: str
    sources: tuple[LogSource, ...]
    log_format: str
    shares: tuple[tuple[tuple[int, LogUnit], ...], ...]

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
                    for begin in range(0, len(ids), BATCH_ROWS):
                        part = slice(begin, begin + BATCH_ROWS)
                        yield _counts(number, ids[part], counts[part])

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


def _counts(table: int, ids: np.ndarray, counts: np.ndarray) -> pa.RecordBatch:
    size = len(ids)
    columns = [np.full(size, table, np.int32), ids, counts, pa.nulls(size, pa.string())]
    return pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=ARROW_SCHEMA)


def _facts(facts: list[tuple[int, int, int, str | None]]) -> pa.RecordBatch:
    columns = list(zip(*facts, strict=True)) if facts else [(), (), (), ()]
    arrays = [
        pa.array(column, field.type) for column, field in zip(columns, ARROW_SCHEMA, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=ARROW_SCHEMA)
