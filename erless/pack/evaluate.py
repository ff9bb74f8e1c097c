"""What precision costs in predictions: the plan's own, and each other below the resident tier.

Only the rows that the queries touch are read, encoded and decoded, exactly as pack stores them
(`erless.pack.quantize` works row by row), so any table size will do. Every variant then predicts
every query with the reference implementation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from erless.dlrm.auc import auc
from erless.dlrm.queries import Query, QueryFile, check_query
from erless.dlrm.reference import Monolith
from erless.dlrm.tower import load_tower
from erless.errors import ModelError
from erless.pack.inputs import PackInputs
from erless.pack.quantize import decode, encode
from erless.progress import Progress, Silent
from erless.specs.bundle import TABLE_TENSOR, BundleManifest
from erless.specs.model import GraphTower, TableSpec
from erless.specs.plan import Precision, Tier
from erless.storage.tensors import TensorFile

__all__ = [
    "AS_PLANNED",
    "Evaluation",
    "TouchedRows",
    "compact_queries",
    "evaluate",
    "touched_rows",
]

Floats = NDArray[np.float32]

AS_PLANNED = "as planned"
CHUNK_ROWS = 1 << 18
BATCH = 1024


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Predictions at some precision against those of the fp32 bundle.

    Args:
        precision: `as planned`, or the precision of all rows below the resident tier.
        row_bytes: of all stored rows, once.
        max_error: largest |Δ prediction|.
        mean_error: mean |Δ prediction|.
        relative_error: largest |Δ prediction| ÷ |fp32 prediction|.
        auc_before, auc_after: with fp32, and so; None without labels of both kinds.
    """

    precision: str
    row_bytes: int
    max_error: float
    mean_error: float
    relative_error: float
    auc_before: float | None = None
    auc_after: float | None = None

    @property
    def auc_loss(self) -> float | None:
        """AUC given up; below 0 where it rose."""
        if self.auc_before is None or self.auc_after is None:
            return None
        return self.auc_before - self.auc_after


@dataclass(frozen=True, slots=True)
class TouchedRows:
    """The rows of one table that the queries touch: ids ascending, their rows and shards."""

    table: TableSpec
    ids: NDArray[np.int64]
    rows: Floats
    shards: NDArray[np.uint8]

    def at(self, precisions: list[Precision]) -> Floats:
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


def evaluate(
    inputs: PackInputs, queries: Path, batch: int = BATCH, progress: Progress | None = None
) -> list[Evaluation]:
    """Predict `queries` with the plan's precisions, and with each precision below the residents.

    Args:
        inputs: bundle, profile and plan.
        queries: a query file; with labels the AUC is computed too.
        batch: samples predicted at a time.
        progress: counts the queries predicted.

    Raises:
        QueryError: the queries do not fit the model.
        ModelError: a row that a precision cannot hold, or the model was cut from a graph.
    """
    if isinstance(inputs.model.tower, GraphTower):
        raise ModelError(
            f"model {inputs.model.name} was cut from a graph: what precision costs is not "
            "evaluated for such a model yet"
        )
    file = QueryFile(queries, batch).in_order_of([table.name for table in inputs.model.tables])
    touched = [
        replace(table, shards=_shards(inputs, table.table, table.ids))
        for table in touched_rows(inputs.bundle_folder, inputs.bundle, file)
    ]
    tower = load_tower(inputs.bundle_folder, inputs.bundle)
    variants = [("", [Precision.FP32] * len(inputs.plan.shards)), *_variants(inputs)]
    evaluations: list[Evaluation] = []
    before = np.empty(0, np.float32)
    with (progress or Silent()).step("evaluate", len(file) * len(variants), "queries") as step:
        for name, precisions in variants:
            tables = [torch.from_numpy(table.at(precisions)) for table in touched]
            model = Monolith(inputs.model, tables, tower)
            parts = []
            for query in compact_queries(file, touched):
                parts.append(model.predict(query))
                step.advance(1)
            scores = np.concatenate(parts) if parts else np.empty(0, np.float32)
            if not name:
                before = scores
            else:
                evaluations.append(_compare(name, inputs, precisions, before, scores, file.labels))
    return evaluations


def _variants(inputs: PackInputs) -> Iterator[tuple[str, list[Precision]]]:
    """Name, and precision by shard number."""
    shards = inputs.plan.shards
    yield AS_PLANNED, [shard.precision for shard in shards]
    for precision in Precision:
        yield (
            precision.value,
            [shard.precision if shard.tier is Tier.RESIDENT else precision for shard in shards],
        )


def touched_rows(folder: Path, bundle: BundleManifest, file: QueryFile) -> list[TouchedRows]:
    """Read what the queries touch, as if all rows were in shard 0; checks the queries on the way.

    Raises:
        QueryError: the queries do not fit the model.
    """
    for query in file:
        check_query(query, bundle.model)
    touched = []
    for number, table in enumerate(bundle.model.tables):
        ids = np.unique(file.table_values(number)).astype(np.int64)
        if not len(ids):
            ids = np.zeros(1, np.int64)
        rows = TensorFile(folder / bundle.tables[number].path).map(TABLE_TENSOR)[ids]
        touched.append(
            TouchedRows(table, ids, rows.astype(np.float32), np.zeros(len(ids), np.uint8))
        )
    return touched


def _shards(inputs: PackInputs, table: TableSpec, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The shard of each id."""
    parts = []
    with tempfile.TemporaryDirectory(prefix="erless-") as scratch:
        for window in inputs.ranks(table).windows(inputs.cuts[table.name], Path(scratch)):
            span = np.searchsorted(ids, [window.begin, window.begin + len(window.routes)])
            parts.append(window.routes[ids[span[0] : span[1]] - window.begin])
    return np.concatenate(parts)


def compact_queries(file: QueryFile, touched: list[TouchedRows]) -> Iterator[Query]:
    """The queries, with ids that are places in `touched`."""
    for query in file:
        ends = np.cumsum(query.lengths.sum(axis=1, dtype=np.int64))[:-1]
        values: list[NDArray[Any]] = [
            np.searchsorted(table.ids, part)
            for table, part in zip(touched, np.split(query.values, ends), strict=True)
        ]
        yield Query(query.dense, np.concatenate(values), query.lengths, query.weights)


def _compare(
    name: str,
    inputs: PackInputs,
    precisions: list[Precision],
    before: Floats,
    after: Floats,
    labels: Floats | None,
) -> Evaluation:
    error = np.abs(after.astype(np.float64) - before)
    scale = np.maximum(np.abs(before).astype(np.float64), np.finfo(np.float32).tiny)
    both = labels is not None and 0 < np.count_nonzero(labels) < len(labels)
    return Evaluation(
        precision=name,
        row_bytes=sum(
            part.rows * precisions[part.shard].row_bytes(part.table.dim) for part in inputs.slices
        ),
        max_error=float(error.max(initial=0)),
        mean_error=float(error.mean()) if len(error) else 0.0,
        relative_error=float((error / scale).max(initial=0)),
        auc_before=auc(labels, before) if both and labels is not None else None,
        auc_after=auc(labels, after) if both and labels is not None else None,
    )
