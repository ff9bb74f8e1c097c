"""What a graph's query looks up, and what its tower then takes.

    inputs → request front, front → ids of each feature → rows → lanes → (shards) → vectors → tower

Everything here is numpy; front and tower are functions of named arrays, whoever computes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.id_rules import IdRows, OpenFile
from erless.dlrm.lanes import Lanes, LaneSums
from erless.errors import ModelError, QueryError
from erless.specs.features import FeatureSpec, Pooling
from erless.specs.model import GraphTower, ModelSpec

__all__ = [
    "Compute",
    "FeatureBags",
    "GraphLookup",
    "GraphQuery",
    "NamedArrays",
    "graph_tower",
    "per_request",
]

Array = NDArray[Any]
NamedArrays = Mapping[str, Array]
Compute = Callable[[NamedArrays], NamedArrays]


@dataclass(slots=True)
class FeatureBags:
    """A feature's rows.

    Args:
        rows: (n,) row ids.
        lengths: rows of each bag.
        divisors: ids of each bag, those without a row among them.
        weights: (n,) or None.
        shape: of the ids where nothing is pooled, else (bags,).
        unknown: ids that no rule knows.
    """

    rows: Array
    lengths: NDArray[np.int32]
    divisors: NDArray[np.int32]
    weights: NDArray[np.float32] | None
    shape: tuple[int, ...]
    unknown: int


@dataclass(slots=True)
class GraphQuery:
    """A query to a graph, in lanes.

    Args:
        values, lengths, weights, begins, divisors: as `erless.serve.protocol.forms.Lookup` has
            them.
        shapes: per lane those of its vectors, without their dim.
        tensors: what the tower takes beside vectors, as they came: not yet repeated.
        batch: samples asked for.
        padded: samples computed, at least what the graph takes.
        unknown: feature → ids that no rule knows.
    """

    values: Array
    lengths: NDArray[np.int32]
    weights: NDArray[np.float32] | None
    begins: NDArray[np.int64]
    divisors: NDArray[np.int32]
    shapes: list[tuple[int, ...]]
    tensors: dict[str, Array]
    batch: int
    padded: int
    unknown: dict[str, int]

    def spans(self) -> list[slice]:
        """Per lane where its rows lie in `values`."""
        ends = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])[self.begins].tolist()
        return [slice(begin, end) for begin, end in pairwise(ends)]


def graph_tower(model: ModelSpec) -> GraphTower:
    """The tower of `model`.

    Raises:
        ModelError: it is no graph.
    """
    if not isinstance(model.tower, GraphTower):
        raise ModelError(f"the tower of model {model.name} is a {model.tower.kind}, not a graph")
    return model.tower


def per_request(model: ModelSpec) -> frozenset[str]:
    """Names of the inputs, front's results and vectors that come once per request."""
    tensors = {tensor.name for tensor in model.inputs if tensor.per == "request"}
    vectors = {feature.name for feature in model.features if feature.per == "request"}
    return frozenset(tensors | vectors | set(graph_tower(model).request_front_gives))


