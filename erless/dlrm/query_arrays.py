"""A query's arrays, as the kernels take them, and the errors for those that do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm import _kernels
from erless.errors import QueryError
from erless.specs.model import FeatureSpec, Pooling, TableSpec

__all__ = [
    "Floats",
    "Ids",
    "Lengths",
    "QueryFault",
    "as_ids",
    "as_lengths",
    "as_weights",
    "check_weights",
    "query_error",
]

Ids = NDArray[np.int32] | NDArray[np.int64]
Lengths = NDArray[np.int32]
Floats = NDArray[np.float32]


class QueryFault(IntEnum):
    """What the kernels find wrong with a query (kernels/arithmetic/ids.h, `fault_t`)."""

    RANGE = _kernels.FAULT_RANGE
    ABSENT = _kernels.FAULT_ABSENT
    LENGTH = _kernels.FAULT_LENGTH
    TOTAL = _kernels.FAULT_TOTAL
    UNWEIGHTED = _kernels.FAULT_UNWEIGHTED
    SIZE = _kernels.FAULT_SIZE


def as_ids(values: NDArray[Any]) -> Ids:
    """`values` as the kernels take them.

    Raises:
        QueryError: not a vector of int32 or int64.
    """
    if values.ndim != 1 or values.dtype not in (np.int32, np.int64):
        raise QueryError(
            f"values has shape {values.shape} of {values.dtype}, expected (n,) of int32 or int64"
        )
    return np.ascontiguousarray(values)


def as_lengths(lengths: NDArray[Any]) -> Lengths:
    """`lengths` as the kernels take them: int32; int64 is converted if it fits.

    Raises:
        QueryError: not integers, or beyond int32.
    """
    if lengths.dtype == np.int32:
        return np.ascontiguousarray(lengths)
    if lengths.dtype != np.int64:
        raise QueryError(f"lengths is {lengths.dtype}, expected int32")
    narrow = lengths.astype(np.int32)
    if not np.array_equal(narrow, lengths):
        beyond = int(lengths[narrow != lengths][0])
        raise QueryError(f"lengths: {beyond:,} ids in one bag are beyond int32")
    return np.ascontiguousarray(narrow)


def as_weights(weights: NDArray[Any] | None, values: Ids) -> Floats | None:
    """`weights` as the kernels take them.

    Raises:
        QueryError: not float32, or not one per value.
    """
    if weights is None:
        return None
    if weights.dtype != np.float32 or weights.shape != values.shape:
        raise QueryError(
            f"weights has shape {weights.shape} of {weights.dtype}, "
            f"expected {values.shape} of float32"
        )
    return np.ascontiguousarray(weights)


def check_weights(
    tables: Sequence[TableSpec | FeatureSpec], weights: Floats, lengths: Lengths
) -> None:
    """Check that weights are given to tables that use them only.

    A query has one weight for each id, of whichever table. Where the table does not pool by
    weighted sum the weight has to be 1, since any other would change nothing.

    Args:
        tables: those of the query, in its order; or its features.
        weights: (n,) float32.
        lengths: (T, B), which sum to n.

    Raises:
        QueryError: naming the table, the sample and the weight.
    """
    begin = 0
    for table, bags in zip(tables, lengths, strict=True):
        end = begin + int(bags.sum(dtype=np.int64))
        table_weights = weights[begin:end]
        if table.pooling is not Pooling.WEIGHTED_SUM and not (table_weights == 1).all():
            position = int(np.flatnonzero(table_weights != 1)[0])
            noun = "table" if isinstance(table, TableSpec) else "feature"
            sample = int(np.searchsorted(np.cumsum(bags, dtype=np.int64), position, side="right"))
            raise QueryError(
                f"{noun} {table.name}, sample {sample}: weights[{begin + position}] is "
                f"{table_weights[position]:g}, but the {noun} pools by {table.pooling.value}, "
                "which uses no weights: it has to be 1"
            )
        begin = end


def query_error(
    fault: tuple[int, int, int, int, int],
    tables: Sequence[TableSpec],
    where: str = "",
    names: Sequence[str] | None = None,
) -> QueryError:
    """Name table, sample and value of a fault that the kernels found.

    Args:
        fault: kind, index of the table, sample, position in `values`, value.
        tables: those of the query, in its order.
        where: the shard that was searched; empty for all of them.
        names: of what the query has in the tables' place.
    """
    kind, index, sample, position, value = fault
    if kind == QueryFault.TOTAL:
        return QueryError(f"lengths sum to {value:,}, but values has {position:,} ids")
    if kind == QueryFault.SIZE:
        return QueryError(f"values has {value:,} ids, at most {_kernels.MAX_IDS:,} are taken")
    table = tables[index]
    name = names[index] if names else f"table {table.name}"
    if kind == QueryFault.UNWEIGHTED:
        return QueryError(f"{name} pools by weighted sum: the query has no weights")
    bag = f"{name}, sample {sample}"
    if kind == QueryFault.LENGTH:
        return QueryError(f"{bag}: length {value} is negative")
    fact = f"is not stored in {where or 'any'}"
    if kind == QueryFault.RANGE:
        fact = f"is outside 0 … {table.rows - 1}"
    return QueryError(f"{bag}: row id {value} at values[{position}] {fact}")
