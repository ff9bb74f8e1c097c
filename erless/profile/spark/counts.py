"""The counts that a Spark job wrote as parquet, streamed into a profile.

The job sorts them by table, then hottest first, ties by id: a profile's own order. The driver reads
a column at a time in batches, so it holds no table's counts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from erless.errors import StorageError, first_line
from erless.profile.tally import CountDistribution
from erless.storage.digests import FileDigest
from erless.storage.tensors import TensorWriter

__all__ = ["SortedCounts", "SparkCounts"]

BATCH_ROWS = 1 << 20
SCHEMES = {"s3a": "s3", "s3n": "s3"}  # what Spark calls them, and Arrow


class SortedCounts:
    """The parquet files at `url`: columns table, id, count, note; sorted by the first.

    Raises:
        StorageError: they cannot be read.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        scheme, colon, rest = url.partition("://")
        with self._errors():
            if colon:
                location = f"{SCHEMES.get(scheme, scheme)}://{rest}"
                self._files, folder = pa_fs.FileSystem.from_uri(location)
            else:
                self._files, folder = pa_fs.LocalFileSystem(), os.fspath(Path(url).absolute())
            listed = self._files.get_file_info(pa_fs.FileSelector(folder))
        self._paths = sorted(info.path for info in listed if info.base_name.endswith(".parquet"))

    def facts(self) -> Iterator[dict[str, Any]]:
        """The rows of negative tables, which are about the log."""
        for batch in self._batches(lambda least, _: least < 0, None):
            yield from batch.filter(pc.less(batch.column("table"), 0)).to_pylist()

    def column(self, table: int, name: str) -> Iterator[NDArray[np.int64]]:
        """Column `name` of table number `table`, in batches."""
        for batch in self._batches(lambda least, most: least <= table <= most, ["table", name]):
            tables = batch.column("table").to_numpy()
            begin, end = np.searchsorted(tables, [table, table + 1]).tolist()
            if end > begin:
                yield batch.column(name).slice(begin, end - begin).to_numpy()

    def _batches(
        self, wanted: Callable[[int, int], bool], columns: list[str] | None
    ) -> Iterator[pa.RecordBatch]:
        """The batches of the row groups whose least and largest table are `wanted`."""
        for path in self._paths:
            with self._errors(), self._files.open_input_file(path) as opened:
                file = pq.ParquetFile(opened)
                groups = []
                for number in range(file.metadata.num_row_groups):
                    tables = file.metadata.row_group(number).column(0).statistics
                    if wanted(tables.min, tables.max):
                        groups.append(number)
                yield from file.iter_batches(BATCH_ROWS, groups, columns=columns)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            why = first_line(error)
            raise StorageError(
                f"{self.url}: the counts that Spark wrote cannot be read: {why}"
            ) from error


class SparkCounts:
    """What a job counted, as a profile takes it.

    Args:
        counts: sorted, as parquet.
        distributions: of each table that was touched.
        numbers: of the tables, by name.
    """

    def __init__(
        self,
        counts: SortedCounts,
        distributions: Mapping[int, CountDistribution],
        numbers: Mapping[str, int],
    ) -> None:
        self._counts, self._distributions, self._numbers = counts, distributions, numbers

    def distribution(self, table: str) -> CountDistribution:
        """How many rows of `table` have each count."""
        none = CountDistribution(np.empty(0, np.int64), np.empty(0, np.int64))
        return self._distributions.get(self._numbers[table], none)

    def write(self, table: str, distribution: CountDistribution, path: Path) -> FileDigest:
        """Write `ids` and `counts` of the touched rows, hottest first, as safetensors.

        Raises:
            StorageError: the disk refused, or what Spark wrote cannot be read.
        """
        shape = {
            "ids": (np.int64, (distribution.touched,)),
            "counts": (np.int64, (distribution.touched,)),
        }
        number = self._numbers[table]
        with TensorWriter(path, shape) as writer:
            for ids in self._counts.column(number, "id"):
                writer.write("ids", ids)
            for counts in self._counts.column(number, "count"):
                writer.write("counts", counts)
            return writer.close()