class GraphLookup:
    """The queries of a model whose tower is a graph.

    Args:
        model: the model.
        front: computes `front_gives` of `front_takes`; None where there is none.
        request_front: likewise of what comes once per request.
        open_file: finds vocabularies.

    Raises:
        ArtifactError: a vocabulary is damaged.
    """

    def __init__(
        self,
        model: ModelSpec,
        open_file: OpenFile,
        front: Compute | None = None,
        request_front: Compute | None = None,
    ) -> None:
        self.model, self.tower = model, graph_tower(model)
        self.lanes = Lanes.of(model)
        self._front, self._request_front = front, request_front
        self._rules = [
            IdRows(feature, table, open_file)
            for feature, table in zip(self.lanes.features, self.lanes.tables, strict=True)
        ]
        self._weighted = model.has_weights
        self._per_request = per_request(model)
        self._samples = {t.name for t in model.inputs if t.per == "sample" and t.shape}
        self._lane_names = [feature.name for feature in self.lanes.features]
        self._vectors = set(self._lane_names)
        self._rows = [rule.most for rule in self._rules]
        self._repeated = [name for name in self.tower.takes if name in self._per_request]

    def open(self, inputs: NamedArrays, max_batch: int) -> GraphQuery:
        """Read a query.

        Raises:
            QueryError: naming the input, or feature, sample and value, that does not fit.
        """
        batch = self._batch(inputs, max_batch)
        padded = max(batch, self.tower.batch_min)
        values = dict(inputs)
        if padded > batch:
            for name in values.keys() & self._samples:
                values[name] = _lengthen(values[name], padded)
        self._compute(values, padded)
        lanes = range(len(self.lanes))
        bags = [self._bags(lane, values, padded, checked=False) for lane in lanes]
        rows = _joined(bags)
        if self._strange(rows, bags):  # ids that are no rows: rules and errors need each feature
            bags = [self._bags(lane, values, padded, checked=True) for lane in lanes]
            rows = _joined(bags)
        tensors = {
            name: values[name].copy() for name in self.tower.takes if name not in self._vectors
        }
        lengths = np.concatenate([feature_bags.lengths for feature_bags in bags])
        all_kept = all(feature_bags.divisors is feature_bags.lengths for feature_bags in bags)
        return GraphQuery(
            values=rows,
            lengths=lengths,
            weights=self._weights(bags) if self._weighted else None,
            begins=_begins(len(feature_bags.lengths) for feature_bags in bags),
            divisors=lengths
            if all_kept
            else np.concatenate([feature_bags.divisors for feature_bags in bags]),
            shapes=[feature_bags.shape for feature_bags in bags],
            tensors=tensors,
            batch=batch,
            padded=padded,
            unknown={
                feature.name: feature_bags.unknown
                for feature, feature_bags in zip(self.lanes.features, bags, strict=True)
                if feature_bags.unknown
            },
        )

    def tower_inputs(self, query: GraphQuery, sums: LaneSums) -> dict[str, Array]:
        """What the tower takes, by name: every vector and tensor as long as the samples.

        Samples of what comes once per request are one and the same memory, with a stride of 0.
        """
        vectors = dict(zip(self._lane_names, sums.vectors(query.shapes), strict=True))
        taken = {
            name: vectors[name] if name in vectors else query.tensors[name]
            for name in self.tower.takes
        }
        for name in self._repeated:
            array = taken[name]
            if array.ndim and len(array) == 1 < query.padded:
                taken[name] = _expanded(array, query.padded)
        return taken

    def finish(self, query: GraphQuery, results: NamedArrays) -> dict[str, Array]:
        """The outputs without the samples that were added."""
        if query.batch == query.padded:
            return dict(results)
        return {
            name: array[: query.batch] if array.ndim and len(array) == query.padded else array
            for name, array in results.items()
        }

    def _batch(self, inputs: NamedArrays, max_batch: int) -> int:
        """Samples of the query, which all inputs agree on."""
        first, batch = "", self._bags_of_entries(inputs)
        for tensor in self.model.inputs:
            if not tensor.shape or tensor.per == "entry":
                continue
            size = len(inputs[tensor.name])
            if tensor.per == "request":
                if size != 1:
                    raise QueryError(
                        f"input {tensor.name} has {size:,} samples: it comes once for the request"
                    )
            elif not first:
                first, batch = tensor.name, size
            elif size != batch:
                raise QueryError(f"input {tensor.name} has {size:,} samples, {first} has {batch:,}")
        if batch < 1:
            raise QueryError(f"input {first} has no samples")
        if batch > max_batch:
            raise QueryError(f"{batch:,} samples, at most {max_batch:,} are taken")
        return batch

    def _bags_of_entries(self, inputs: NamedArrays) -> int:
        """Samples of a query of which all inputs are entries: its bags."""
        offsets = (feature.offsets for feature in self.model.features if feature.offsets)
        return next((len(inputs[name]) - 1 for name in offsets if name in inputs), 1)

    def _compute(self, values: dict[str, Array], padded: int) -> None:
        """Add what the fronts give to `values`."""
        tower = self.tower
        if self._request_front is not None:
            values |= self._request_front(
                {name: values[name] for name in tower.request_front_takes}
            )
        if self._front is not None:
            arrays = {
                name: np.repeat(values[name], padded, axis=0)
                if name in self._per_request
                else values[name]
                for name in tower.front_takes
            }
            values |= self._front(arrays)

    def _strange(self, rows: Array, bags: list[FeatureBags]) -> bool:
        """Whether one of `rows`, lane by lane, is none of its lane's table."""
        filled = [lane for lane, feature_bags in enumerate(bags) if len(feature_bags.rows)]
        if not filled:
            return False
        starts = _begins(len(bags[lane].rows) for lane in filled)[:-1]
        unsigned = rows.view(f"u{rows.dtype.itemsize}")  # a negative id is a large one
        largest = np.maximum.reduceat(unsigned, starts)
        return any(
            most >= self._rows[lane] for lane, most in zip(filled, largest.tolist(), strict=True)
        )

    def _bags(self, lane: int, values: NamedArrays, padded: int, *, checked: bool) -> FeatureBags:
        """The rows of a lane's feature; ids that are rows are looked at only if `checked`."""
        feature = self.lanes.features[lane]
        ids = values[str(feature.ids)]
        if ids.dtype != object and ids.dtype.kind not in "iu":
            raise QueryError(f"feature {feature.name}: its ids are {ids.dtype}, not integers")
        lengths, shape = _lengths(feature, ids, values)
        flat = ids.reshape(-1)
        weights = None
        if feature.weights is not None:
            weights = values[feature.weights].reshape(-1).astype(np.float32)
            if not np.isfinite(weights).all():
                raise QueryError(f"feature {feature.name}: a weight is not a finite number")
        if feature.padding_idx is not None:
            flat, lengths, weights = _keep(flat != feature.padding_idx, flat, lengths, weights)
        rule = self._rules[lane]
        rows, unknown = rule.rows(flat) if checked or not rule.exact else (flat, None)
        divisors, count = lengths, 0
        if unknown is not None:
            count = int(np.count_nonzero(unknown))
            if feature.unknown == "reject":
                raise self._rejected(lane, flat, unknown, lengths, padded)
            if feature.unknown == "zero":
                rows, lengths, weights = _keep(~unknown, rows, lengths, weights)
        return FeatureBags(rows, lengths, divisors, weights, shape, count)

    def _rejected(
        self,
        lane: int,
        ids: Array,
        unknown: NDArray[np.bool_],
        lengths: NDArray[np.int32],
        padded: int,
    ) -> QueryError:
        feature = self.lanes.features[lane]
        position = int(np.flatnonzero(unknown)[0])
        bag = int(np.searchsorted(np.cumsum(lengths, dtype=np.int64), position, side="right"))
        samples = 1 if feature.per == "request" else padded
        sample = bag * samples // max(1, len(lengths))
        value = ids[position]
        text = value.decode("utf-8", "replace")[:60] if isinstance(value, bytes) else int(value)
        fact = (
            f"is outside 0 … {self._rules[lane].most - 1}"
            if feature.rule.kind == "exact"
            else "is not in its vocabulary"
        )
        return QueryError(f"feature {feature.name}, sample {sample}: id {text!r} {fact}")

    def _weights(self, bags: list[FeatureBags]) -> NDArray[np.float32]:
        """One weight for each row: 1 where the feature has none."""
        return np.concatenate(
            [
                np.ones(len(feature_bags.rows), np.float32)
                if feature_bags.weights is None
                else feature_bags.weights
                for feature_bags in bags
            ]
        )


