"""Live heat of many replicas, added up on Spark.

    spills in the store → tasks → a table of each replica → those of a table together → their sum

Each spill is read once, checked as on one machine. What replicas saw of a table is added up in the
order of their names, as `erless.profile.live.read_live` does it, so that the sums are the same to
the last bit. One task holds one table of all replicas, the driver one table of their sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from erless.dlrm.heat_sketch import TableSketch, merged
from erless.errors import ArtifactError, ExistsError
from erless.profile.counted import AccessReport
from erless.profile.live import MergedHeat, profile_live
from erless.profile.spark.counts import read_rows
from erless.profile.spark.job import MOST_TASKS, scratch_beside
from erless.profile.spark.session import SparkOptions, spark_errors, spark_session
from erless.profile.spills import (
    FoundSpill,
    SpillReader,
    check_sampled,
    find_spills,
    left_out,
    sketch_of,
    uncounted,
    weighted_samples,
    weights_of,
)
from erless.progress import Progress, Silent
from erless.specs.heat import HeatSpill
from erless.specs.release import ReleaseManifest
from erless.storage.store import Store
from erless.storage.stores import open_store

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["MergeSketches", "ReadSpills", "StoreAt", "merge_on_spark", "profile_live_on_spark"]

# In the place of a table: spill `id`, without its tables; what is wrong with spill `id`.
SPILL, FAULT = -1, -2
NUMBERS = {
    "rows": pa.int64(),
    "capacity": pa.int64(),
    "error": pa.float64(),
    "accesses": pa.float64(),
    "squares": pa.float64(),
    "level": pa.int64(),
}
ARRAYS: dict[str, np.dtype[Any]] = {
    "ids": np.dtype("<i8"),
    "counts": np.dtype("<f8"),
    "sampled": np.dtype("<i8"),
    "sampled_counts": np.dtype("<f8"),
    "registers": np.dtype("u1"),
}
ARROW_SCHEMA = pa.schema(
    [
        ("table", pa.int32()),
        ("id", pa.int64()),
        ("weight", pa.float64()),
        ("share", pa.float64()),
        ("note", pa.string()),
        *NUMBERS.items(),
        *((name, pa.binary()) for name in ARRAYS),
    ]
)
SCHEMA = (
    "table int, id long, weight double, share double, note string, rows long, capacity long, "
    "error double, accesses double, squares double, level long, ids binary, counts binary, "
    "sampled binary, sampled_counts binary, registers binary"
)


@dataclass(frozen=True)
class StoreAt:
    """Where a store is, as `erless.storage.stores.open_store` takes it."""

    location: str
    endpoint_url: str | None = None

    def open(self) -> Store:
        """Open it. Raises as `open_store`."""
        return open_store(self.location, endpoint_url=self.endpoint_url)

    def absolute(self) -> StoreAt:
        """The same, wherever a process was started."""
        in_bucket = self.location.startswith("s3://")
        return self if in_bucket else StoreAt(str(Path(self.location).absolute()))


@dataclass(frozen=True)
class ReadSpills:
    """Reads spills: `run` is a function for Spark.

    Rows are a table of a replica each: its number, that of the spill, the weight by age, the share
    of queries that was sampled, and the sketch; or a fact about a spill, in a `note`.
    """

    store: StoreAt
    reader: SpillReader
    found: tuple[FoundSpill, ...]

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The spills whose numbers come in column `id`."""
        store = self.store.open()
        for batch in batches:
            for number in batch.column("id").to_pylist():
                try:
                    read = self.reader.read(store, self.found[number])
                except ArtifactError as error:
                    yield _row(table=FAULT, id=number, note=str(error))
                    continue
                if read is None:
                    continue
                spill, tensors, weight = read
                told = {"id": number, "weight": weight, "share": spill.sample}
                yield _row(table=SPILL, note=spill.amended(tables=()).model_dump_json(), **told)
                for table in range(len(spill.tables)):
                    sketch = sketch_of(spill, tensors, table)
                    yield _row(table=table, **told, **_columns(sketch))


class MergeSketches:
    """Adds up what replicas saw: `run` is a function for Spark.

    Rows are sorted by table, then spill. Facts pass as they are.
    """

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """One row for each table."""
        number = 0
        sketches: list[TableSketch] = []
        weights: list[float] = []
        shares: list[float] = []
        for batch in batches:
            for row in range(batch.num_rows):
                table, weight, share = (
                    batch.column(name)[row].as_py() for name in ("table", "weight", "share")
                )
                if sketches and table != number:
                    yield _merged(number, sketches, weights, shares)
                    sketches, weights, shares = [], [], []
                if table < 0:
                    yield batch.slice(row, 1)
                    continue
                number = table
                sketches.append(_sketch(batch, row))
                weights.append(weight)
                shares.append(share)
        if sketches:
            yield _merged(number, sketches, weights, shares)


def _merged(
    table: int, sketches: list[TableSketch], weights: list[float], shares: list[float]
) -> pa.RecordBatch:
    return _row(table=table, id=0, **_columns(merged(sketches, weights_of(shares, weights))))


