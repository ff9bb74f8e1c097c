"""A query, and files of queries.

A query holds B samples in TorchRec's KeyedJaggedTensor layout: `lengths` (T, B) says how many row
ids each bag has, `values` has all ids table by table, sample by sample. A query file is one such
query over all S samples, so that any batch size can be cut from it:

    dense    (S, F)  float32
    lengths  (T, S)  int32
    values   (n,)    int32, or int64 where a table has 2^31 rows or more
    weights  (n,)    float32, only for models with weighted-sum pooling; 1 for other tables' ids
    labels   (S,)    float32, only where known
    metadata         tables: JSON list of names; batch: samples per query

Numbers of other types are taken where float32, int32 or int64 hold them exactly.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.query_arrays import Floats, Ids, check_weights
from erless.errors import QueryError
from erless.specs.model import ModelSpec
from erless.storage.digests import FileDigest
from erless.storage.tensors import TensorFile, write_tensors

__all__ = ["Ids", "Query", "QueryFile", "check_query", "write_queries"]


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
    tables, samples = model.feature_tables, query.batch
    if query.lengths.shape[0] != len(tables):
        noun = "tables" if model.plain else "features"
        raise QueryError(
            f"lengths has {query.lengths.shape[0]} rows, the model {len(tables)} {noun}"
        )
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
            f"table {tables[table].name}, sample {sample}: "
            f"length {query.lengths[table, sample]} is negative"
        )
    total = int(query.lengths.sum(dtype=np.int64))
    if total != len(query.values):
        raise QueryError(f"lengths sum to {total:,}, but values has {len(query.values):,} ids")
    if model.has_weights and query.weights is None:
        weighted = next(table for table in tables if table.pooling == "weighted_sum")
        raise QueryError(f"table {weighted.name} pools by weighted sum: the query has no weights")
    if query.weights is not None and query.weights.shape != query.values.shape:
        raise QueryError(f"{len(query.weights):,} weights for {len(query.values):,} values")
    if query.weights is not None:
        if not np.isfinite(query.weights).all():
            position = int(np.flatnonzero(~np.isfinite(query.weights))[0])
            value = query.weights[position]
            raise QueryError(f"weights[{position}] is {value}: not a finite number")
        check_weights(tables, query.weights, query.lengths)
    _check_ids(query, model)


def _check_ids(query: Query, model: ModelSpec) -> None:
    """Every id must be a row of its table."""
    begin = 0
    per_table = query.lengths.sum(axis=1, dtype=np.int64)
    for index, table in enumerate(model.feature_tables):
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


class QueryFile:
    """The queries of a file, in order; the last may be smaller than `batch`.

    Whatever the file has is used as it is, or refused by name: unknown tensors and metadata,
    numbers that their type cannot hold, names of other tables.

    Args:
        path: the file; it is mapped, not read.
        batch: samples per query; None takes the file's own.
        beside: tensors that the caller reads itself.

    Raises:
        ArtifactError: not a safetensors file, or a tensor is missing.
        QueryError: its tensors contradict each other, or it holds something else than queries.
    """

    def __init__(self, path: Path, batch: int | None = None, beside: tuple[str, ...] = ()) -> None:
        self.path = path
        file = TensorFile(path)
        _refuse_unknown(path, file, beside)
        self.table_names = _table_names(path, file.metadata.get("tables", "[]"))
        self.batch = _batch(path, file.metadata.get("batch", "32")) if batch is None else batch
        self.dense: Floats = _numbers(file, "dense", np.float32)
        lengths: NDArray[np.int32] = _numbers(file, "lengths", np.int32)
        self.values: Ids = _numbers(file, "values", np.int32, np.int64)
        self.weights: Floats | None = None
        self.labels: Floats | None = None
        if "weights" in file.tensors:
            self.weights = _numbers(file, "weights", np.float32)
        if "labels" in file.tensors:
            self.labels = _numbers(file, "labels", np.float32)
        self._check(lengths)
        self.lengths = lengths  # (T, S) ids per bag
        self._order = list(range(len(lengths)))  # the file's rows of lengths, in the tables' order
        self._offsets = np.zeros(lengths.size + 1, np.int64)
        np.cumsum(lengths, out=self._offsets[1:], dtype=np.int64)
        total = int(self._offsets[-1])
        if total != len(self.values):
            raise QueryError(
                f"{path}: lengths sum to {total:,}, but values has {len(self.values):,} ids"
            )

    def _check(self, lengths: NDArray[np.int32]) -> None:
        """Check that the tensors fit together."""
        if self.batch < 1:
            raise QueryError(f"{self.path}: batch is {self.batch}, must be at least 1")
        dimensions: tuple[tuple[str, NDArray[Any] | None, int], ...] = (
            ("dense", self.dense, 2),
            ("lengths", lengths, 2),
            ("values", self.values, 1),
            ("weights", self.weights, 1),
            ("labels", self.labels, 1),
        )
        for name, array, expected in dimensions:
            if array is not None and array.ndim != expected:
                raise QueryError(
                    f"{self.path}: {name} has shape {array.shape}, expected {expected} dimensions"
                )
        samples = lengths.shape[1]
        for name, array, _ in dimensions:
            if name in ("dense", "labels") and array is not None and len(array) != samples:
                raise QueryError(
                    f"{self.path}: {name} has {len(array):,} samples, lengths {samples:,}"
                )
        if self.weights is not None and len(self.weights) != len(self.values):
            raise QueryError(
                f"{self.path}: {len(self.weights):,} weights for {len(self.values):,} values"
            )
        if lengths.size and lengths.min() < 0:
            table, sample = (int(index) for index in np.argwhere(lengths < 0)[0])
            raise QueryError(
                f"{self.path}: lengths[{table}, {sample}] is {lengths[table, sample]}: negative"
            )
        if self.table_names and len(self.table_names) != len(lengths):
            raise QueryError(
                f"{self.path}: lengths has {len(lengths)} rows for {len(self.table_names)} tables"
            )

    def in_order_of(self, tables: Sequence[str]) -> QueryFile:
        """The same queries with their bags in the order of `tables`, found by their names.

        A file that names no tables has the bags of `tables`, in their order.

        Raises:
            QueryError: the file names other tables, or has lengths of more or fewer.
        """
        if not self.table_names:
            if len(self.lengths) != len(tables):
                raise QueryError(
                    f"{self.path}: lengths has {len(self.lengths)} rows, "
                    f"the model {len(tables)} tables"
                )
            return self
        if self.table_names == list(tables):
            return self
        missing = [name for name in tables if name not in self.table_names]
        unknown = [name for name in self.table_names if name not in tables]
        if missing:
            raise QueryError(f"{self.path} has no ids for table {missing[0]} of the model")
        if unknown:
            raise QueryError(f"{self.path} has ids for table {unknown[0]}, the model has none")
        ordered = copy(self)
        rows = [self.table_names.index(name) for name in tables]
        ordered._order = [self._order[row] for row in rows]
        ordered.lengths = self.lengths[rows]
        ordered.table_names = list(tables)
        return ordered

    def table_values(self, table: int) -> Ids:
        """All ids of the table numbered `table`, sample by sample."""
        row = self._order[table] * self.samples
        return self.values[self._offsets[row] : self._offsets[row + self.samples]]

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
        rows = [row * self.samples for row in self._order]
        spans = [slice(self._offsets[row + begin], self._offsets[row + end]) for row in rows]
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


_TENSORS = ("dense", "lengths", "values", "weights", "labels")
_METADATA = ("tables", "batch", "format")  # other libraries write `format`: who made the file


def _refuse_unknown(path: Path, file: TensorFile, beside: tuple[str, ...]) -> None:
    """Refuse what would not be used."""
    for noun, names, allowed in (
        ("a tensor", file.tensors, (*_TENSORS, *beside)),
        ("metadata", file.metadata, _METADATA),
    ):
        unknown = sorted(set(names) - set(allowed))
        if unknown:
            raise QueryError(
                f"{path} has {noun} {unknown[0]!r}; a query file has {', '.join(allowed)}"
            )


def _table_names(path: Path, text: str) -> list[str]:
    """The names in the metadata `tables`."""
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise QueryError(f"{path}: metadata tables is {text[:40]!r}, not a JSON list of names")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise QueryError(f"{path}: metadata tables names {twice[0]} twice")
    return names


def _batch(path: Path, text: str) -> int:
    """The number in the metadata `batch`."""
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        raise QueryError(f"{path}: metadata batch is {text[:40]!r}, not a number of samples")
    return int(text)


def _numbers(file: TensorFile, name: str, *wanted: type[np.generic]) -> NDArray[Any]:
    """A tensor of the first `wanted` type that holds all its numbers exactly; mapped, where it can.

    Integers are taken from integers of any size, floats from any numbers.

    Raises:
        QueryError: no type holds all; the first number that does not fit is named.
    """
    info = file.info(name)
    integers = np.issubdtype(wanted[0], np.integer)
    kinds = "iu" if integers else "iuf"
    if info.dtype_name == "BF16" or info.dtype.kind not in kinds:
        noun = "integers" if integers else "numbers"
        raise QueryError(
            f"{file.path}: {name} is {info.dtype_name}, expected {np.dtype(wanted[0])} or other "
            f"{noun} that it holds"
        )
    array = file.map(name)
    for dtype in wanted:
        if array.dtype == dtype:
            return array
    for dtype in wanted:
        with np.errstate(over="ignore", invalid="ignore"):
            converted = array.astype(dtype)
            bad = (converted != array) | (converted.astype(array.dtype) != array)
        if array.dtype.kind == "f":
            bad &= ~np.isnan(array)  # it stays one
        if not bad.any():
            return converted
    position = [int(index) for index in np.argwhere(bad)[0]]
    raise QueryError(
        f"{file.path}: {name}{position} is {array[tuple(position)]}, which "
        f"{np.dtype(wanted[-1])} does not hold"
    )
