"""A graph's bundle in one process: what `erless predict --monolith` and `--against` compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.embedding import EmbeddingShard, StoredSlice
from erless.dlrm.graph_archives import graph_files, open_lookup, open_tower_graph
from erless.dlrm.graph_lookup import GraphQuery
from erless.dlrm.rows import INDEX_WORDS, RowIndex
from erless.specs.bundle import TABLE_TENSOR, BundleManifest
from erless.specs.model import TableSpec
from erless.specs.plan import Precision
from erless.storage.tensors import TensorFile

__all__ = ["WholeGraph", "shard_of", "whole_tables"]


def whole_tables(folder: Path, bundle: BundleManifest, *, populate: bool) -> EmbeddingShard:
    """All rows of the bundle at `folder`, mapped; `populate`: in memory at once."""
    tables = bundle.model.tables
    files = [TensorFile(bundle.table_file(folder, table)) for table in tables]
    return shard_of(tables, [file.map(TABLE_TENSOR, populate=populate) for file in files])


def shard_of(tables: Sequence[TableSpec], rows: Sequence[NDArray[Any]]) -> EmbeddingShard:
    """A shard that holds `tables` whole; `rows` are those of each, (rows, dim) float32."""
    every_row = np.empty((0, INDEX_WORDS), np.uint64)
    return EmbeddingShard(
        [
            StoredSlice(table, Precision.FP32, array, RowIndex(table.rows, every_row))
            for table, array in zip(tables, rows, strict=True)
        ]
    )


class WholeGraph:
    """The model of the bundle at `folder`.

    Args:
        verify: compare every file with its digest first.

    Raises:
        ArtifactError: it is missing, damaged, or (with `verify`) altered.
        ModelError: it is no graph.
    """

    def __init__(self, folder: Path, *, verify: bool = True, threads: int = 1) -> None:
        bundle = BundleManifest.open(folder)
        if verify:
            bundle.verify(folder)
        files = graph_files(folder, bundle)
        self.model = bundle.model
        self.lookup = open_lookup(bundle.model, files, threads=threads)
        self._tower = open_tower_graph(bundle.model, files.tower, threads=threads)
        self._shard = whole_tables(folder, bundle, populate=False)
        lanes = range(len(self.lookup.lanes))
        self._holdings = [lanes]
        self._groups = np.array(self.lookup.lanes.groups(lanes), np.int64)

    def predict(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs for `inputs`, by name. Raises QueryError as `GraphLookup.open`."""
        return self.answer(self.lookup.open(inputs, max_batch=1 << 62), self._shard)

    def answer(self, query: GraphQuery, shard: EmbeddingShard) -> dict[str, NDArray[Any]]:
        """The outputs for a query, by name, with the rows of `shard`, which has all tables."""
        bags = np.add.reduceat(np.diff(query.begins), self._groups).astype(np.int32)
        sums = self.lookup.lanes.sums(self._holdings, query.begins)
        partial = shard.pool_packed(query.values, query.lengths, query.weights, bags)
        sums.add(sums.out, 0, partial, query.lengths)
        sums.finish(sums.out, query.divisors)
        return self.lookup.finish(query, self._tower(self.lookup.tower_inputs(query, sums)))
