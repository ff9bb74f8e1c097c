"""Tensors of the Open Inference Protocol v2: what a function takes and gives, and their bytes.

A tensor's elements are in its entry's `data`, or, with the binary tensor extension, in the bytes
behind the JSON, in the order of the entries, each as long as its parameter `binary_data_size` says.
Sources: kserve/open-inference-protocol specification/protocol/inference_rest.md;
triton-inference-server/server docs/protocol/extension_binary_data.md.

What does not fit is a `QueryError`: the client's fault, in a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.bfloat16 import to_bfloat16
from erless.dlrm.infer_request import DTYPES
from erless.errors import QueryError
from erless.serve.protocol.request_json import object_of, refuse_unknown, shown

__all__ = ["TensorSpec", "read_tensors"]

_INPUT_KEYS = frozenset({"name", "datatype", "shape", "data", "parameters"})
_INPUT_PARAMETERS = frozenset({"binary_data_size"})
_LENGTH_BYTES = 4  # before each string
_LARGEST_SIZE = 1 << 40
_DTYPES = {datatype: np.dtype(kind) for datatype, kind in DTYPES.items()}
_JSON_TYPES: dict[str, set[type]] = {"i": {int}, "u": {int}, "b": {bool}, "O": {str}}

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: its datatypes (metadata names the first) and shape, -1 any size.

    `shape` is None where any is taken: a tensor that only functions send each other.
    """

    name: str
    datatypes: tuple[str, ...]
    shape: tuple[int, ...] | None
    optional: bool = False

    def describe(self) -> dict[str, Any]:
        """As the model's metadata has it."""
        return {"name": self.name, "datatype": self.datatypes[0], "shape": list(self.shape or ())}


def read_tensors(
    entries: Sequence[Mapping[str, Any]], tail: memoryview, specs: Sequence[TensorSpec]
) -> dict[str, Array]:
    """Arrays by name, views of `tail` where their elements came as bytes.

    Args:
        entries: a request's `inputs`, or an answer's `outputs`.
        tail: the bytes behind the JSON.
        specs: the tensors that may be there, and must be unless they are optional.

    Raises:
        QueryError: an entry, or the length of `tail`, does not fit.
    """
    specs_by_name = {spec.name: spec for spec in specs}
    arrays: dict[str, Array] = {}
    offset = 0
    for entry in entries:
        name = entry.get("name")
        spec = specs_by_name.get(name) if isinstance(name, str) else None
        if spec is None:
            raise QueryError(
                f"input {shown(name)} is unknown: there are {', '.join(specs_by_name)}"
            )
        if spec.name in arrays:
            raise QueryError(f"input {spec.name} is given twice")
        arrays[spec.name], offset = _read_tensor(entry, spec, tail, offset)
    if offset != len(tail):
        raise QueryError(f"{len(tail) - offset:,} bytes are left behind the last tensor")
    if len(arrays) < len(specs):
        for spec in specs:
            if spec.name not in arrays and not spec.optional:
                raise QueryError(f"input {spec.name} is missing")
    return arrays


def _read_tensor(
    entry: Mapping[str, Any], spec: TensorSpec, tail: memoryview, offset: int
) -> tuple[Array, int]:
    """One tensor, its bytes (if it has some) beginning at `offset`, and where the next begin."""
    datatype = entry.get("datatype")
    if datatype not in spec.datatypes:
        raise QueryError(
            f"input {spec.name} is {shown(datatype)}, expected {' or '.join(spec.datatypes)}"
        )
    shape = _shape(entry, spec)
    parameters = object_of(entry, "parameters")
    if not (entry.keys() <= _INPUT_KEYS and parameters.keys() <= _INPUT_PARAMETERS):
        refuse_unknown("key", entry, _INPUT_KEYS, f"input {spec.name}")
        refuse_unknown("parameter", parameters, _INPUT_PARAMETERS, f"input {spec.name}")
    size = parameters.get("binary_data_size")
    if size is None:
        return _from_json(entry, spec, datatype, shape), offset
    if "data" in entry:
        raise QueryError(f"input {spec.name} has both data and binary_data_size")
    if datatype == "BYTES":
        strings, end = _strings(tail, offset, size, math.prod(shape), spec.name)
        return strings.reshape(shape), end
    return _numbers(spec.name, datatype, shape, tail, offset, size)


