"""The form of a model's queries: tensors → bags of row ids, and pooled rows → the tower's input.

Gateway and monolith use a model's `QueryForm`: `open` reads a query, `tower_inputs` makes the
tower's inputs from its pooled vectors. Plain DLRMs and those whose features share tables take a
KeyedJaggedTensor; models cut from a graph take their own inputs (`erless.serve.protocol.graph`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.graph_lookup import GraphQuery
from erless.dlrm.lanes import Lanes, LaneSums
from erless.dlrm.query_arrays import Ids, Lengths, check_weights
from erless.dlrm.rows import Buckets, Routing
from erless.errors import ErlessError, QueryError
from erless.serve.protocol.queries import (
    check_query,
    not_finite,
    query_bytes,
    query_inputs,
    sample_bytes,
)
from erless.serve.protocol.tensors import TensorSpec
from erless.specs.model import ModelSpec

__all__ = ["Holdings", "KjtForm", "Lookup", "OpenQuery", "QueryForm", "SharedKjtForm"]

Array = NDArray[Any]
Floats = NDArray[np.float32]
Holdings = Sequence[Sequence[int]]


@dataclass(slots=True)
class Lookup:
    """What a query looks up.

    Args:
        values: (n,) row ids, table by table, or lane by lane.
        lengths: (T, B); of lanes those of all bags, one after the other.
        weights: (n,) or None.
        begins: (lanes + 1,) where each lane's bags begin; None: there are no lanes.
        divisors: `lengths` as means count them, where rows are left out.
    """

    values: Ids
    lengths: Lengths
    weights: Floats | None
    begins: NDArray[np.int64] | None = None
    divisors: Lengths | None = None

    def bucketize(self, routing: Routing) -> Buckets:
        """Sort the ids by shard. Raises QueryError as `Routing.bucketize`."""
        if self.begins is None:
            return routing.bucketize(self.values, self.lengths, self.weights)
        return routing.bucketize_lanes(self.values, self.lengths, self.begins, self.weights)

    def forget_ids(self) -> None:
        """Let the request's bytes go: the ids have been sorted by shard."""
        self.values = self.values[:0].copy()
        if self.weights is not None:
            self.weights = self.weights.copy()

    @property
    def bags(self) -> NDArray[np.int64]:
        """`begins` of lanes."""
        return np.zeros(1, np.int64) if self.begins is None else self.begins

    @property
    def finishing(self) -> Lengths:
        """What means are divided by."""
        return self.lengths if self.divisors is None else self.divisors


@dataclass(slots=True)
class OpenQuery:
    """A query that was read.

    Args:
        lookup: its rows.
        tensors: what the tower needs besides them, by name.
        batch: samples.
        parameters: of the answer, about this query.
        graph: the query as `GraphLookup` opened it, of a model cut from a graph.
    """

    lookup: Lookup
    tensors: dict[str, Array]
    batch: int
    parameters: dict[str, Any] = field(default_factory=dict)
    graph: GraphQuery | None = None


class QueryForm(Protocol):
    """The queries of one model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch: int  # samples of a query
    joins: bool  # queries may be joined (`erless.serve.protocol.coalescing`)

    def memory_bytes(self, inputs: dict[str, Array]) -> int:
        """About how many bytes a query holds until it is answered."""

    def check(self, inputs: dict[str, Array]) -> None:
        """Check a query as far as `open` does not, nor sorting its ids. Raises QueryError."""

    def open(self, inputs: dict[str, Array]) -> OpenQuery:
        """Read a query that was checked; nothing of it lies in the request's bytes but `lookup`.

        Raises:
            QueryError: it does not fit the model.
        """

    def sums(self, query: OpenQuery, holdings: Holdings) -> LaneSums | None:
        """The sums that its partials are added to; None: a `Combiner` adds them.

        Args:
            query: as `open` returned it.
            holdings: per shard the numbers of its lanes.
        """

    def tower_inputs(
        self, query: OpenQuery, sums: LaneSums | None, out: Floats
    ) -> dict[str, Array]:
        """The tower's inputs by name, given the finished sums `out`."""

    def finish(self, query: OpenQuery, results: Mapping[str, Array]) -> dict[str, Array]:
        """The answer's outputs."""

    def not_finite(self, query: OpenQuery, out: Floats) -> ErlessError:
        """The error for an output that is not finite: the rows' fault, or the client's."""


