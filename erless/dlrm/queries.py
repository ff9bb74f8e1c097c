"""A query, and files of queries.

A query holds B samples in TorchRec's KeyedJaggedTensor layout: `lengths` (T, B) says how many row
ids each bag has, `values` has all ids table by table, sample by sample. A query file is one such
query over all S samples, so any batch size can be cut from it:

    dense    (S, F)  float32
    lengths  (T, S)  int32
    values   (n,)    int32, or int64 where a table has 2^31 rows or more
    weights  (n,)    float32, only for models with weighted-sum pooling
    labels   (S,)    float32, only where known
    metadata         tables: JSON list of names; batch: samples per query
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from erless.errors import QueryError
from erless.specs.model import ModelSpec
from erless.storage.digests import FileDigest
from erless.storage.tensors import TensorFile, write_tensors

__all__ = ["Ids", "Query", "QueryFile", "check_query", "check_tables", "write_queries"]

Ids = NDArray[np.int32] | NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Query:
    """One inference request of B samples.

    Args:
        dense: (B, F) float32.
        values: (n,) row ids, table-major, int32 or int64.
        lengths: (T, B) ids per bag.
        weights: (n,) float32, aligned with `values`, or None.
        labels: (B,) float32, or None.
    """

    dense: Floats
    values: Ids
    lengths: NDArray[np.int32]
    weights: Floats | None = None
    labels: Floats | None = None

    @property
    def batch(self) -> int:
        """Samples B."""
        return int(self.lengths.shape[1])


def check_query(query: Query, model: ModelSpec) -> None:
    """Check everything about `query` that the arithmetic relies on.

    Raises:
        QueryError: naming the table, sample and value that do not fit.
    """
    tables, samples = len(model.tables), query.batch
    if query.lengths.shape[0] != tables:
        raise QueryError(f"lengths has {query.lengths.shape[0]} rows, the model {tables} tables")
    if query.dense.shape != (samples, model.dense_features):
        raise QueryError(
            f"dense has shape {query.dense.shape}, expected ({samples}, {model.dense_features})"
        )
    finite = np.isfinite(query.dense)
    if not finite.all():
        sample, feature = (int(index) for index in np.argwhere(~finite)[0])
        raise QueryError(
            f"dense[{sample}, {feature}] is {query.dense[sample, feature]}: not a finite number"
        )
    if query.lengths.size and query.lengths.min() < 0:
        table, sample = (int(index) for index in np.argwhere(query.lengths < 0)[0])
        raise QueryError(
            f"table {model.tables[table].name}, sample {sample}: "
            f"length {query.lengths[table, sample]} is negative"
        )
    total = int(query.lengths.sum(dtype=np.int64))
    if total != len(query.values):
        raise QueryError(f"lengths sum to {total:,}, but values has {len(query.values):,} ids")
    if model.has_weights and query.weights is None:
        weighted = next(table for table in model.tables if table.pooling == "weighted_sum")
        raise QueryError(f"table {weighted.name} pools by weighted sum: the query has no weights")
    if query.weights is not None and query.weights.shape != query.values.shape:
        raise QueryError(f"{len(query.weights):,} weights for {len(query.values):,} values")
    if query.weights is not None and not np.isfinite(query.weights).all():
        position = int(np.flatnonzero(~np.isfinite(query.weights))[0])
        raise QueryError(f"weights[{position}] is {query.weights[position]}: not a finite number")
    _check_ids(query, model)


def _check_ids(query: Query, model: ModelSpec) -> None:
    """Every id must be a row of its table."""
    begin = 0
    per_table = query.lengths.sum(axis=1, dtype=np.int64)
    for index, table in enumerate(model.tables):
        end = begin + int(per_table[index])
        ids = query.values[begin:end]
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= table.rows):
            position = int(np.flatnonzero((ids < 0) | (ids >= table.rows))[0])
            sample = int(np.searchsorted(np.cumsum(query.lengths[index]), position, side="right"))
            raise QueryError(
                f"table {table.name}, sample {sample}: row id {int(ids[position])} at "
                f"values[{begin + position}] is outside 0 … {table.rows - 1}"
            )
        begin = end


def write_queries(path: Path, query: Query, table_names: Sequence[str], batch: int) -> FileDigest:
    """Write `query`, which holds all samples, as a query file cut into queries of `batch`.

    Call this inside `staged_directory` or `staged_file`.
    """
    tensors: dict[str, NDArray[np.generic]] = {
        "dense": query.dense,
        "lengths": query.lengths,
        "values": query.values,
    }
    if query.weights is not None:
        tensors["weights"] = query.weights
    if query.labels is not None:
        tensors["labels"] = query.labels
    metadata = {"tables": json.dumps(list(table_names)), "batch": str(batch)}
    return write_tensors(path, tensors, metadata)


def check_tables(file: QueryFile, model: ModelSpec) -> None:
    """A query file that names its tables must name the model's, in its order.

    Raises:
        QueryError: it names others.
    """
    names = [table.name for table in model.tables]
    if file.table_names and file.table_names != names:
        pairs = itertools.zip_longest(file.table_names, names)
        found, expected = next(pair for pair in pairs if pair[0] != pair[1])
        raise QueryError(f"{file.path} is for table {found} where the model has {expected}")


class QueryFile:
    """The queries of a file, in order; the last may be smaller than `batch`.

    Args:
        path: the file; it is mapped, not read.
        batch: samples per query; None takes the file's own.

    Raises:
        ArtifactError: not a safetensors file, or a tensor is missing.
        QueryError: its tensors contradict each other.
    """

    def __init__(self, path: Path, batch: int | None = None) -> None:
        self.path = path
        file = TensorFile(path)
        self.table_names: list[str] = json.loads(file.metadata.get("tables", "[]"))
        self.batch = batch or int(file.metadata.get("batch", "32"))
        self.dense = file.map("dense").astype(np.float32, copy=False)
        self.lengths = file.map("lengths").astype(np.int32, copy=False)
        self.values: Ids = file.map("values")
        self.weights = file.map("weights") if "weights" in file.tensors else None
        self.labels = file.map("labels") if "labels" in file.tensors else None
        self._check()
        offsets = np.zeros(self.lengths.size + 1, np.int64)
        np.cumsum(self.lengths, out=offsets[1:], dtype=np.int64)
        if offsets[-1] != len(self.values):
            raise QueryError(
                f"{path}: lengths sum to {offsets[-1]:,}, but values has {len(self.values):,} ids"
            )
        self._offsets = offsets

    def _check(self) -> None:
        if self.batch < 1:
            raise QueryError(f"{self.path}: batch is {self.batch}, must be at least 1")
        if self.values.dtype not in (np.int32, np.int64) or self.values.ndim != 1:
            raise QueryError(f"{self.path}: values must be a vector of int32 or int64")
        if self.dense.ndim != 2 or self.lengths.ndim != 2:
            raise QueryError(f"{self.path}: dense and lengths must have two dimensions")
        samples = self.lengths.shape[1]
        for name, array in (("dense", self.dense), ("labels", self.labels)):
            if array is not None and len(array) != samples:
                raise QueryError(
                    f"{self.path}: {name} has {len(array):,} samples, lengths {samples:,}"
                )
        if self.weights is not None and len(self.weights) != len(self.values):
            raise QueryError(f"{self.path}: weights and values differ in size")
        if self.lengths.size and self.lengths.min() < 0:
            table, sample = (int(index) for index in np.argwhere(self.lengths < 0)[0])
            raise QueryError(f"{self.path}: lengths[{table}, {sample}] is negative")

    @property
    def samples(self) -> int:
        """Samples S in the file."""
        return int(self.lengths.shape[1])

    def __len__(self) -> int:
        return math.ceil(self.samples / self.batch)

    def __getitem__(self, index: int) -> Query:
        if not 0 <= index < len(self):
            raise IndexError(index)
        begin, end = index * self.batch, min((index + 1) * self.batch, self.samples)
        spans = [
            slice(self._offsets[row + begin], self._offsets[row + end])
            for row in range(0, self.lengths.size, self.samples)
        ]
        weights, labels = self.weights, self.labels
        return Query(
            dense=np.ascontiguousarray(self.dense[begin:end]),
            values=np.concatenate([self.values[span] for span in spans]),
            lengths=np.ascontiguousarray(self.lengths[:, begin:end]),
            weights=None if weights is None else np.concatenate([weights[span] for span in spans]),
            labels=None if labels is None else np.asarray(labels[begin:end]),
        )

    def __iter__(self) -> Iterator[Query]:
        return (self[index] for index in range(len(self)))