def _columns(sketch: TableSketch) -> dict[str, Any]:
    numbers = {name: getattr(sketch, name) for name in NUMBERS}
    arrays = {name: getattr(sketch, name).astype(dtype) for name, dtype in ARRAYS.items()}
    return numbers | {name: array.tobytes() for name, array in arrays.items()}


def _sketch(batch: pa.RecordBatch, row: int) -> TableSketch:
    fields: dict[str, Any] = {name: batch.column(name)[row].as_py() for name in (*NUMBERS, *ARRAYS)}
    for name, dtype in ARRAYS.items():
        fields[name] = np.frombuffer(fields[name], dtype).copy()
    fields["registers"] = fields["registers"].reshape(2, -1)
    return TableSketch(**fields)


def _row(**columns: Any) -> pa.RecordBatch:
    arrays = [pa.array([columns.get(field.name)], field.type) for field in ARROW_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=ARROW_SCHEMA)


def merge_on_spark(session: SparkSession, task: ReadSpills) -> DataFrame:
    """Rows as of `ReadSpills`: a table's sum each, or a fact."""
    spills = len(task.found)
    numbers = session.range(0, spills, 1, min(spills, MOST_TASKS))
    return (
        numbers.mapInArrow(task.run, SCHEMA)
        .repartition("table")
        .sortWithinPartitions("table", "id")
        .mapInArrow(MergeSketches().run, SCHEMA)
    )


class _SketchFiles(Sequence[TableSketch]):
    """The sketches of all tables, in a file each; one is in memory while it is used."""

    def __init__(self, folder: Path, tables: int) -> None:
        self._folder, self._tables = folder, tables

    def __len__(self) -> int:
        return self._tables

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(self._tables))]
        if not 0 <= number < self._tables:
            raise IndexError(number)
        with np.load(self._folder / f"{number}.npz") as stored:
            columns: dict[str, Any] = {name: stored[name].item() for name in NUMBERS}
            return TableSketch(**columns, **{name: stored[name] for name in ARRAYS})

    def add(self, number: int, sketch: TableSketch) -> None:
        """Keep the sketch of table `number`."""
        columns = {name: getattr(sketch, name) for name in (*NUMBERS, *ARRAYS)}
        np.savez(self._folder / f"{number}.npz", **columns)


def profile_live_on_spark(
    spark: SparkOptions,
    store: StoreAt,
    release: ReleaseManifest,
    out: Path,
    *,
    before: Path | None = None,
    overwrite: bool = False,
    sums_at: str | None = None,
    progress: Progress | None = None,
) -> AccessReport:
    """Write a profile of what the gateways of `release` see, added up on Spark.

    The profile is the one that `erless.profile.live.profile_live` makes, byte for byte.

    Args:
        spark: which Spark.
        store: of the release; executors reach it under the same name.
        release: that is deployed.
        out: folder of the profile.
        before, overwrite: as `profile_live`.
        sums_at: where the sums are kept as parquet; none: beside the profile, and only until it is
            written.
        progress: where to announce steps.

    Raises:
        SparkError: Spark cannot be reached or gave up.
        ExistsError, LogError, ArtifactError: as `profile_live`.
    """
    if out.exists() and not overwrite:
        raise ExistsError(f"{out} exists")
    progress = progress or Silent()
    opened = store.open()
    task = ReadSpills(
        store.absolute(), SpillReader.of(release), tuple(find_spills(opened, release))
    )
    with scratch_beside(out) as scratch:
        at = sums_at or str(scratch / "sums")
        with (
            progress.step("add up on Spark", None, "rows"),
            spark_session(spark) as session,
            spark_errors(),
        ):
            merge_on_spark(session, task).write.parquet(at)
        heat = _read_sums(at, release, scratch)
        return profile_live(opened, release, out, before=before, overwrite=overwrite, heat=heat)


def _read_sums(url: str, release: ReleaseManifest, scratch: Path) -> MergedHeat:
    """What a job wrote to `url`. Raises as `erless.profile.live.read_live`."""
    tables = _SketchFiles(scratch, len(release.model.tables))
    facts: list[dict[str, Any]] = []
    for batch in read_rows(url, 1):
        number = batch.column("table")[0].as_py()
        if number < 0:
            facts += batch.select(["table", "id", "weight", "share", "note"]).to_pylist()
        else:
            tables.add(number, _sketch(batch, 0))
    facts.sort(key=lambda fact: int(fact["id"]))
    told = [fact for fact in facts if fact["table"] == SPILL]
    if not told:
        raise ArtifactError(facts[-1]["note"])
    spills = {fact["id"]: HeatSpill.parse(fact["note"].encode(), url) for fact in told}
    warnings: list[str] = []
    for fact in facts:
        number = fact["id"]
        warnings += uncounted(spills[number]) if number in spills else [left_out(fact["note"])]
    check_sampled(release, tables)
    weights = weights_of([fact["share"] for fact in told], [fact["weight"] for fact in told])
    return MergedHeat(
        release=release,
        spills=tuple(spills.values()),
        tables=tables,
        samples=weighted_samples(spills.values(), weights),
        warnings=tuple(warnings),
    )
