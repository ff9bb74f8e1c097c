"""The counts that a Spark job wrote as parquet, streamed into a profile.

A row has a window of a table (`executor.py`). The driver reads each file once, a few rows at a
time, and lays the windows down beside the profile; from there they are ranked as on one machine.
It holds how many rows have each count, and no table's counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq

from erless.errors import StorageError, first_line
from erless.profile.ranking import Window
from erless.profile.spark.executor import window_rows
from erless.storage.atomic import os_errors

__all__ = ["SparkCounts", "read_rows"]

BATCH_ROWS = 4  # of windows
SCHEMES = {"s3a": "s3", "s3n": "s3"}  # what Spark calls them, and Arrow


class SparkCounts:
    """What a job counted, as a profile takes it; and the facts about the log, as rows.

    Args:
        url: of the parquet files.
        numbers: of the tables, by name.
        scratch: a folder for 20 bytes of each touched row.

    Raises:
        StorageError: they cannot be read, or the disk refused.
    """

    def __init__(self, url: str, numbers: Mapping[str, int], scratch: Path) -> None:
        self._numbers, self.scratch = numbers, scratch
        self.facts: list[dict[str, Any]] = []
        self._path = scratch / "windows"
        # of each table's windows: first id, place in the scratch file, rows
        self._windows: dict[int, list[tuple[int, int, int]]] = {}
        with os_errors(self._path), self._path.open("wb") as file:
            for batch in read_rows(url):
                for row, table in enumerate(batch.column("table").to_pylist()):
                    if table < 0:
                        self.facts += batch.slice(row, 1).to_pylist()
                        continue
                    base = batch.column("id")[row].as_py()
                    offsets, counts = window_rows(batch, row)
                    entry = (base, file.tell(), len(offsets))
                    self._windows.setdefault(table, []).append(entry)
                    file.write((offsets + base).data)
                    file.write(counts.data)

    def windows(self, table: str) -> Iterator[Window]:
        """The touched rows of `table` with their counts, in the order of ids."""
        with os_errors(self._path, "read"):
            for _, place, rows in sorted(self._windows.get(self._numbers[table], ())):
                both = np.fromfile(self._path, np.int64, 2 * rows, offset=place)
                yield both[:rows], both[rows:]


def read_rows(url: str, batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """The rows of the parquet files that a job wrote to `url`, `batch_rows` at a time.

    Raises:
        StorageError: they cannot be read.
    """
    with _errors(url):
        files, paths = _opened(url)
    for path in paths:
        with _errors(url), files.open_input_file(path) as opened:
            yield from pq.ParquetFile(opened).iter_batches(batch_rows)


@contextmanager
def _errors(url: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        why = first_line(error)
        raise StorageError(f"{url}: what Spark wrote cannot be read: {why}") from error


def _opened(url: str) -> tuple[pa_fs.FileSystem, list[str]]:
    """The file system that `url` is of, and the paths of the parquet files there."""
    scheme, colon, rest = url.partition("://")
    if colon:
        files, folder = pa_fs.FileSystem.from_uri(f"{SCHEMES.get(scheme, scheme)}://{rest}")
    else:
        files, folder = pa_fs.LocalFileSystem(), os.fspath(Path(url).absolute())
    listed = files.get_file_info(pa_fs.FileSelector(folder))
    return files, sorted(info.path for info in listed if info.base_name.endswith(".parquet"))
