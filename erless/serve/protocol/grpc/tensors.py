"""Queries and answers as gRPC messages: read with JSON's checks, written as raw contents.

A message's fields become the document that `erless.serve.protocol.infer` reads, and its contents
the bytes behind it. Typed contents, which the protocol allows instead of raw ones, become such
bytes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from erless.dlrm.infer_request import DATATYPES
from erless.errors import QueryError
from erless.serve.protocol.grpc.messages import message_class
from erless.serve.protocol.infer import InferRequest, read_request
from erless.serve.protocol.served import InferAnswer, Served

__all__ = ["infer_request", "infer_response", "parameter_message"]

ModelInferRequest = message_class("ModelInferRequest")
ModelInferResponse = message_class("ModelInferResponse")
# Where typed contents of a datatype are, and how their numbers lie in raw contents.
_TYPED = {
    "BOOL": ("bool_contents", "?"),
    "INT8": ("int_contents", "i1"),
    "INT16": ("int_contents", "<i2"),
    "INT32": ("int_contents", "<i4"),
    "INT64": ("int64_contents", "<i8"),
    "UINT8": ("uint_contents", "u1"),
    "UINT16": ("uint_contents", "<u2"),
    "UINT32": ("uint_contents", "<u4"),
    "UINT64": ("uint64_contents", "<u8"),
    "FP32": ("fp32_contents", "<f4"),
    "FP64": ("fp64_contents", "<f8"),
}


def infer_request(message: Any, served: Served) -> InferRequest:
    """The query that a ModelInferRequest holds.

    Raises:
        QueryError: whatever does not fit, by name.
    """
    raw = message.raw_input_contents
    if not raw:
        contents = [_typed(tensor) for tensor in message.inputs]
    elif len(raw) != len(message.inputs):
        raise QueryError(
            f"raw_input_contents has {len(raw)} entries for {len(message.inputs)} inputs"
        )
    elif any(tensor.HasField("contents") for tensor in message.inputs):
        raise QueryError("an input has contents beside raw_input_contents")
    else:
        contents = list(raw)
    document: dict[str, Any] = {
        "parameters": _values(message.parameters),
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": _values(tensor.parameters) | {"binary_data_size": len(content)},
            }
            for tensor, content in zip(message.inputs, contents, strict=True)
        ],
    }
    if message.outputs:
        document["outputs"] = [
            {"name": output.name, "parameters": _values(output.parameters)}
            for output in message.outputs
        ]
    tail = memoryview(contents[0] if len(contents) == 1 else b"".join(contents))
    request = read_request(document, tail, served.inputs, served.outputs, served.request_parameters)
    request.id, request.binary = message.id, True
    return request


def _typed(tensor: Any) -> bytes:
    """Typed contents as raw ones."""
    contents = tensor.contents
    if tensor.datatype == "BYTES":
        strings = contents.bytes_contents
        return b"".join(len(string).to_bytes(4, "little") + string for string in strings)
    field, dtype = _TYPED.get(tensor.datatype, ("", ""))
    if not field:
        return b""  # of a datatype that has no typed contents, or is unknown
    try:
        return np.array(getattr(contents, field), dtype).tobytes()
    except OverflowError:
        raise QueryError(f"input {tensor.name}: a number is beyond {tensor.datatype}") from None


def _values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """InferParameters as JSON would have them."""
    values = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        values[name] = getattr(parameter, choice) if choice else None
    return values


def parameter_message(target: Any, value: object) -> None:
    """Set an InferParameter to `value`, of JSON."""
    if isinstance(value, bool):
        target.bool_param = value
    elif isinstance(value, int):
        target.int64_param = value
    elif isinstance(value, float):
        target.double_param = value
    else:
        target.string_param = str(value)


def infer_response(served: Served, inputs: InferRequest, answer: InferAnswer) -> bytes:
    """The ModelInferResponse: the outputs that were asked for, as raw contents."""
    message = ModelInferResponse(
        model_name=served.model, model_version=served.digest[:12], id=inputs.id or ""
    )
    for name, value in answer.parameters.items():
        parameter_message(message.parameters[name], value)
    for name in inputs.outputs or answer.outputs:
        array = answer.outputs[name]
        message.outputs.add(name=name, datatype=DATATYPES[array.dtype], shape=array.shape)
        message.raw_output_contents.append(array.tobytes())
    text: bytes = message.SerializeToString()
    return text
