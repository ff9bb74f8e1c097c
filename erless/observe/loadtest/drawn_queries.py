"""Queries drawn for the model that a gateway serves: rows by a power law, or as a profile has them.

The power law is of locality P; which rows are hot is made up, for only a profile knows that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.queries import Query
from erless.dlrm.workload import PowerLaw, RowOrder
from erless.errors import QueryError
from erless.observe.loadtest.encoded_queries import Body, build
from erless.observe.loadtest.served_model import ServedModel
from erless.specs.profile import MANIFEST, Profile
from erless.storage.tensors import TensorFile

__all__ = ["generate"]

POOLING = 32  # ids per bag where nobody says

Floats = NDArray[np.float32]


def generate(
    served: ServedModel,
    count: int,
    *,
    locality: float = 0.9,
    batch: int | None = None,
    pooling: int | None = None,
    profile: Path | None = None,
    seed: int = 0,
) -> Iterator[Body]:
    """Draw `count` queries that fit the served model.

    Raises:
        QueryError: the gateway does not list its tables, or `locality` is not within 0 … 1.
        ArtifactError: the profile is damaged.
    """
    _check_drawable(served, locality)
    samples = batch or served.batch
    profiled = _profiled(profile) if profile else {}
    generator = np.random.default_rng(seed)
    orders = [
        RowOrder.seeded(int(table["rows"]), np.random.default_rng([seed, index]))
        for index, table in enumerate(served.tables)
    ]
    wide = any(int(table["rows"]) >= 2**31 for table in served.tables)
    for index in range(count):
        columns, lengths = [], []
        for table, order in zip(served.tables, orders, strict=True):
            counted = profiled.get(str(table["name"]))
            usual = counted.pooling if counted else float(table.get("pooling_factor") or POOLING)
            per_bag = max(1, round(pooling or usual))
            lengths.append(np.full(samples, per_bag, np.int32))
            if counted is None:
                power_law = PowerLaw(int(table["rows"]), locality)
                columns.append(order.ids(power_law.sample(generator, samples * per_bag)))
            else:
                columns.append(counted.sample(generator, samples * per_bag))
        values = np.concatenate(columns)
        query = Query(
            dense=generator.standard_normal((samples, served.dense_features), np.float32),
            values=values.astype(np.int64) if wide else values.astype(np.int32),
            lengths=np.stack(lengths),
            weights=_weights(served, [len(column) for column in columns], generator),
        )
        yield build(query, index)


def _check_drawable(served: ServedModel, locality: float) -> None:
    """Refuse a model for which no queries can be drawn. Raises QueryError."""
    if served.inputs:
        raise QueryError(f"{served.name} takes inputs of its own: give --queries, a file of them")
    if not served.tables:
        raise QueryError(f"{served.name}: the gateway does not list its tables: give --queries")
    if not 0 < locality < 1:
        raise QueryError(f"locality is {locality:g}: it must lie between 0 and 1")


def _weights(
    served: ServedModel, sizes: Sequence[int], generator: np.random.Generator
) -> Floats | None:
    """Weights for `sizes` ids of each table: random where they are used, 1 elsewhere."""
    weighted = [table.get("pooling") == "weighted_sum" for table in served.tables]
    if not any(weighted):
        return None
    parts = [
        generator.random(size, np.float32) if used else np.ones(size, np.float32)
        for used, size in zip(weighted, sizes, strict=True)
    ]
    return np.concatenate(parts)


@dataclass(frozen=True)
class _Counted:
    """A table's row ids (n,), the running totals of their accesses (n,), its ids per bag."""

    ids: NDArray[np.int64]
    totals: NDArray[np.int64]
    pooling: float

    def sample(self, generator: np.random.Generator, count: int) -> NDArray[np.int64]:
        drawn = generator.integers(int(self.totals[-1]), size=count)
        return self.ids[np.searchsorted(self.totals, drawn, side="right")]


def _profiled(folder: Path) -> dict[str, _Counted]:
    counted = {}
    for access in Profile.load(folder / MANIFEST).tables:
        if access.counts is not None and access.accesses:
            file = TensorFile(folder / access.counts.path)
            totals = np.cumsum(file.map("counts").astype(np.int64))
            counted[access.table] = _Counted(
                file.map("ids").astype(np.int64), totals, access.pooling_factor
            )
    return counted
