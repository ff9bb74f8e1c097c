"""A whole query, as gateway and monolith take it: its tensors, and the checks of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.errors import ErlessError, QueryError, ServeError
from erless.serve.protocol.tensors import TensorSpec
from erless.specs.model import ModelSpec

__all__ = ["check_query", "not_finite", "query_bytes", "query_inputs", "sample_bytes"]


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


def sample_bytes(model: ModelSpec) -> int:
    """About how many bytes each sample of a query to `model` holds until it is answered.

    Its pooled vectors three times (summed, divided, as the tower's input), and its dense inputs.
    """
    width = len(model.lookups) * max(table.dim for table in model.tables)
    return int(4 * (3 * width + model.dense_features))


def query_bytes(per_sample: int, inputs: dict[str, NDArray[Any]]) -> int:
    """About how many bytes a query holds: its ids twice (as they came, and sorted), its samples.

    Args:
        per_sample: what `sample_bytes` says of the model, computed once and not with every query.
        inputs: the query's.
    """
    return int(2 * inputs["values"].nbytes + inputs["lengths"].shape[1] * per_sample)


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
