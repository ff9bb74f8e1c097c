"""The access log: which rows each sample touched, as parquet with one list column per table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from erless.dlrm.queries import Query

__all__ = ["write_access_log"]


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
