"""The monolith: the whole model in one process, the baseline of every comparison.

One `embedding_bag` per table, the tower, inference mode; nothing else on the hot path.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from erless.dlrm.queries import Query, check_query
from erless.dlrm.query_arrays import check_weights
from erless.dlrm.tower import Tower, load_tower
from erless.progress import Progress, Silent
from erless.specs.bundle import TABLE_TENSOR, BundleManifest
from erless.specs.model import ModelSpec, Pooling
from erless.storage.tensors import TensorFile

__all__ = ["Monolith"]

# torch's codes in `embedding_bag(mode=…)`
_MODES = {Pooling.SUM: 0, Pooling.WEIGHTED_SUM: 0, Pooling.MEAN: 1, Pooling.MAX: 2}


class Monolith:
    """The reference implementation of a model's prediction.

    Args:
        model: shape of the model.
        tables: one (rows, dim) float32 tensor per table, in the model's order.
        tower: the dense tower.
    """

    def __init__(self, model: ModelSpec, tables: Sequence[Tensor], tower: Tower) -> None:
        self.model, self.tables, self.tower = model, list(tables), tower
        self._features = model.feature_tables
        by_name = {spec.name: table for spec, table in zip(model.tables, tables, strict=True)}
        self._plan = [
            (by_name[lookup.table], _MODES[spec.pooling], spec.pooling is Pooling.WEIGHTED_SUM)
            for lookup, spec in zip(model.lookups, self._features, strict=True)
        ]

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        mapped: bool | None = None,
        verify: bool = True,
        progress: Progress | None = None,
    ) -> Monolith:
        """The model in the bundle at `folder`.

        Args:
            mapped: map the tables, so that pages are read when touched; False reads them into
                memory; None reads them if they take at most half of what is available.
            verify: compare every file with its digest first.

        Raises:
            ArtifactError: the bundle is missing, damaged, or (with `verify`) altered.
        """
        manifest = BundleManifest.open(folder)
        if verify:
            manifest.verify(folder, progress)
        if mapped is None:
            mapped = manifest.model.embedding_bytes > psutil.virtual_memory().available // 2
        tables: list[Tensor] = []
        total = manifest.model.embedding_bytes
        with (progress or Silent()).step("load tables", total, "bytes") as step:
            for spec in manifest.model.tables:
                file = TensorFile(manifest.table_file(folder, spec))
                rows = file.map(TABLE_TENSOR) if mapped else file.read(TABLE_TENSOR)
                tables.append(torch.from_numpy(rows))
                step.advance(spec.table_bytes)
        return cls(manifest.model, tables, load_tower(folder, manifest))

    def predict(self, query: Query) -> NDArray[np.float32]:
        """Predictions of `query`, (B,) float32.

        Raises:
            QueryError: the query does not fit the model.
        """
        with torch.inference_mode():
            prediction: NDArray[np.float32] = self.tower(
                torch.from_numpy(query.dense), self.pool(query)
            ).numpy()
        return prediction

    def pool(self, query: Query) -> list[Tensor]:
        """Pooled vectors, one (B, dim) float32 tensor per feature.

        Raises:
            QueryError: the query does not fit the model.
        """
        _check_shape(query, self.model)
        offsets = np.zeros((len(self._plan), query.batch + 1), query.values.dtype)
        np.cumsum(query.lengths, axis=1, out=offsets[:, 1:])
        ends = np.cumsum(offsets[:, -1], dtype=np.int64).tolist()
        if (ends[-1] if ends else 0) != len(query.values) or (query.lengths < 0).any():
            check_query(query, self.model)
        if query.weights is not None:
            check_weights(self._features, query.weights, query.lengths)
        values = torch.from_numpy(query.values)
        starts = torch.from_numpy(offsets)
        weights = None if query.weights is None else torch.from_numpy(query.weights)
        pooled: list[Tensor] = []
        begin = 0
        try:
            for index, (table, mode, weighted) in enumerate(self._plan):
                end = ends[index]
                bags = torch.embedding_bag(
                    table,
                    values[begin:end],
                    starts[index],
                    mode=mode,
                    per_sample_weights=_slice(weights, begin, end) if weighted else None,
                    include_last_offset=True,
                )
                pooled.append(bags[0])
                begin = end
        except (RuntimeError, IndexError):
            check_query(query, self.model)  # torch found an id outside its table: say which
            raise
        return pooled


def _slice(weights: Tensor | None, begin: int, end: int) -> Tensor | None:
    return None if weights is None else weights[begin:end]


def _check_shape(query: Query, model: ModelSpec) -> None:
    """Check what costs nothing; `check_query` says what is wrong."""
    shapes: tuple[Any, Any] = (query.lengths.shape[0], query.dense.shape)
    expected = (len(model.lookups), (query.batch, model.dense_features))
    missing = model.has_weights and query.weights is None
    if shapes != expected or missing or not np.isfinite(query.dense).all():
        check_query(query, model)
    weights = query.weights
    if weights is not None and not (
        len(weights) == len(query.values) and np.isfinite(weights).all()
    ):
        check_query(query, model)
