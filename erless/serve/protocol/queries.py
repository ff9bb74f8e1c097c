"""A whole query, as gateway and monolith take it: its tensors, and the checks of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.errors import ErlessError, QueryError, ServeError
from erless.serve.protocol.tensors import TensorSpec
from erless.specs.model import ModelSpec

__all__ = ["check_query", "not_finite", "query_bytes", "query_inputs"]


def query_inputs(model: ModelSpec) -> tuple[TensorSpec, ...]:
    """The tensors of a whole query to `model`."""
    weights = (TensorSpec("weights", ("FP32",), (-1,)),) if model.has_weights else ()
    return (
        TensorSpec("values", ("INT64", "INT32"), (-1,)),
        TensorSpec("lengths", ("INT32",), (len(model.lookups), -1)),
        TensorSpec("dense", ("FP32",), (-1, model.dense_features)),
        *weights,
    )


def not_finite(pooled: NDArray[Any], weights: NDArray[Any] | None) -> ErlessError:
    """The error for a prediction that is not finite, though all numbers of the query are.

    Args:
        pooled: the pooled vectors of its rows.
        weights: of the query; with them any row may overflow, so it is the client's fault.
    """
    if weights is None and not np.isfinite(pooled).all():
        return ServeError("the rows of this query give numbers that are not finite", 500, "rows")
    return QueryError("the prediction is not finite: a dense feature or weight is too large")


def query_bytes(model: ModelSpec, inputs: dict[str, NDArray[Any]]) -> int:
    """About how many bytes a query to `model` holds until it is answered.

    Its ids twice (as they came, and sorted by shard), and per sample the pooled vectors three times
    (summed, divided, as the tower's input).
    """
    batch = int(inputs["lengths"].shape[1])
    width = len(model.lookups) * max(table.dim for table in model.tables)
    return int(2 * inputs["values"].nbytes + 4 * batch * (3 * width + model.dense_features))


def check_query(inputs: dict[str, NDArray[Any]], max_batch: int) -> None:
    """Check what neither bucketize nor the kernels do.

    Raises:
        QueryError: saying what does not fit.
    """
    dense, lengths, weights = inputs["dense"], inputs["lengths"], inputs.get("weights")
    batch = lengths.shape[1]
    if batch > max_batch:
        raise QueryError(f"{batch:,} samples, at most {max_batch:,} are taken")
    if len(dense) != batch:
        raise QueryError(f"dense has {len(dense):,} samples, lengths {batch:,}")
    for name, array in (("dense", dense), ("weights", weights)):
        if array is not None and not np.isfinite(array).all():
            position = [int(index) for index in np.argwhere(~np.isfinite(array))[0]]
            raise QueryError(f"{name}{position} is {array[tuple(position)]}: not a finite number")