class KjtForm:
    """One feature for each table: the KeyedJaggedTensor's rows are the model's tables."""

    outputs: tuple[TensorSpec, ...] = (TensorSpec("prediction", ("FP32",), (-1,)),)
    joins = True

    def __init__(self, model: ModelSpec, max_batch: int) -> None:
        self.max_batch, self._sample_bytes = model.largest_batch(max_batch), sample_bytes(model)
        self.inputs = query_inputs(model)

    def memory_bytes(self, inputs: dict[str, Array]) -> int:
        """As `query_bytes`."""
        return query_bytes(self._sample_bytes, inputs)

    def check(self, inputs: dict[str, Array]) -> None:
        """As `check_query`."""
        check_query(inputs, self.max_batch)

    def open(self, inputs: dict[str, Array]) -> OpenQuery:
        """The query's arrays are the lookup as they are."""
        lengths = inputs["lengths"].copy()
        lookup = Lookup(inputs["values"], lengths, inputs.get("weights"))
        return OpenQuery(lookup, {"dense": inputs["dense"].copy()}, lengths.shape[1])

    def sums(self, query: OpenQuery, holdings: Holdings) -> LaneSums | None:
        """None: the model's combiner adds them."""
        return None

    def tower_inputs(
        self, query: OpenQuery, sums: LaneSums | None, out: Floats
    ) -> dict[str, Array]:
        """`dense` (B, F) and `pooled` (B, T, D)."""
        return {"dense": query.tensors["dense"], "pooled": out}

    def finish(self, query: OpenQuery, results: Mapping[str, Array]) -> dict[str, Array]:
        """The prediction, as it is."""
        return dict(results)

    def not_finite(self, query: OpenQuery, out: Floats) -> ErlessError:
        """See `erless.serve.protocol.queries.not_finite`."""
        return not_finite(out, query.lookup.weights)


class SharedKjtForm(KjtForm):
    """Features that share tables: the KeyedJaggedTensor's rows are the model's features."""

    def __init__(self, model: ModelSpec, max_batch: int) -> None:
        super().__init__(model, max_batch)
        self._lanes = Lanes.of(model)
        self._inverse = np.argsort(self._lanes.order)
        self._weighted = model.has_weights

    def open(self, inputs: dict[str, Array]) -> OpenQuery:
        """Put the query's bags in the lanes' order."""
        values, lengths, weights = inputs["values"], inputs["lengths"], inputs.get("weights")
        order, lanes = list(self._lanes.order), self._lanes
        sizes = lengths.sum(axis=1, dtype=np.int64)
        ends = np.cumsum(sizes)
        total = int(ends[-1])
        if total != len(values) or lengths.min(initial=0) < 0:
            raise self._bad_lengths(lengths, total, len(values))
        begins = ends - sizes
        spans = [slice(begins[place], ends[place]) for place in order]
        lane_lengths = np.ascontiguousarray(lengths[order])
        values = np.concatenate([values[span] for span in spans])
        if weights is not None and self._weighted:
            weights = np.concatenate([weights[span] for span in spans])
            check_weights(lanes.features, weights, lane_lengths)
        batch = lengths.shape[1]
        bags = np.arange(len(lanes) + 1, dtype=np.int64) * batch
        lookup = Lookup(values, lane_lengths.reshape(-1), weights if self._weighted else None, bags)
        return OpenQuery(lookup, {"dense": inputs["dense"].copy()}, batch)

    def _bad_lengths(self, lengths: Lengths, total: int, ids: int) -> QueryError:
        if lengths.min(initial=0) < 0:
            place, sample = (int(index) for index in np.argwhere(lengths < 0)[0])
            name = self._lanes.features[int(self._inverse[place])].name
            return QueryError(
                f"feature {name}, sample {sample}: length {lengths[place, sample]} is negative"
            )
        return QueryError(f"lengths sum to {total:,}, but values has {ids:,} ids")

    def sums(self, query: OpenQuery, holdings: Holdings) -> LaneSums:
        """Sums whose vectors are in the features' order."""
        return self._lanes.samples_sums(holdings, query.batch)
