"""Open Inference Protocol v2: requests and responses of `infer`, JSON tensors and binary ones.

A request's JSON lists `inputs`; a tensor's elements are in its `data`, or, with the binary tensor
extension, in the bytes behind the JSON, in order, each as long as its parameter
`binary_data_size` says (the header `Inference-Header-Content-Length` tells where JSON ends).
Sources: kserve/open-inference-protocol specification/protocol/inference_rest.md;
triton-inference-server/server docs/protocol/extension_binary_data.md.

What does not fit is a `QueryError`: the client's fault, in a sentence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.bfloat16 import from_bfloat16, to_bfloat16
from erless.dlrm.infer_request import DATATYPES, DTYPES
from erless.errors import QueryError, ServeError
from erless.http.messages import JSON_LENGTH, Response

__all__ = [
    "BINARY_TYPE",
    "JSON_LENGTH",
    "InferRequest",
    "TensorSpec",
    "decode",
    "encode",
    "inputs_of",
]

BINARY_TYPE = b"application/octet-stream"
SHOWN = 60  # characters of what a client sent that an error repeats
JSON_BYTES = 4 << 20  # of a request's JSON: parsing that many takes some 0.1 s
DECODED_BYTES = 64 << 20  # that a request's JSON may take as Python objects
JSON_NUMBERS = 1 << 20  # of an answer in JSON
# What CPython 3.11 takes for a list, a dict, a string and any other element, with its place in
# whatever holds it.
_LIST_BYTES, _DICT_BYTES, _STRING_BYTES, _ELEMENT_BYTES = 72, 300, 60, 40
_CHARACTER_BYTES = 4  # one character beyond the Basic Multilingual Plane widens a whole string

_REQUEST_KEYS = frozenset({"id", "inputs", "outputs", "parameters"})
_REQUEST_PARAMETERS = frozenset({"binary_data_output"})
_INPUT_KEYS = frozenset({"name", "datatype", "shape", "data", "parameters"})
_INPUT_PARAMETERS = frozenset({"binary_data_size"})
_OUTPUT_KEYS = frozenset({"name", "parameters"})
_OUTPUT_PARAMETERS = frozenset({"binary_data"})

_LENGTH_BYTES = 4  # before each string

_TO_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: its datatypes (the first is what metadata says) and shape, -1 open.

    Of a tensor that only functions send each other the shape may be unknown.
    """

    name: str
    datatypes: tuple[str, ...]
    shape: tuple[int, ...] | None
    optional: bool = False

    def describe(self) -> dict[str, Any]:
        """As the model's metadata has it."""
        return {"name": self.name, "datatype": self.datatypes[0], "shape": list(self.shape or ())}


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

    inputs: dict[str, Array]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    binary: bool = False
    outputs: tuple[str, ...] = ()


def _not_a_number(text: str) -> float:
    raise QueryError(f"{text} is not JSON: numbers are finite")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise QueryError(f"{_shown(text)} is beyond what a number can be")
    return number


def _check_size(text: bytes, size: int) -> None:
    """Refuse JSON whose objects would take far more memory than its text."""
    if size > JSON_BYTES:
        raise ServeError(
            f"the request's JSON has {size:,} bytes, at most {JSON_BYTES:,} are taken: send "
            "tensors as bytes",
            413,
            "query",
        )
    decoded = (
        _CHARACTER_BYTES * size
        + _LIST_BYTES * text.count(b"[")
        + _DICT_BYTES * text.count(b"{")
        + _STRING_BYTES * text.count(b'"') // 2
        + _ELEMENT_BYTES * text.count(b",")
    )
    if decoded > DECODED_BYTES:
        raise ServeError(
            f"the request's JSON would take {decoded:,} bytes of memory, at most "
            f"{DECODED_BYTES:,} are given: send tensors as bytes",
            413,
            "query",
        )


