"""A query as Python users have it (numpy, pandas, lists) → the tensors that a gateway takes.

A model cut from a graph takes its inputs by their names. A DLRM takes one entry per table beside
`dense`: an array (B,) of an id a sample, (B, k) of k ids, or a list of B lists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.exact_cast import cast_exactly
from erless.dlrm.queries import Query
from erless.errors import QueryError

__all__ = ["as_tensors"]

Array = NDArray[Any]
KJT = {"values", "lengths", "dense", "weights"}
MAX_INT32 = np.iinfo(np.int32).max


def as_tensors(query: Any, metadata: Mapping[str, Any]) -> dict[str, Array]:
    """`query` as the inputs that `metadata` of the served model lists.

    Args:
        query: a mapping of names to arrays, lists or strings; a pandas DataFrame, whose columns
            are the inputs; or an `erless.dlrm.queries.Query`.
        metadata: what `/v2/models/{m}` answers.

    Raises:
        QueryError: an input is missing, unknown, or of a type that does not fit; says which.
    """
    if isinstance(query, Query):
        from erless.dlrm.infer_request import query_tensors

        return query_tensors(query)
    columns = _columns(query)
    listed = {tensor["name"]: tensor for tensor in metadata["inputs"]}
    if set(listed) <= KJT and not set(columns) <= KJT:
        names = [table["name"] for table in metadata["parameters"]["tables"]]
        return _jagged(columns, names, int(metadata["parameters"]["dense_features"]))
    tensors: dict[str, Array] = {}
    for name, value in columns.items():
        if name not in listed:
            raise QueryError(f"the model has no input {name!r}; it has {', '.join(listed)}")
        lengths = f"{name}.lengths"
        if lengths in listed and lengths not in columns:
            bags = _bags(value, name)
            counts = [len(bag) for bag in bags]
            tensors[lengths] = cast_exactly(counts, lengths, listed[lengths]["datatype"])
            entries = list(chain.from_iterable(bags))
            tensors[name] = cast_exactly(entries, name, listed[name]["datatype"])
        else:
            tensors[name] = cast_exactly(value, name, listed[name]["datatype"])
    missing = [name for name in listed if name not in tensors and name != "weights"]
    if missing:
        raise QueryError(f"the query lacks {', '.join(missing)}")
    return tensors


def _columns(query: Any) -> dict[str, Any]:
    """Names and values of a mapping or a DataFrame."""
    if hasattr(query, "columns") and hasattr(query, "to_numpy"):  # pandas, which is not imported
        return {str(name): query[name].to_numpy() for name in query.columns}
    if isinstance(query, Mapping):
        return {str(name): value for name, value in query.items()}
    raise QueryError(
        f"a query is a mapping of inputs or a DataFrame, this is {type(query).__name__}"
    )


def _bags(value: Any, name: str) -> list[Sequence[Any]]:
    """One sequence of ids a sample."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        return list(value.reshape(len(value), -1))
    try:
        return [bag if np.ndim(bag) else [bag] for bag in value]
    except TypeError as error:
        raise QueryError(f"{name}: one list of ids for each sample is expected") from error


def _jagged(columns: Mapping[str, Any], tables: Sequence[str], width: int) -> dict[str, Array]:
    """A KeyedJaggedTensor of one column per table."""
    unknown = [name for name in columns if name not in (*tables, "dense")]
    if unknown:
        raise QueryError(f"the model has no table {unknown[0]!r}; it has {', '.join(tables)}")
    missing = [name for name in tables if name not in columns]
    if missing:
        raise QueryError(f"the query lacks {', '.join(missing)}")
    bags = [_bags(columns[name], name) for name in tables]
    samples = {len(bag) for bag in bags}
    if len(samples) != 1:
        raise QueryError(f"tables have {', '.join(map(str, sorted(samples)))} samples: one number")
    batch = samples.pop()
    ids = [np.asarray(list(chain.from_iterable(bag))) for bag in bags]
    wrong = next(
        (n for n, array in enumerate(ids) if array.size and array.dtype.kind not in "iu"), None
    )
    if wrong is not None:
        raise QueryError(f"{tables[wrong]}: ids are integers, these are {ids[wrong].dtype}")
    values = np.concatenate([array.astype(np.int64) for array in ids])
    narrow = not values.size or (int(values.min()) >= 0 and int(values.max()) <= MAX_INT32)
    dense = columns.get("dense")
    if dense is None:
        if width:
            raise QueryError(f"the query lacks dense, {width} features of each sample")
        dense = np.zeros((batch, 0))
    return {
        "values": values.astype(np.int32) if narrow else values,
        "lengths": np.array([[len(bag) for bag in each] for each in bags], np.int32),
        "dense": np.ascontiguousarray(np.asarray(list(dense), np.float32).reshape(batch, -1)),
    }
