"""Queries as infer requests of the Open Inference Protocol v2, with binary tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.queries import Query

__all__ = ["DATATYPES", "DTYPES", "infer_request", "query_tensors"]

Array = NDArray[Any]
DTYPES = {
    "BOOL": "|b1",
    "UINT8": "|u1",
    "INT8": "|i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "BF16": "<u2",  # its bits: see erless.dlrm.bfloat16
    "FP32": "<f4",
    "FP64": "<f8",
    "BYTES": "|O",
}
DATATYPES = {np.dtype(code): name for name, code in DTYPES.items()}


def query_tensors(query: Query) -> dict[str, Array]:
    """The inputs of a KeyedJaggedTensor `query`, by name."""
    tensors: dict[str, Array] = {
        "values": query.values,
        "lengths": query.lengths,
        "dense": query.dense,
    }
    if query.weights is not None:
        tensors["weights"] = query.weights
    return tensors


def infer_request(inputs: Mapping[str, Array]) -> tuple[bytes, list[bytes]]:
    """JSON head and tensors of a request for all outputs, binary both ways.

    Args:
        inputs: by name; strings are object arrays of bytes.
    """
    listed, buffers = [], []
    for name, array in inputs.items():
        data = _strings(array) if array.dtype == object else array.tobytes()
        buffers.append(data)
        listed.append(
            {
                "name": name,
                "datatype": DATATYPES[array.dtype],
                "shape": list(array.shape),
                "parameters": {"binary_data_size": len(data)},
            }
        )
    head = {"inputs": listed, "parameters": {"binary_data_output": True}}
    return json.dumps(head, separators=(",", ":")).encode(), buffers


def _strings(array: Array) -> bytes:
    texts = array.reshape(-1).tolist()
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