def _numbers(
    name: str, datatype: str, shape: tuple[int, ...], tail: memoryview, offset: int, size: object
) -> tuple[Array, int]:
    """The tensor whose `size` bytes begin at `offset`, and where they end."""
    dtype, elements = _DTYPES[datatype], math.prod(shape)
    if type(size) is not int or size != elements * dtype.itemsize:
        raise QueryError(
            f"input {name}: binary_data_size is {shown(size)}, {datatype} {list(shape)} takes "
            f"{elements * dtype.itemsize:,} bytes"
        )
    if size > len(tail) - offset:
        raise QueryError(f"input {name}: {size:,} bytes announced, {len(tail) - offset:,} are left")
    array = np.frombuffer(tail, dtype, elements, offset) if elements else np.empty(0, dtype)
    return (array if array.flags.aligned else array.copy()).reshape(shape), offset + size


def _strings(
    tail: memoryview, offset: int, size: object, elements: int, name: str
) -> tuple[Array, int]:
    """Strings, each behind its length in four bytes, and where they end."""
    whole = isinstance(size, int) and not isinstance(size, bool)
    end = offset + size if isinstance(size, int) else offset
    if not whole or not offset <= end <= len(tail) or end - offset < _LENGTH_BYTES * elements:
        raise QueryError(
            f"input {name}: binary_data_size is {shown(size)}, {len(tail) - offset:,} bytes are "
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
    if not (type(shape) is list and _fits(shape, spec.shape)):
        raise QueryError(
            f"input {spec.name}: shape is {shown(shape)}, expected {_sizes(spec)}, -1 any size"
        )
    return tuple(shape)


def _fits(shape: list[Any], sizes: tuple[int, ...] | None) -> bool:
    """Whether `shape` holds integers as `sizes` has them: -1 is any, None leaves all free."""
    if sizes is not None and len(shape) != len(sizes):
        return False
    for n, size in zip(shape, sizes or (-1,) * len(shape), strict=True):
        if type(n) is not int or not 0 <= n < _LARGEST_SIZE or size not in (-1, n):
            return False
    return True


def _sizes(spec: TensorSpec) -> list[int] | str:
    return "a list of sizes" if spec.shape is None else list(spec.shape)


def _from_json(
    entry: Mapping[str, Any], spec: TensorSpec, datatype: str, shape: tuple[int, ...]
) -> Array:
    """A tensor whose `data` is nested or flat."""
    if not isinstance(entry.get("data"), list):
        raise QueryError(f"input {spec.name} has no data")
    dtype = _DTYPES[datatype]
    flat: list[Any] = entry["data"]
    types = set(map(type, flat))
    for _ in shape[1:]:  # nested no deeper than the shape
        if list not in types:
            break
        flat = list(chain.from_iterable(item if type(item) is list else (item,) for item in flat))
        types = set(map(type, flat))
    bfloat16 = datatype == "BF16"
    allowed = {int, float} if bfloat16 else _JSON_TYPES.get(dtype.kind, {int, float})
    if not types <= allowed:
        position = next(n for n, item in enumerate(flat) if type(item) not in allowed)
        raise QueryError(
            f"input {spec.name}: element {position} is {shown(flat[position])}, not {datatype}"
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
    except OverflowError:
        raise QueryError(f"input {spec.name}: a number is beyond {datatype}") from None
    except UnicodeEncodeError:
        raise QueryError(f"input {spec.name}: a string is not Unicode text") from None
    return array.reshape(shape)