def _expanded(array: Array, size: int) -> Array:
    """The one sample of `array` as `size` samples, without a copy."""
    one = np.ascontiguousarray(array)
    return np.ndarray((size, *one.shape[1:]), one.dtype, one, 0, (0, *one.strides[1:]))


def _lengthen(array: Array, size: int) -> Array:
    """`array` with its last sample repeated until there are `size`."""
    missing = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing > 0 else array


def _joined(bags: list[FeatureBags]) -> Array:
    """All rows, lane by lane: int32 or int64."""
    rows = np.concatenate([feature_bags.rows for feature_bags in bags])
    return rows if rows.dtype in (np.int32, np.int64) else rows.astype(np.int64)


def _begins(counts: Iterable[int]) -> NDArray[np.int64]:
    """Where each of so many begins, and where the last ends."""
    return np.array([0, *accumulate(counts)], np.int64)


@lru_cache(maxsize=64)
def _equal_lengths(bags: int, size: int) -> NDArray[np.int32]:
    """Lengths of bags of one size; read only."""
    lengths = np.full(bags, size, np.int32)
    lengths.setflags(write=False)
    return lengths


def _lengths(
    feature: FeatureSpec, ids: Array, values: NamedArrays
) -> tuple[NDArray[np.int32], tuple[int, ...]]:
    """Ids of each bag, and the shape of the feature's vectors without their dim."""
    if feature.pooling is Pooling.NONE:
        return _equal_lengths(ids.size, 1), ids.shape
    if feature.lengths is not None:
        lengths = values[feature.lengths].reshape(-1).astype(np.int64)
        if (lengths < 0).any() or lengths.sum() != ids.size:
            raise QueryError(
                f"feature {feature.name}: its lengths do not add up to its {ids.size:,} ids"
            )
        return lengths.astype(np.int32), (len(lengths),)
    if feature.offsets is None:
        bags = math.prod(ids.shape[:-1]) if ids.ndim > 1 else len(ids)
        size = ids.shape[-1] if ids.ndim > 1 else 1
        return _equal_lengths(bags, size), (bags,)
    offsets = values[feature.offsets].reshape(-1).astype(np.int64)
    lengths = np.diff(offsets)
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != ids.size or (lengths < 0).any():
        raise QueryError(
            f"feature {feature.name}: its offsets do not ascend from 0 to its {ids.size:,} ids"
        )
    return lengths.astype(np.int32), (len(lengths),)


def _keep(
    mask: NDArray[np.bool_],
    ids: Array,
    lengths: NDArray[np.int32],
    weights: NDArray[np.float32] | None,
) -> tuple[Array, NDArray[np.int32], NDArray[np.float32] | None]:
    """Only the ids in `mask`, what is left of their bags, and their weights."""
    if mask.all():
        return ids, lengths, weights
    before = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])
    ends = np.cumsum(lengths, dtype=np.int64)
    remaining = (before[ends] - before[ends - lengths]).astype(np.int32)
    return ids[mask], remaining, None if weights is None else weights[mask]
