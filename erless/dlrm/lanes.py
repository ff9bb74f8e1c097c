"""Lanes: a model's features, sorted so that those of one table are neighbours.

Routing, shards and partials go table by table. Where features share a table, or differ in how many
bags they have, each feature is a lane: its ids lie between those of the lanes before and behind it,
and a shard sees the bags of a table's lanes one after the other, as if they were one feature's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Self

import numpy as np
from numpy.typing import NDArray

from erless.dlrm import _kernels
from erless.dlrm.query_arrays import Floats, Lengths
from erless.specs.features import FeatureSpec
from erless.specs.model import ModelSpec, Pooling, TableSpec

__all__ = ["LaneSums", "Lanes"]

Begins = NDArray[np.int64]


@dataclass(frozen=True)
class Lanes:
    """The lanes of a model.

    Args:
        features: in the lanes' order.
        tables: each lane's.
        order: each lane's feature as an index into `ModelSpec.lookups`.
        numbers: each lane's table as an index into `ModelSpec.tables`; ascending.
    """

    features: tuple[FeatureSpec, ...]
    tables: tuple[TableSpec, ...]
    order: tuple[int, ...]
    numbers: tuple[int, ...]

    @classmethod
    def of(cls, model: ModelSpec) -> Self:
        """The lanes of `model`."""
        lookups = model.lookups
        numbers = {table.name: number for number, table in enumerate(model.tables)}
        places = sorted(range(len(lookups)), key=lambda place: numbers[lookups[place].table])
        features = tuple(lookups[place] for place in places)
        table_numbers = tuple(numbers[feature.table] for feature in features)
        return cls(
            features, tuple(model.tables[n] for n in table_numbers), tuple(places), table_numbers
        )

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What errors call each lane."""
        return tuple(f"feature {feature.name}" for feature in self.features)

    @cached_property
    def poolings(self) -> NDArray[np.int64]:
        """How each lane's partials are added up, in the kernels' numbers."""
        return np.array(
            [
                _kernels.POOLING_MAX
                if table.pooling is Pooling.MAX
                else _kernels.POOLING_MEAN
                if feature.pooling is Pooling.MEAN
                else _kernels.POOLING_SUM
                for feature, table in zip(self.features, self.tables, strict=True)
            ],
            np.int64,
        )

    @cached_property
    def dims(self) -> NDArray[np.int64]:
        """Each lane's dim."""
        return np.array([table.dim for table in self.tables], np.int64)

    def holding(self, tables: Sequence[int]) -> tuple[int, ...]:
        """The lanes of those of the model's tables."""
        return tuple(lane for lane, number in enumerate(self.numbers) if number in tables)

    def groups(self, lanes: Sequence[int]) -> tuple[int, ...]:
        """Where, in `lanes`, those of each table begin."""
        starts, at = [], 0
        for _, group in groupby(lanes, key=lambda lane: self.numbers[lane]):
            starts.append(at)
            at += len(list(group))
        return tuple(starts)

    def sums(self, holdings: Sequence[Sequence[int]], begins: Begins) -> LaneSums:
        """Sums of a query, every lane's vectors for themselves.

        Args:
            holdings: per shard its lanes.
            begins: (lanes + 1,) where each lane's bags begin.
        """
        counts = np.diff(begins)
        columns = np.concatenate([[0], np.cumsum(counts * self.dims)])
        places = np.stack([columns[:-1], self.dims, self.poolings, self.dims], axis=1)
        return LaneSums(holdings, begins, places, np.empty(int(columns[-1]), np.float32))

    def samples_sums(self, holdings: Sequence[Sequence[int]], batch: int) -> LaneSums:
        """Sums of a query all of whose features have one bag for each sample.

        Their vectors are `out` (B, F, D): features in the model's order, D the largest dim.
        """
        width = int(self.dims.max())
        out = np.empty((batch, len(self), width), np.float32)
        places = np.stack(
            [
                np.array(self.order, np.int64) * width,
                self.dims,
                self.poolings,
                np.full(len(self), len(self) * width),
            ],
            axis=1,
        )
        return LaneSums(holdings, np.arange(len(self) + 1) * batch, places, out)


class LaneSums:
    """The sums of one query, into which every shard's partial is added.

    It stands in for `erless.dlrm.embedding.Combiner`, whose methods have the same names.

    Args:
        holdings: per shard its lanes.
        begins: (lanes + 1,) where each lane's bags begin.
        places: (lanes, 4): where the first vector goes in `out`, dim, pooling, from bag to bag.
        out: float32.
    """

    def __init__(
        self,
        holdings: Sequence[Sequence[int]],
        begins: Begins,
        places: NDArray[np.int64],
        out: Floats,
    ) -> None:
        self._holdings, self._begins, self.out = holdings, begins, out
        self._places = np.ascontiguousarray(places)
        _kernels.combine_begin(begins, out, self._places)

    def add(
        self,
        out: Floats,
        shard: int,
        partial: Floats | NDArray[np.float16],
        lengths: Lengths,
        *,
        packed: bool = True,
    ) -> None:
        """Add the packed partial that `shard` answered for `lengths`, of any shape.

        Raises:
            ValueError: the partial does not have the size that `lengths` asks for.
        """
        lanes = list(self._holdings[shard])
        begins = np.zeros(len(lanes) + 1, np.int64)
        np.cumsum((self._begins[1:] - self._begins[:-1])[lanes], out=begins[1:])
        places = np.ascontiguousarray(self._places[lanes])
        _kernels.combine(begins, out, places, np.ascontiguousarray(lengths), partial, packed)

    def keep(self, out: Floats, split: _kernels.Split) -> None:
        """Add the rows that `Routing.bucketize` found in this process."""
        split.pool(out, self._places)

    def finish(self, out: Floats, lengths: Lengths) -> Floats:
        """Divide means by `lengths` of all bags; bags without a row become zero."""
        _kernels.combine_end(self._begins, out, self._places, np.ascontiguousarray(lengths))
        return out

    def vectors(self, shapes: Sequence[tuple[int, ...]]) -> list[Floats]:
        """Each lane's vectors, (*shape, dim): views, where lanes lie one after the other."""
        starts, out = self._places[:, 0].tolist(), self.out
        dims = self._places[:, 1].tolist()
        return [
            out[start:end].reshape(*shape, dim)
            for start, end, shape, dim in zip(
                starts, [*starts[1:], None], shapes, dims, strict=True
            )
        ]
