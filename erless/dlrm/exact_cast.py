"""Values as people have them → arrays of the datatype that a model takes; nothing is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.infer_request import DTYPES
from erless.errors import QueryError

__all__ = ["cast_exactly"]


def cast_exactly(value: Any, name: str, datatype: str) -> NDArray[Any]:
    """`value`, an array, lists or strings, as the `datatype` that input `name` has.

    Raises:
        QueryError: it does not hold the values.
    """
    dtype = np.dtype(DTYPES[datatype])
    array = np.asarray(value)
    if dtype.kind == "O":
        texts = [
            item.encode() if isinstance(item, str) else item for item in array.ravel().tolist()
        ]
        strings = np.empty(len(texts), object)
        strings[:] = texts
        return strings.reshape(array.shape)
    if array.dtype == object:  # a column of lists
        try:
            array = np.stack([np.asarray(row) for row in array.ravel().tolist()])
        except ValueError as error:
            raise QueryError(f"{name}: its samples differ in size") from error
    with np.errstate(invalid="ignore", over="ignore"):
        cast = np.ascontiguousarray(array.astype(dtype))
    exact = dtype.kind == "f" and array.dtype.kind in "fiu"
    if not exact and not np.array_equal(cast, array):
        raise QueryError(f"{name} is {array.dtype}: {datatype} does not hold its values")
    return cast
