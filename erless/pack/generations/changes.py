"""Files of changed rows, as a trainer writes them, to `TableChanges`.

| file | what it has |
|---|---|
| `.parquet` | columns `id` (integers) and `vector` (lists of `dim` floats) |
| `.safetensors` | tensors `ids` (n,) int64 or int32, and `rows` (n, dim) float32 or float16 |
| of deleted rows | the same without vectors |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.errors import ModelError
from erless.specs.model import TableSpec
from erless.storage.tensors import TensorFile

__all__ = ["TableChanges", "read_changes", "read_deletions"]


@dataclass(frozen=True)
class TableChanges:
    """New vectors of rows of one table.

    Args:
        table: its name.
        ids: (n,) int64, distinct; those beyond the table's rows are added.
        vectors: (n, dim) float32, finite.
        deleted: how many of them stand for deleted rows: the last ones, all zeros.
    """

    table: str
    ids: NDArray[np.int64]
    vectors: NDArray[np.float32]
    deleted: int = 0

    def check(self, spec: TableSpec, where: str) -> None:
        """Compare with the table as the model has it.

        Raises:
            ModelError: another dim, an id below zero or twice, or an element that is not finite.
        """
        if self.vectors.shape != (len(self.ids), spec.dim):
            raise ModelError(
                f"{where}: {len(self.ids):,} ids and vectors of shape {self.vectors.shape}; table "
                f"{spec.name} has vectors of {spec.dim}"
            )
        order = np.sort(self.ids)
        if len(order) and order[0] < 0:
            raise ModelError(f"{where}: id {order[0]} is below zero")
        twice = np.flatnonzero(order[1:] == order[:-1])
        if len(twice):
            raise ModelError(f"{where}: id {order[twice[0]]} comes twice")
        finite = np.isfinite(self.vectors).all(axis=1)
        if not finite.all():
            raise ModelError(f"{where}: the vector of id {self.ids[~finite][0]} is not finite")


def read_changes(path: Path, table: TableSpec) -> TableChanges:
    """The changed rows in `path`.

    Raises:
        ModelError: not such a file, or rows that do not fit the table; names file and id.
        ArtifactError: a damaged safetensors file.
        StorageError: it cannot be read.
    """
    ids, vectors = _read(path, with_vectors=True)
    changes = TableChanges(table.name, ids, vectors)
    changes.check(table, str(path))
    return changes


def read_deletions(path: Path, table: TableSpec) -> TableChanges:
    """The deleted rows in `path`, as rows of zeros. Errors as `read_changes`."""
    ids, _ = _read(path, with_vectors=False)
    changes = TableChanges(table.name, ids, np.zeros((len(ids), table.dim), np.float32), len(ids))
    changes.check(table, str(path))
    return changes


def _read(path: Path, *, with_vectors: bool) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if path.suffix == ".parquet":
        ids, vectors = _read_parquet(path, with_vectors)
    elif path.suffix == ".safetensors":
        ids, vectors = _read_tensors(path, with_vectors)
    else:
        raise ModelError(f"{path}: rows come as .parquet (id, vector) or .safetensors (ids, rows)")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ModelError(f"{path}: ids have shape {ids.shape} of {ids.dtype}, expected integers")
    return ids.astype(np.int64), vectors.astype(np.float32)


def _read_parquet(path: Path, with_vectors: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from erless.storage.arrow import translate_arrow_errors

    columns = ["id", "vector"] if with_vectors else ["id"]
    with translate_arrow_errors(path, ModelError):
        table = pq.ParquetFile(path).read(columns)
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise ModelError(f"{path}: no column {missing[0]}; needed are {' and '.join(columns)}")
    for name in columns:
        if table.column(name).null_count:
            raise ModelError(f"{path}: column {name} has a null")
    ids = table.column("id").to_numpy()
    if not with_vectors:
        return ids, np.empty((len(ids), 0), np.float32)
    kind = table.column("vector").type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (lists or pa.types.is_fixed_size_list(kind)) or not pa.types.is_floating(
        kind.value_type
    ):
        raise ModelError(f"{path}: column vector is {kind}, expected lists of floats")
    rows = table.column("vector").combine_chunks()
    values = rows.flatten()
    if values.null_count:
        raise ModelError(f"{path}: an element of a vector is null")
    if lists and len(ids):
        sizes = np.diff(rows.offsets.to_numpy())
        odd = np.flatnonzero(sizes != sizes[0])
        if len(odd):
            raise ModelError(
                f"{path}: vectors of {sizes[0]} and, at row {odd[0]:,}, of {sizes[odd[0]]} elements"
            )
    flat = values.to_numpy(zero_copy_only=False)
    return ids, flat.reshape(len(ids), -1) if len(ids) else np.empty((0, 0), np.float32)


def _read_tensors(path: Path, with_vectors: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    file = TensorFile(path)
    ids = file.read("ids")
    if not with_vectors:
        return ids, np.empty((len(ids), 0), np.float32)
    rows = file.read("rows")
    if rows.ndim != 2 or rows.dtype not in (np.float32, np.float16):
        raise ModelError(
            f"{path}: rows have shape {rows.shape} of {rows.dtype}, expected (n, dim) of float32"
        )
    return ids, rows
