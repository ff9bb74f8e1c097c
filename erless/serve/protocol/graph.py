"""The queries of a model cut from a graph: its own inputs in, all its outputs back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.graph_lookup import GraphLookup, GraphQuery
from erless.dlrm.lanes import LaneSums
from erless.errors import ErlessError, QueryError, ServeError
from erless.serve.protocol.forms import Holdings, Lookup, OpenQuery
from erless.serve.protocol.tensors import TensorSpec
from erless.specs.features import NamedTensor

__all__ = ["GraphForm"]

Array = NDArray[Any]
Floats = NDArray[np.float32]


class GraphForm:
    """Takes the model's inputs by their names, and gives its outputs.

    Args:
        lookup: opens queries.
        max_batch: most samples that the server takes.
    """

    joins = False  # a graph may let samples depend on each other

    def __init__(self, lookup: GraphLookup, max_batch: int) -> None:
        self._lookup, model = lookup, lookup.model
        self.max_batch = model.largest_batch(max_batch)
        self.inputs = tuple(_spec(tensor) for tensor in model.inputs)
        self.outputs = tuple(_spec(tensor) for tensor in model.outputs)
        dims = lookup.lanes.dims.tolist()
        self._ids = [(f.ids, dim) for f, dim in zip(lookup.lanes.features, dims, strict=True)]

    def memory_bytes(self, inputs: dict[str, Array]) -> int:
        """The inputs four times (as they came, for the front, by shard), and all vectors twice.

        A feature whose ids the front computes is taken to have as many as the largest input.
        """
        largest = max((array.size for array in inputs.values()), default=0)
        vectors = sum(
            dim * (inputs[name].size if name in inputs else largest) for name, dim in self._ids
        )
        return int(4 * sum(array.nbytes for array in inputs.values()) + 8 * vectors)

    def check(self, inputs: dict[str, Array]) -> None:
        """Nothing: `open` checks all."""

    def open(self, inputs: dict[str, Array]) -> OpenQuery:
        """Read a query. Raises QueryError as `GraphLookup.open`."""
        query = self._lookup.open(inputs, self.max_batch)
        lookup = Lookup(query.values, query.lengths, query.weights, query.begins, query.divisors)
        parameters: dict[str, Any] = {}
        if query.unknown:
            parameters["unknown_ids"] = sum(query.unknown.values())
            for name, count in query.unknown.items():
                parameters[f"unknown_ids.{name}"] = count
        return OpenQuery(lookup, {}, query.padded, parameters, query)

    def sums(self, query: OpenQuery, holdings: Holdings) -> LaneSums:
        """Sums that hold each lane's vectors apart."""
        return self._lookup.lanes.sums(holdings, _graph(query).begins)

    def tower_inputs(
        self, query: OpenQuery, sums: LaneSums | None, out: Floats
    ) -> dict[str, Array]:
        """The tower's inputs, by name."""
        return self._lookup.tower_inputs(_graph(query), cast("LaneSums", sums))

    def finish(self, query: OpenQuery, results: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of the samples that were asked for."""
        return self._lookup.finish(_graph(query), results)

    def not_finite(self, query: OpenQuery, out: Floats) -> ErlessError:
        """The rows' fault where their vectors are not finite, else the client's."""
        if query.lookup.weights is None and not np.isfinite(out).all():
            return ServeError(
                "the rows of this query give numbers that are not finite", 500, "rows"
            )
        return QueryError("an output is not finite: an input is too large")


def _graph(query: OpenQuery) -> GraphQuery:
    return cast("GraphQuery", query.graph)


def _spec(tensor: NamedTensor) -> TensorSpec:
    """As the protocol has it: the first size is the samples, or 1 where it is the request's.

    A graph that was made for one size is given as many samples as it takes.
    """
    first = 1 if tensor.per == "request" else -1
    shape = (first, *tensor.shape[1:]) if tensor.shape else ()
    return TensorSpec(tensor.name, (tensor.datatype,), shape)
