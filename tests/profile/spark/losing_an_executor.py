"""Count a log on two executors, of which one is killed midway: `python -m … MODEL LOG OUT MARKER`.

Run as a process of its own: a Spark of another kind cannot start beside the tests' session.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa

from erless.profile.formats import LogSource
from erless.profile.spark import job
from erless.profile.spark.executor import CountTask
from erless.profile.spark.job import SparkProfile, profile_on_spark
from erless.profile.spark.session import SparkOptions
from erless.profile.spark.units import log_units

MASTER = "local-cluster[2,1,1024]"  # two workers, each with an executor of one core and 1 GB


@dataclass(frozen=True)
class KillingTask(CountTask):
    """Whoever comes first kills its executor, once it has counted and before it has told."""

    marker: str = ""

    def run(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        counted = list(super().run(batches))
        try:
            os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            yield from counted
            return
        daemon = Path(f"/proc/{os.getppid()}/stat").read_text(encoding="ascii")
        os.kill(int(daemon.rpartition(")")[2].split()[1]), signal.SIGKILL)  # the executor's JVM


def main(model: str, log: str, out: str, marker: str) -> None:
    """Count, and print the profile's digest."""
    from pyspark import cloudpickle  # not where it is not installed: all modules are collected

    make = job._task

    def killing(*given: object) -> CountTask:
        task = make(*given)  # type: ignore[arg-type]
        return KillingTask(
            **{field.name: getattr(task, field.name) for field in fields(task)}, marker=marker
        )

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    options = SparkOptions(MASTER, {"spark.sql.shuffle.partitions": "2"})
    with (
        patch.object(job, "_task", killing),
        patch.object(job, "log_units", partial(log_units, unit_bytes=1)),
    ):
        logs = [LogSource.parse(log)]
        report = profile_on_spark(options, Path(model), logs, Path(out), SparkProfile())
    print(report.profile.digest)


if __name__ == "__main__":
    main(*sys.argv[1:])
