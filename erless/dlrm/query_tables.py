"""Queries from a table of samples, parquet or CSV → a query file.

A row is a sample. A DLRM takes a column per table: an id, or a list of ids (in CSV with spaces
between them); `dense`, a list of numbers, or a column per feature; and, where known, `label`. A
model cut from a graph takes a column per input, a list where it has entries of its own.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from erless.dlrm.exact_cast import cast_exactly
from erless.dlrm.graph_queries import served_inputs, write_graph_queries
from erless.dlrm.queries import Query, write_queries
from erless.errors import QueryError
from erless.specs.features import NamedTensor
from erless.specs.model import GraphTower, ModelSpec, Pooling
from erless.storage.arrow import translate_arrow_errors

__all__ = ["QueryShape", "convert_query_table", "is_query_table"]

BATCH = 32  # samples per query where nobody says
DENSE, LABELS = "dense", ("label", "labels")
MAX_INT32 = np.iinfo(np.int32).max
SUFFIXES = (".parquet", ".csv")

Array = NDArray[Any]
Columns = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class QueryShape:
    """What a model takes: `tables` and numbers of `dense` features, or a graph's `inputs`.

    weighted: tables that pool by weights, which no column gives.
    """

    tables: tuple[str, ...] = ()
    dense: int = 0
    inputs: tuple[NamedTensor, ...] = ()
    weighted: tuple[str, ...] = ()

    @classmethod
    def of_model(cls, model: ModelSpec) -> Self:
        """What the model of a bundle takes."""
        if isinstance(model.tower, GraphTower):
            return cls(inputs=model.inputs)
        features = model.feature_tables
        weighted = (each.name for each in features if each.pooling is Pooling.WEIGHTED_SUM)
        names = tuple(each.name for each in features)
        return cls(names, model.dense_features, weighted=tuple(weighted))

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """What a gateway says that its model takes (`/v2/models/{m}`).

        Raises:
            QueryError: it does not list its tables.
        """
        inputs = served_inputs(metadata["inputs"])
        if inputs:
            return cls(inputs=inputs)
        facts = metadata.get("parameters", {})
        tables = facts.get("tables", ())
        if not tables:
            raise QueryError("the gateway does not list its tables: give a query file")
        weighted = (each["name"] for each in tables if each.get("pooling") == Pooling.WEIGHTED_SUM)
        names = tuple(str(each["name"]) for each in tables)
        return cls(names, int(facts["dense_features"]), weighted=tuple(weighted))


def is_query_table(path: Path) -> bool:
    """Whether the name of `path` says that it holds a table of samples."""
    return path.suffix.lower() in SUFFIXES


def convert_query_table(
    path: Path, out: Path, shape: QueryShape, columns: Columns, batch: int | None = None
) -> None:
    """Write the samples of the table `path` as the query file `out`.

    Args:
        path: parquet or CSV, told by its name.
        out: a safetensors file to write.
        shape: what the model takes.
        columns: of tables or inputs whose column has another name; `dense` may have several, one a
            feature.
        batch: samples per query.

    Raises:
        QueryError: a column is missing, or has values that the model does not take; says which.
        StorageError: the disk refused.
    """
    samples = _Samples(path, columns, (*shape.tables, DENSE, *(t.name for t in shape.inputs)))
    if shape.inputs:
        inputs = _graph_inputs(samples, shape.inputs)
        write_graph_queries(out, inputs, batch or BATCH, samples.labels())
        return
    if shape.weighted:
        raise QueryError(
            f"{path}: table {shape.weighted[0]} pools by weights, which a table of samples has no "
            "column for: a query file has"
        )
    bags = [samples.bags(table) for table in shape.tables]
    values = np.concatenate([ids for ids, _ in bags]) if bags else np.empty(0, np.int64)
    narrow = not values.size or (int(values.min()) >= 0 and int(values.max()) <= MAX_INT32)
    query = Query(
        dense=samples.dense(shape.dense),
        values=values.astype(np.int32) if narrow else values,
        lengths=np.stack([lengths for _, lengths in bags]),
        labels=samples.labels(),
    )
    write_queries(out, query, shape.tables, batch or BATCH)


class _Samples:
    """A table of samples, read by the names that the model has.

    Raises:
        QueryError: the file is none, or a renamed column is not there or not used.
    """

    def __init__(self, path: Path, columns: Columns, known: Sequence[str]) -> None:
        self._path, self._columns = path, columns
        with translate_arrow_errors(path, QueryError):
            if path.suffix.lower() == ".csv":
                self._table = pyarrow.csv.read_csv(path)
            else:
                self._table = pyarrow.parquet.read_table(path)
        if not self._table.num_rows:
            raise QueryError(f"{path}: no samples")
        for name in columns:
            if name not in known:
                raise QueryError(f"--column {name}: the model has {', '.join(known)}")

    def has(self, name: str) -> bool:
        """Whether there is a column for `name`."""
        return name in self._columns or name in self._table.column_names

    def column(self, name: str) -> Any:
        """The column for `name`, without nulls, as one Arrow array."""
        named = self._columns.get(name, (name,))[0]
        return self._column(named, name)

    def _column(self, named: str, wanted: str) -> Any:
        if named not in self._table.column_names:
            near = difflib.get_close_matches(wanted, self._table.column_names, n=1, cutoff=0.0)
            raise QueryError(
                f"{self._path}: no column {named} for {wanted}; --column {wanted}=COLUMN names "
                f"another (the nearest is {near[0]})"
            )
        with translate_arrow_errors(self._path, QueryError):
            array = self._table.column(named).combine_chunks()
        if isinstance(array, pa.ChunkedArray):
            array = array.chunk(0)
        if array.null_count and not pa.types.is_string(array.type):
            row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
            raise QueryError(f"{self._path}: row {row}: {named} is empty")
        return array

    def bags(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """All ids of a table, sample by sample, and how many each sample has: (n,), (S,)."""
        array = self.column(name)
        with translate_arrow_errors(self._path, QueryError):
            if pa.types.is_string(array.type):  # "3 17 5"
                spaced = pc.utf8_trim_whitespace(pc.fill_null(array, ""))
                words = pc.split_pattern_regex(spaced, r"\s+")
                empty = pc.equal(spaced, "").to_numpy(zero_copy_only=False)
                lengths = np.where(empty, 0, pc.list_value_length(words).to_numpy())
                flat = words.flatten()
                array = pc.cast(flat.filter(pc.not_equal(flat, "")), pa.int64())
            elif _is_list(array.type):
                lengths = pc.list_value_length(array).to_numpy()
                array = array.flatten()
            else:
                lengths = np.ones(len(array), np.int32)
        if not pa.types.is_integer(array.type) or array.null_count:
            kind = "has a null" if array.null_count else f"is {array.type}"
            raise QueryError(f"{self._path}: {name} {kind}; row ids are integers, or lists of them")
        return array.to_numpy().astype(np.int64), lengths.astype(np.int32)

    def dense(self, width: int) -> NDArray[np.float32]:
        """Dense features, (S, F)."""
        rows = self._table.num_rows
        if not width:
            return np.zeros((rows, 0), np.float32)
        named = self._columns.get(DENSE, ())
        if len(named) > 1:
            parts = [self._numbers(self._column(name, DENSE), name) for name in named]
            dense = np.column_stack(parts)
        else:
            dense = self._numbers(self.column(DENSE), DENSE).reshape(rows, -1)
        if dense.shape[1] != width:
            raise QueryError(
                f"{self._path}: {dense.shape[1]} dense features a sample, the model takes {width}: "
                "a column of lists, or --column dense=COLUMN for each in its order"
            )
        return np.ascontiguousarray(dense, np.float32)

    def labels(self) -> NDArray[np.float32] | None:
        """Labels, (S,), where there is a column of them."""
        name = next((name for name in LABELS if name in self._table.column_names), None)
        return None if name is None else self._numbers(self._column(name, name), name)

    def _numbers(self, array: Any, name: str) -> NDArray[np.float32]:
        """Numbers, or lists of equally many."""
        if _is_list(array.type):
            lengths = pc.list_value_length(array).to_numpy()
            if len(set(lengths.tolist())) > 1:
                raise QueryError(f"{self._path}: {name} has lists of several lengths")
            array = array.flatten()
        kind = array.type
        if not (
            pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
        ):
            raise QueryError(f"{self._path}: {name} is {kind}, numbers are expected")
        return np.asarray(array.to_numpy(zero_copy_only=False), np.float32)


def _graph_inputs(samples: _Samples, inputs: Sequence[NamedTensor]) -> dict[str, Array]:
    """The inputs of all samples, those that count entries made of their lists."""
    names = {tensor.name for tensor in inputs}
    found: dict[str, Array] = {}
    for tensor in inputs:
        if tensor.per == "request":
            raise QueryError(
                f"{tensor.name} comes once per request, and a row of a table is a sample: such "
                "queries take a query file"
            )
        entries = tensor.name.removesuffix(".lengths")
        if entries != tensor.name and entries in names and not samples.has(tensor.name):
            continue  # comes of the entries
        lists = samples.column(tensor.name).to_pylist()
        lengths = tensor.name.removesuffix(".weights") + ".lengths"
        if tensor.per == "entry":
            counted = next((each for each in inputs if each.name == lengths), None)
            if counted is None:
                raise QueryError(
                    f"{tensor.name} lists entries of all samples, and no input {lengths} says how "
                    "many each has: such queries take a query file"
                )
            counts = [len(bag) for bag in lists]
            found[counted.name] = cast_exactly(counts, counted.name, counted.datatype)
            lists = [entry for bag in lists for entry in bag]
        found[tensor.name] = cast_exactly(lists, tensor.name, tensor.datatype)
    return found


def _is_list(kind: Any) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )
