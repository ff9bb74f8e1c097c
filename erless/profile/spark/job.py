"""The profile of logs, counted on Spark.

    log units → tasks (`executor.py`) → windows of a table together → their sums → parquet → profile

The parquet files lie at `counts_at`, where driver and executors both reach them: in the store, say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from erless.errors import LogError
from erless.profile.access import age_warning, kept_curves
from erless.profile.counted import AccessReport, Counted, Coverage, write_profile
from erless.profile.curves import MachineCurves
from erless.profile.formats import LogFormat, LogSource
from erless.profile.names import LogNames
from erless.profile.spark.counts import SparkCounts
from erless.profile.spark.executor import (
    ACCESSES,
    FAULT,
    SAMPLES,
    SCHEMA,
    UNKNOWN_SAMPLES,
    WINDOW_ROWS,
    CountTask,
    WindowSums,
)
from erless.profile.spark.session import SparkOptions, spark_errors, spark_session
from erless.profile.spark.units import LogUnit, log_units, shares
from erless.progress import Progress, Silent
from erless.specs.bundle import BundleManifest
from erless.specs.profile import MANIFEST
from erless.storage.atomic import staged_directory

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["MOST_TASKS", "SparkProfile", "count_on_spark", "profile_on_spark", "scratch_beside"]

NO_CURVES = MachineCurves()
MOST_TASKS = 4096  # each keeps its own counts until it ends


@dataclass(frozen=True)
class SparkProfile:
    """How the logs are counted.

    log_format: how they are laid out. samples: that they cover, where they cannot say. every: of so
    many units one is read. most_rows: touched rows of a table that are ranked; of more a histogram
    is kept. counts_at: where the counts are kept as parquet; none: beside the profile, and only
    until it is written.
    """

    log_format: LogFormat = LogFormat.AUTO
    samples: int | None = None
    every: int = 1
    most_rows: int = 10**9
    counts_at: str | None = None


def profile_on_spark(
    spark: SparkOptions,
    model: Path,
    sources: Sequence[LogSource],
    out: Path,
    how: SparkProfile,
    *,
    curves: MachineCurves = NO_CURVES,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> AccessReport:
    """Count the logs on Spark and write the profile of the bundle `model` to `out`.

    The profile is the one that `erless.profile.access.profile_access` makes, byte for byte.

    Raises:
        MissingPackageError: pyspark is not installed.
        SparkError: it cannot be started or reached, or gave up.
        LogError: a log is empty, damaged, or has ids that are not rows of its table.
        ArtifactError: no bundle there, or `out` exists.
        StorageError: the disk refused.
    """
    progress = progress or Silent()
    bundle = BundleManifest.open(model)
    names = LogNames(bundle.model, model)
    curves, unfinished = kept_curves(out, curves)
    warnings = [line for source in sources if (line := age_warning(source, model))]
    units = list(log_units(sources, names.rows, how.log_format))[:: how.every]
    with (
        staged_directory(out, marker=MANIFEST, overwrite=overwrite or unfinished) as stage,
        scratch_beside(out) as scratch,
    ):
        counts_at = how.counts_at or str(scratch / "counts")
        task = _task(bundle, model, sources, units, how)
        with (
            progress.step("count on Spark", None, "rows"),
            spark_session(spark) as session,
            spark_errors(),
        ):
            count_on_spark(session, task).write.parquet(counts_at)
        numbers = {name: number for number, name in enumerate(names.table_rows)}
        counts = SparkCounts(counts_at, numbers, scratch)
        counted = Counted(
            bundle.digest,
            tuple(source.text for source in sources),
            counts,
            _coverage(counts, sources, list(names.table_rows)),
            how.most_rows,
        )
        report = write_profile(counted, names, how.samples, curves, stage, progress)
    return AccessReport(report.profile, report.tables, (*warnings, *report.warnings))


@contextmanager
def scratch_beside(out: Path) -> Iterator[Path]:
    """A folder beside `out`, on the same disk, that goes when the block ends."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-counts-", dir=out.parent) as folder:
        yield Path(folder).absolute()


def _task(
    bundle: BundleManifest,
    model: Path,
    sources: Sequence[LogSource],
    units: Sequence[LogUnit],
    how: SparkProfile,
) -> CountTask:
    return CountTask(
        model=bundle.model.model_dump_json(),
        folder=str(model.absolute()),
        sources=tuple(sources),
        log_format=how.log_format.value,
        shares=tuple(tuple(share) for share in shares(units, MOST_TASKS)),
        window_rows=WINDOW_ROWS,
    )


def count_on_spark(session: SparkSession, task: CountTask) -> DataFrame:
    """Rows (table, id, count, note, ids, counts): a window of a table each, or a fact.

    As many tasks add up as have counted, or as `spark.sql.shuffle.partitions` says if that is less.
    """
    counting = max(1, len(task.shares))
    adding = min(counting, int(session.conf.get("spark.sql.shuffle.partitions") or counting))
    numbers = session.range(0, len(task.shares), 1, counting)
    return (
        numbers.mapInArrow(task.run, SCHEMA)
        .repartition(adding, "table", "id")
        .sortWithinPartitions("table", "id")
        .mapInArrow(WindowSums(task.window_rows).run, SCHEMA)
    )


def _coverage(counts: SparkCounts, sources: Sequence[LogSource], tables: list[str]) -> Coverage:
    """Samples by table, and the first fault of the logs, if there is one.

    Raises:
        LogError: a log is damaged or empty, or has ids that are no rows.
    """
    facts: dict[int, list[dict[str, Any]]] = {}
    for fact in counts.facts:
        facts.setdefault(fact["table"], []).append(fact)
    for fault in sorted(facts.get(FAULT, ()), key=lambda fact: int(fact["id"])):
        raise LogError(fault["note"])
    accesses = {fact["id"]: fact["count"] for fact in facts.get(ACCESSES, ())}
    for number, source in enumerate(sources):
        if not accesses.get(number):
            raise LogError(f"{source.path}: the log is empty: no accesses in it")
    coverage = Coverage.of(tables)
    for fact in facts.get(SAMPLES, ()):
        coverage.add(fact["count"], [tables[fact["id"]]])
    for fact in facts.get(UNKNOWN_SAMPLES, ()):
        coverage.add(None, [tables[fact["id"]]])
    return coverage