def parse_json(text: bytes | memoryview) -> Any:
    """The document that `text` is.

    Raises:
        QueryError: it is not JSON.
        ServeError: it is too large, as text or as objects.
    """
    _check_size(bytes(text) if len(text) <= JSON_BYTES else b"", len(text))
    try:
        return json.loads(bytes(text), parse_constant=_not_a_number, parse_float=_finite)
    except RecursionError:
        raise QueryError("the request's JSON is nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError too
        raise QueryError(f"the request is not JSON: {error}") from None


def decode(
    body: memoryview,
    headers: Mapping[bytes, bytes],
    specs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    known: frozenset[str] = frozenset(),
) -> InferRequest:
    """Read an `infer` request.

    Args:
        body: JSON, and the tensors behind it.
        headers: names in lower case.
        specs: the inputs that the model takes.
        outputs: what it can be asked for.
        known: request parameters that the model has of its own.

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
                f"Inference-Header-Content-Length is {_shown(announced.decode('latin-1'))}, "
                f"the body has {len(body):,} bytes"
            )
        document, tail = parse_json(body[: int(announced)]), body[int(announced) :]
    if not isinstance(document, dict):
        raise QueryError("the request is not a JSON object")
    _refuse_unknown("key", document, _REQUEST_KEYS, "the request")
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise QueryError("id must be a string")
    parameters = _object(document, "parameters")
    _refuse_unknown("parameter", parameters, _REQUEST_PARAMETERS | known, "the request")
    names, binary = _outputs(document, parameters, [spec.name for spec in outputs])
    return InferRequest(
        inputs_of(_list(document, "inputs"), tail, specs), parameters, identity, binary, names
    )


def _refuse_unknown(what: str, given: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    """Refuse what would not be used: the client meant something by it."""
    for name in given:
        if name not in known:
            raise QueryError(
                f"{what} {_shown(name)} of {where} is unknown: there is {', '.join(sorted(known))}"
            )


def _object(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise QueryError(f"{key} must be an object")
    return value


def _list(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = document.get(key)
    if not isinstance(value, list) or not all(isinstance(tensor, dict) for tensor in value):
        raise QueryError(f"{key} must be a list of objects")
    return value


def _flag(parameters: Mapping[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise QueryError(f"parameter {name} must be true or false")
    return value


def _outputs(
    document: Mapping[str, Any], parameters: Mapping[str, Any], known: Sequence[str]
) -> tuple[tuple[str, ...], bool]:
    """Names of the outputs asked for, and whether they go back as bytes."""
    binary = _flag(parameters, "binary_data_output")
    if document.get("outputs") is None:
        return (), binary
    names: list[str] = []
    for output in _list(document, "outputs"):
        name = output.get("name")
        if not isinstance(name, str):
            raise QueryError("an output has no name")
        if name not in known:
            raise QueryError(f"output {_shown(name)} is unknown: there is {', '.join(known)}")
        if name in names:
            raise QueryError(f"output {name} is asked for twice")
        names.append(name)
        own = _object(output, "parameters")
        _refuse_unknown("key", output, _OUTPUT_KEYS, f"output {name}")
        _refuse_unknown("parameter", own, _OUTPUT_PARAMETERS, f"output {name}")
        if "binary_data" in own:
            binary = _flag(own, "binary_data")
    return tuple(names), binary


def inputs_of(
    listed: Sequence[Mapping[str, Any]], tail: memoryview, specs: Sequence[TensorSpec]
) -> dict[str, Array]:
    """The input tensors.

    Args:
        listed: `inputs` of the request.
        tail: the bytes behind the JSON.
        specs: what the model takes.
    """
    known = {spec.name: spec for spec in specs}
    found: dict[str, Array] = {}
    offset = 0
    for entry in listed:
        name = entry.get("name")
        spec = known.get(name) if isinstance(name, str) else None
        if spec is None:
            raise QueryError(f"input {_shown(name)} is unknown: there are {', '.join(known)}")
        if spec.name in found:
            raise QueryError(f"input {spec.name} is given twice")
        datatype = entry.get("datatype")
        if datatype not in spec.datatypes:
            raise QueryError(
                f"input {spec.name} is {_shown(datatype)}, expected {' or '.join(spec.datatypes)}"
            )
        shape = _shape(entry, spec)
        parameters = _object(entry, "parameters")
        _refuse_unknown("key", entry, _INPUT_KEYS, f"input {spec.name}")
        _refuse_unknown("parameter", parameters, _INPUT_PARAMETERS, f"input {spec.name}")
        size = parameters.get("binary_data_size")
        if size is None:
            found[spec.name] = _from_json(entry, spec, datatype, shape)
            continue
        if "data" in entry:
            raise QueryError(f"input {spec.name} has both data and binary_data_size")
        dtype = np.dtype(DTYPES[datatype])
        elements = math.prod(shape)
        if datatype == "BYTES":
            strings, offset = _strings(tail, offset, size, elements, spec.name)
            found[spec.name] = strings.reshape(shape)
            continue
        if isinstance(size, bool) or not isinstance(size, int) or size != elements * dtype.itemsize:
            raise QueryError(
                f"input {spec.name}: binary_data_size is {_shown(size)}, {datatype} {list(shape)} "
                f"takes {elements * dtype.itemsize:,} bytes"
            )
        if size > len(tail) - offset:
            raise QueryError(
                f"input {spec.name}: {size:,} bytes announced, {len(tail) - offset:,} are left"
            )
        array = np.frombuffer(tail, dtype, elements, offset) if elements else np.empty(0, dtype)
        found[spec.name] = (array if array.flags.aligned else array.copy()).reshape(shape)
        offset += size
    if offset != len(tail):
        raise QueryError(f"{len(tail) - offset:,} bytes are left behind the last tensor")
    for spec in specs:
        if spec.name not in found and not spec.optional:
            raise QueryError(f"input {spec.name} is missing")
    return found


def _strings(
    tail: memoryview, offset: int, size: object, elements: int, name: str
) -> tuple[Array, int]:
    """Strings, each behind its length in four bytes, and where they end."""
    whole = isinstance(size, int) and not isinstance(size, bool)
    end = offset + size if isinstance(size, int) else offset
    if not whole or not offset <= end <= len(tail) or end - offset < _LENGTH_BYTES * elements:
        raise QueryError(
            f"input {name}: binary_data_size is {_shown(size)}, {len(tail) - offset:,} bytes are "
            f"left for its {elements:,} strings"
        )
    strings = np.empty(elements, object)
    for place in range(elements):
        begin = offset + _LENGTH_BYTES
        length = int.from_bytes(tail[offset:begin], "little")
        if begin > end or length > end - begin:
            raise QueryError(f"input {name}: string {place:,} goes beyond binary_data_size")
        strings[place], offset = bytes(tail[begin : begin + length]), begin + length
    if offset != end:
        raise QueryError(f"input {name}: {end - offset:,} bytes are left behind its last string")
    return strings, end


def _shape(entry: Mapping[str, Any], spec: TensorSpec) -> tuple[int, ...]:
    shape: Any = entry.get("shape")
    fits = (
        isinstance(shape, list)
        and (spec.shape is None or len(shape) == len(spec.shape))
        and all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 40 for n in shape)
    )
    wanted = shape if spec.shape is None else spec.shape
    if not fits or any(want not in (-1, n) for want, n in zip(wanted, shape, strict=True)):
        raise QueryError(
            f"input {spec.name}: shape is {_shown(shape)}, expected {_sizes(spec)}, -1 any size"
        )
    return tuple(shape)


_JSON_TYPES: dict[str, set[type]] = {"i": {int}, "u": {int}, "b": {bool}, "O": {str}}


def _sizes(spec: TensorSpec) -> list[int] | str:
    return "a list of sizes" if spec.shape is None else list(spec.shape)


def _from_json(
    entry: Mapping[str, Any], spec: TensorSpec, datatype: str, shape: tuple[int, ...]
) -> Array:
    """A tensor whose `data` is nested or flat."""
    if not isinstance(entry.get("data"), list):
        raise QueryError(f"input {spec.name} has no data")
    dtype = np.dtype(DTYPES[datatype])
    flat: list[Any] = entry["data"]
    types = set(map(type, flat))
    for _ in shape[1:]:  # nested no deeper than the shape
        if list not in types:
            break
        flat = list(chain.from_iterable(item if type(item) is list else (item,) for item in flat))
        types = set(map(type, flat))
    bfloat16 = datatype == "BF16"
    wanted = {int, float} if bfloat16 else _JSON_TYPES.get(dtype.kind, {int, float})
    if not types <= wanted:
        position = next(n for n, item in enumerate(flat) if type(item) not in wanted)
        raise QueryError(
            f"input {spec.name}: element {position} is {_shown(flat[position])}, not {datatype}"
        )
    if len(flat) != math.prod(shape):
        raise QueryError(
            f"input {spec.name}: shape {list(shape)} has {math.prod(shape):,} elements, "
            f"data has {len(flat):,}"
        )
    try:
        if dtype.kind == "O":
            array = np.empty(len(flat), object)
            array[:] = [text.encode() for text in flat]
        elif bfloat16:
            array = to_bfloat16(np.array(flat, np.float32))
        else:
            array = np.array(flat, dtype)
    except (OverflowError, UnicodeEncodeError):
        raise QueryError(f"input {spec.name}: a number is beyond {datatype}") from None
    return array.reshape(shape)


def _shown(value: object) -> str:
    text = json.dumps(value) if value is not None else "absent"
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def encode(
    model: str,
    version: str,
    request: InferRequest,
    outputs: Mapping[str, Array],
    parameters: Mapping[str, Any],
) -> Response:
    """The response to `request`: the outputs that it asked for, as it asked for them.

    Raises:
        QueryError: an output is too large for JSON.
    """
    listed = []
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
        listed.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    document |= {"parameters": parameters, "outputs": listed}
    text = _TO_JSON(document).encode()
    if not request.binary:
        return Response(200, (text,))
    return Response(200, (text, *buffers), BINARY_TYPE, ((JSON_LENGTH, b"%d" % len(text)),))
