"""Open Inference Protocol v2: the messages of `infer`, a request and its response.

A message is JSON, or, with the binary tensor extension, JSON and the tensors' bytes behind it; the
header `Inference-Header-Content-Length` says where the JSON ends. Tensors, and the protocol's
sources, are in `erless.serve.protocol.tensors`.

What does not fit is a `QueryError`: the client's fault, in a sentence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.bfloat16 import from_bfloat16
from erless.dlrm.infer_request import DATATYPES
from erless.errors import QueryError
from erless.http.messages import JSON_LENGTH, Response
from erless.serve.protocol.request_json import (
    flag,
    list_of_objects,
    object_of,
    parse_json,
    refuse_unknown,
    shown,
)
from erless.serve.protocol.tensors import TensorSpec, read_tensors

__all__ = ["BINARY_TYPE", "InferRequest", "decode", "encode", "read_request"]

BINARY_TYPE = b"application/octet-stream"
JSON_NUMBERS = 1 << 20  # of an answer in JSON

_REQUEST_KEYS = frozenset({"id", "inputs", "outputs", "parameters"})
_REQUEST_PARAMETERS = frozenset({"binary_data_output"})
_OUTPUT_KEYS = frozenset({"name", "parameters"})
_OUTPUT_PARAMETERS = frozenset({"binary_data"})

_TO_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


@dataclass(slots=True)
class InferRequest:
    """What a client asked for.

    Args:
        inputs: by name; arrays are views of the request's bytes where they came as such.
        parameters: of the request.
        id: to be echoed, or None.
        binary: outputs go back as bytes.
        outputs: names asked for; empty: all.
    """

    inputs: dict[str, NDArray[Any]]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    binary: bool = False
    outputs: tuple[str, ...] = ()


def decode(
    body: memoryview,
    headers: Mapping[bytes, bytes],
    specs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    own_parameters: frozenset[str] = frozenset(),
) -> InferRequest:
    """Read an `infer` request.

    Args:
        body: JSON, and the tensors behind it.
        headers: names in lower case.
        specs: the inputs that the model takes.
        outputs: what it can be asked for.
        own_parameters: names of request parameters beside the protocol's.

    Raises:
        QueryError: whatever does not fit, by name.
        ServeError: the JSON is too large.
    """
    announced = headers.get(JSON_LENGTH)
    if b"content-encoding" in headers and headers[b"content-encoding"] != b"identity":
        raise QueryError("compressed requests are not taken")
    if announced is None:
        document, tail = parse_json(body), body[:0]
    else:
        if not announced.isdigit() or len(announced) > 12 or int(announced) > len(body):
            raise QueryError(
                f"Inference-Header-Content-Length is {shown(announced.decode('latin-1'))}, "
                f"the body has {len(body):,} bytes"
            )
        document, tail = parse_json(body[: int(announced)]), body[int(announced) :]
    if not isinstance(document, dict):
        raise QueryError("the request is not a JSON object")
    return read_request(document, tail, specs, outputs, own_parameters)


def read_request(
    document: Mapping[str, Any],
    tail: memoryview,
    specs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    own_parameters: frozenset[str] = frozenset(),
) -> InferRequest:
    """Read a request whose JSON, or what stands for it, is `document`; the rest as of `decode`.

    Raises:
        QueryError: whatever does not fit, by name.
    """
    refuse_unknown("key", document, _REQUEST_KEYS, "the request")
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise QueryError("id must be a string")
    parameters = object_of(document, "parameters")
    refuse_unknown("parameter", parameters, _REQUEST_PARAMETERS | own_parameters, "the request")
    names, binary = _outputs(document, parameters, [spec.name for spec in outputs])
    return InferRequest(
        read_tensors(list_of_objects(document, "inputs"), tail, specs),
        parameters,
        identity,
        binary,
        names,
    )


def _outputs(
    document: Mapping[str, Any], parameters: Mapping[str, Any], model_outputs: Sequence[str]
) -> tuple[tuple[str, ...], bool]:
    """Names of the outputs asked for, and whether they go back as bytes."""
    binary = flag(parameters, "binary_data_output")
    if document.get("outputs") is None:
        return (), binary
    names: list[str] = []
    for output in list_of_objects(document, "outputs"):
        name = output.get("name")
        if not isinstance(name, str):
            raise QueryError("an output has no name")
        if name not in model_outputs:
            raise QueryError(
                f"output {shown(name)} is unknown: there is {', '.join(model_outputs)}"
            )
        if name in names:
            raise QueryError(f"output {name} is asked for twice")
        names.append(name)
        output_parameters = object_of(output, "parameters")
        refuse_unknown("key", output, _OUTPUT_KEYS, f"output {name}")
        refuse_unknown("parameter", output_parameters, _OUTPUT_PARAMETERS, f"output {name}")
        if "binary_data" in output_parameters:
            binary = flag(output_parameters, "binary_data")
    return tuple(names), binary


def encode(
    model: str,
    version: str,
    request: InferRequest,
    outputs: Mapping[str, NDArray[Any]],
    parameters: Mapping[str, Any],
) -> Response:
    """The response to `request`: the outputs that it asked for, as it asked for them.

    Raises:
        QueryError: an output is too large for JSON.
    """
    entries = []
    buffers: list[memoryview] = []
    for name in request.outputs or outputs:
        array = outputs[name]
        if not request.binary and array.size > JSON_NUMBERS:
            raise QueryError(
                f"output {name} has {array.size:,} numbers, at most {JSON_NUMBERS:,} are answered "
                "in JSON: ask for binary_data"
            )
        entry: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES[array.dtype],
            "shape": list(array.shape),
        }
        if request.binary:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            buffers.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        else:
            numbers = from_bfloat16(array) if entry["datatype"] == "BF16" else array
            entry["data"] = numbers.reshape(-1).tolist()
        entries.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    document |= {"parameters": parameters, "outputs": entries}
    text = _TO_JSON(document).encode()
    if not request.binary:
        return Response(200, (text,))
    return Response(200, (text, *buffers), BINARY_TYPE, ((JSON_LENGTH, b"%d" % len(text)),))
