"""A query file and the rows that it touches, predicted again with those rows at any precision.

Only touched rows are read, so any table size will do: a query's ids become places among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from erless.dlrm.graph_lookup import GraphQuery
from erless.dlrm.graph_queries import GraphQueryFile
from erless.dlrm.quantize import decode, encode
from erless.dlrm.queries import Query, QueryFile, check_query
from erless.dlrm.reference import Monolith
from erless.dlrm.tower import load_tower
from erless.dlrm.whole_graph import WholeGraph, shard_of
from erless.specs.bundle import TABLE_TENSOR, BundleManifest
from erless.specs.model import GraphTower, TableSpec
from erless.specs.plan import Precision
from erless.storage.tensors import TensorFile

__all__ = ["Replay", "TouchedRows", "open_replay"]

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
CHUNK_ROWS = 1 << 18
_Q = TypeVar("_Q")


@dataclass(frozen=True, slots=True)
class TouchedRows:
    """The rows of one table that the queries ask for: ids ascending, their rows and shards."""

    table: TableSpec
    ids: Ids
    rows: Floats
    shards: NDArray[np.uint8]

    def at(self, precisions: Sequence[Precision]) -> Floats:
        """The rows as they come back, `precisions` by shard number."""
        out = self.rows.copy()
        for shard, precision in enumerate(precisions):
            if precision is not Precision.FP32:
                places = np.flatnonzero(self.shards == shard)
                for begin in range(0, len(places), CHUNK_ROWS):
                    part = places[begin : begin + CHUNK_ROWS]
                    stored = encode(self.rows[part], precision)
                    out[part] = decode(stored, precision, self.table.dim)
        return out


class Replay(Protocol):
    """The queries of a file, ready to be predicted.

    Args:
        touched: per table of the model; all rows in shard 0.
        labels: (S,) of the samples, or None.
    """

    touched: list[TouchedRows]
    labels: Floats | None

    def __len__(self) -> int:
        """How many queries there are."""

    def predict(
        self, tables: Sequence[Floats], answered: Callable[[], object] | None = None
    ) -> Floats:
        """The first output for all samples, flat.

        Args:
            tables: per table its touched rows.
            answered: called after each query.
        """


def open_replay(folder: Path, bundle: BundleManifest, queries: Path, batch: int) -> Replay:
    """The queries at `queries` for the bundle in `folder`, `batch` samples at a time.

    A graph's inputs that come once per request keep the file's own batch.

    Raises:
        ArtifactError: bundle or queries are damaged.
        QueryError: the queries do not fit the model.
    """
    model = bundle.model
    if not isinstance(model.tower, GraphTower):
        return _KjtReplay(folder, bundle, queries, batch)
    once = any(tensor.per != "sample" for tensor in model.inputs)
    return _GraphReplay(
        folder, bundle, GraphQueryFile(queries, model.inputs, None if once else batch)
    )


class _KjtReplay:
    """Queries of KeyedJaggedTensors."""

    def __init__(self, folder: Path, bundle: BundleManifest, queries: Path, batch: int) -> None:
        self._model, features = bundle.model, bundle.model.lookups
        self._file = QueryFile(queries, batch).in_order_of([each.name for each in features])
        for query in self._file:
            check_query(query, self._model)
        self.labels: Floats | None = self._file.labels
        names = [table.name for table in self._model.tables]
        self._tables = [names.index(feature.table) for feature in features]
        asked: list[list[Ids]] = [[] for _ in names]
        for number, table in enumerate(self._tables):
            asked[table].append(self._file.table_values(number).astype(np.int64))
        self.touched = _touched(folder, bundle, asked)
        self._tower = load_tower(folder, bundle)
        self._compact = list(self._compacted())

    def __len__(self) -> int:
        return len(self._compact)

    def predict(
        self, tables: Sequence[Floats], answered: Callable[[], object] | None = None
    ) -> Floats:
        """See `Replay`."""
        model = Monolith(self._model, [torch.from_numpy(rows) for rows in tables], self._tower)
        return _all_of(model.predict, self._compact, answered)

    def _compacted(self) -> Iterator[Query]:
        for query in self._file:
            ends = np.cumsum(query.lengths.sum(axis=1, dtype=np.int64))[:-1]
            values = [
                np.searchsorted(self.touched[table].ids, part)
                for table, part in zip(self._tables, np.split(query.values, ends), strict=True)
            ]
            yield Query(query.dense, np.concatenate(values), query.lengths, query.weights)


class _GraphReplay:
    """Queries of a model cut from a graph."""

    def __init__(self, folder: Path, bundle: BundleManifest, file: GraphQueryFile) -> None:
        self._graph = WholeGraph(folder, verify=False)
        self.labels: Floats | None = file.labels
        lookup = self._graph.lookup
        queries = [lookup.open(inputs, max_batch=1 << 62) for inputs in file]
        asked: list[list[Ids]] = [[] for _ in bundle.model.tables]
        for query in queries:
            for table, span in zip(lookup.lanes.numbers, query.spans(), strict=True):
                asked[table].append(np.unique(query.values[span]).astype(np.int64))
        self.touched = _touched(folder, bundle, asked)
        self._compact = [self._compacted(query) for query in queries]

    def __len__(self) -> int:
        return len(self._compact)

    def predict(
        self, tables: Sequence[Floats], answered: Callable[[], object] | None = None
    ) -> Floats:
        """See `Replay`."""
        few = [
            table.model_copy(update={"rows": len(rows)})
            for table, rows in zip(self._graph.model.tables, tables, strict=True)
        ]
        shard = shard_of(few, tables)
        first = self._graph.model.outputs[0].name
        return _all_of(
            lambda query: self._graph.answer(query, shard)[first], self._compact, answered
        )

    def _compacted(self, query: GraphQuery) -> GraphQuery:
        values = [
            np.searchsorted(self.touched[table].ids, query.values[span])
            for table, span in zip(self._graph.lookup.lanes.numbers, query.spans(), strict=True)
        ]
        return replace(query, values=np.concatenate(values))


def _touched(
    folder: Path, bundle: BundleManifest, asked: Sequence[Sequence[Ids]]
) -> list[TouchedRows]:
    """The rows of each table among `asked`; one where none is."""
    touched = []
    for table, entry, parts in zip(bundle.model.tables, bundle.tables, asked, strict=True):
        ids = np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int64)
        ids = ids if len(ids) else np.zeros(1, np.int64)
        rows = TensorFile(folder / entry.path).map(TABLE_TENSOR)[ids].astype(np.float32)
        touched.append(TouchedRows(table, ids, rows, np.zeros(len(ids), np.uint8)))
    return touched


def _all_of(
    predict: Callable[[_Q], NDArray[np.float32]],
    queries: Sequence[_Q],
    answered: Callable[[], object] | None,
) -> Floats:
    """The predictions of all queries, one after the other."""
    parts = []
    for query in queries:
        parts.append(np.asarray(predict(query), np.float32).reshape(-1))
        if answered is not None:
            answered()
    return np.concatenate(parts) if parts else np.empty(0, np.float32)
