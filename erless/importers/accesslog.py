"""The access log as parquet: each sample's rows, one list column per table, or counts per row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from erless.dlrm.queries import Query

__all__ = ["write_access_log", "write_counts"]


def write_access_log(path: Path, tables: Sequence[str], blocks: Iterable[Query]) -> None:
    """Write the ids of `blocks` to `path`: one row per sample, one list column per table."""
    id_type: pa.DataType | None = None
    writer: pq.ParquetWriter | None = None
    try:
        for block in blocks:
            if writer is None:
                id_type = pa.from_numpy_dtype(block.values.dtype)
                schema = pa.schema([(name, pa.list_(id_type)) for name in tables])
                writer = pq.ParquetWriter(path, schema, compression="zstd")
            writer.write_batch(_record_batch(block, tables))
    finally:
        if writer is not None:
            writer.close()


def write_counts(
    path: Path, tables: Iterable[tuple[str, NDArray[np.int64], NDArray[np.int64]]], samples: int
) -> None:
    """Write (table, ids, accesses of each) to `path`: one row per accessed row.

    Args:
        path: file to make.
        tables: each table's name, its ids and their counts, both (n,).
        samples: that the counts cover.
    """
    schema = pa.schema(
        [
            ("table", pa.dictionary(pa.int32(), pa.string())),
            ("id", pa.int64()),
            ("count", pa.int64()),
        ],
        metadata={"samples": str(samples)},
    )
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for name, ids, counts in tables:
            names = pa.DictionaryArray.from_arrays(np.zeros(len(ids), np.int32), [name])
            writer.write_table(pa.Table.from_arrays([names, ids, counts], schema=schema))


def _record_batch(block: Query, tables: Sequence[str]) -> pa.RecordBatch:
    columns = []
    begin = 0
    for lengths in block.lengths:
        offsets: NDArray[np.int32] = np.zeros(len(lengths) + 1, np.int32)
        np.cumsum(lengths, out=offsets[1:])
        end = begin + int(offsets[-1])
        columns.append(pa.ListArray.from_arrays(offsets, block.values[begin:end]))
        begin = end
    return pa.RecordBatch.from_arrays(columns, names=list(tables))
