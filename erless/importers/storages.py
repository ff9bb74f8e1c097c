"""Checkpoints of `torch.save`: tensors over the bytes of the file, which stays mapped.

Two formats, both read without torch's loader: a zip file with one record per storage (PyTorch 1.6
and later), and a row of pickles followed by the storages (before). A tensor is a view of a storage
by size, stride and offset; each is checked against the bytes that are there.
Source: torch/serialization.py (`_save`, `_legacy_save`).
"""

from __future__ import annotations

import io
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erless.dlrm.archive.container import Bytes, StoredZip
from erless.errors import ArtifactError, CheckpointError
from erless.importers.lazy import RangedTensor
from erless.importers.pickles import Call, Name, Reference, read_pickle
from erless.storage.ranged import LazyBytes

__all__ = ["read_tensor_bytes", "read_torch_file"]

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the format before zip
LEGACY_VERSION = 1001
MAX_PICKLE_BYTES = 64 << 20
MAX_DEPTH = 8

_DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


@dataclass(frozen=True, slots=True)
class _Storage:
    """Elements of one dtype, which the file stores under `key`."""

    key: str
    dtype: torch.dtype
    elements: int

    @property
    def size_bytes(self) -> int:
        return self.elements * self.dtype.itemsize


_Find = Callable[[_Storage], Bytes]  # its bytes, `size_bytes` of them


def read_torch_file(path: Path | str, data: Bytes) -> Any:
    """The document that `torch.save` wrote: dictionaries, lists and numbers, tensors mapped.

    Args:
        data: the bytes of the file at `path`, mapped, or read by ranges: then tensors whose
            elements lie in order are `RangedTensor`s.

    Raises:
        CheckpointError: truncated, damaged, or holding objects other than plain tensors.
    """
    document, find = _open(path, data)
    return _Rebuilder(path, find).value(document)


def read_tensor_bytes(path: Path | str, data: Bytes) -> tuple[Bytes, torch.dtype, tuple[int, ...]]:
    """The one tensor that `torch.save` wrote: its elements' bytes in order, dtype and shape.

    Args:
        data: the bytes of the file, mapped; those of the tensor are a view, if they lie in order.

    Raises:
        CheckpointError: truncated, damaged, or no plain tensor.
    """
    document, find = _open(path, data)
    builder = _Rebuilder(path, find)
    if not isinstance(document, Call):
        raise CheckpointError(f"{path}: holds a {type(document).__name__} where a tensor should be")
    storage, offset, sizes, strides = builder.layout(document, "tensor")
    if _in_order(sizes, strides):
        begin, count = offset * storage.dtype.itemsize, math.prod(sizes) * storage.dtype.itemsize
        return find(storage)[begin : begin + count], storage.dtype, tuple(sizes)
    whole: Tensor = builder.value(document)
    ordered = whole.contiguous().view(-1).view(torch.uint8).numpy()
    return ordered, storage.dtype, tuple(sizes)


def _open(path: Path | str, data: Bytes) -> tuple[Any, _Find]:
    """The pickled document, and a function that finds the bytes of its storages."""
    if data[:4].tobytes() == b"PK\x03\x04":
        return _open_zip(path, data)
    return _open_legacy(path, data)


def _open_zip(path: Path | str, data: Bytes) -> tuple[Any, _Find]:
    try:
        records = StoredZip(data, str(path), "checkpoint")
        roots = {name.partition("/")[0] for name in records.records}
        root = min(roots, default="")
        pickled = records.records.get(f"{root}/data.pkl")
        if len(roots) != 1 or pickled is None:
            raise CheckpointError(f"{path}: truncated or not a checkpoint: it has no data.pkl")
        if pickled.size > MAX_PICKLE_BYTES:
            raise CheckpointError(f"{path}: its pickle has {pickled.size:,} bytes")
        byteorder = f"{root}/byteorder"
        if byteorder in records.records and records.read(byteorder) != b"little":
            raise CheckpointError(f"{path}: was saved on a machine with big-endian numbers")
        document = read_pickle(records.read(f"{root}/data.pkl"), str(path))
    except ArtifactError as error:
        raise CheckpointError(str(error)) from error

    def find(storage: _Storage) -> Bytes:
        record = records.records.get(f"{root}/data/{storage.key}")
        if record is None or record.size != storage.size_bytes:
            stored = "no" if record is None else f"{record.size:,}"
            raise CheckpointError(
                f"{path}: storage {storage.key} needs {storage.size_bytes:,} bytes, the file has "
                f"{stored}: truncated or altered"
            )
        try:
            return records.view(f"{root}/data/{storage.key}")
        except ArtifactError as error:
            raise CheckpointError(str(error)) from error

    return document, find


def _open_legacy(path: Path | str, data: Bytes) -> tuple[Any, _Find]:
    where = str(path)
    stream = io.BufferedReader(_Mapped(data))
    if read_pickle(stream, where) != MAGIC or read_pickle(stream, where) != LEGACY_VERSION:
        raise CheckpointError(f"{path}: truncated or not a checkpoint")
    machine = read_pickle(stream, where)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise CheckpointError(f"{path}: was saved on a machine with big-endian numbers")
    document = read_pickle(stream, where)
    keys = read_pickle(stream, where)
    by_key = {storage.key: storage for storage in _storages(document, where)}
    places: dict[str, Bytes] = {}
    place = stream.tell()
    for key in keys if isinstance(keys, list) else [None]:
        storage = by_key.get(key) if isinstance(key, str) else None
        if storage is None:
            raise CheckpointError(f"{path}: truncated or not a checkpoint: a storage of nobody")
        count = int.from_bytes(data[place : place + 8].tobytes(), "little")
        begin, place = place + 8, place + 8 + storage.size_bytes
        if count != storage.elements or place > len(data):
            raise CheckpointError(
                f"{path}: truncated or not a checkpoint ({len(data):,} bytes): storage {key} needs "
                f"{storage.size_bytes:,} bytes, the file has {max(0, len(data) - begin):,}"
            )
        places[storage.key] = data[begin:place]

    def find(storage: _Storage) -> Bytes:
        if storage.key not in places:
            raise CheckpointError(f"{path}: truncated: storage {storage.key} is missing")
        return places[storage.key]

    return document, find


class _Mapped(io.RawIOBase):
    """A mapped file as a stream."""

    def __init__(self, data: Bytes) -> None:
        self._data, self._place = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = 0) -> int:
        start = (0, self._place, len(self._data))[whence]
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        part = self._data[self._place : self._place + len(buffer)]
        buffer[: len(part)] = part.tobytes()
        self._place += len(part)
        return len(part)


class _Rebuilder:
    """Builds the tensors for the calls that a pickle would have made.

    Args:
        path: of the checkpoint, for errors.
        find: gives the bytes of a storage.
    """

    def __init__(self, path: Path | str, find: _Find) -> None:
        self._path, self._find = path, find
        self._storages: dict[str, tuple[_Storage, Tensor]] = {}
        self._built: dict[int, dict[Any, Any]] = {}

    def value(self, value: Any, name: str = "", depth: int = 0) -> Any:
        """`value` with its tensors built, down to a few levels of dictionaries."""
        built: dict[Any, Any]
        if isinstance(value, dict) and depth < MAX_DEPTH:
            if id(value) not in self._built:  # a pickle may name one dictionary many times
                built = OrderedDict() if isinstance(value, OrderedDict) else {}
                self._built[id(value)] = built
                for key, item in value.items():
                    built[key] = self.value(item, f"{name}.{key}" if name else str(key), depth + 1)
            return self._built[id(value)]
        if isinstance(value, Call) and "_rebuild_" in value.function:
            return self._tensor(value, name)
        return value

    def _tensor(self, call: Call, name: str) -> Tensor | RangedTensor:
        storage, offset, sizes, strides = self.layout(call, name)
        data = self._find(storage)
        if isinstance(data, LazyBytes) and _in_order(sizes, strides):
            width = storage.dtype.itemsize
            part = data[offset * width : (offset + math.prod(sizes)) * width]
            return RangedTensor(name, storage.dtype, tuple(sizes), part)
        return torch.as_strided(self._elements(storage), sizes, strides, offset)

    def layout(self, call: Call, name: str) -> tuple[_Storage, int, list[int], list[int]]:
        """Storage, offset, sizes and strides of a tensor.

        Raises:
            CheckpointError: it is no plain tensor, or reaches beyond its storage.
        """
        call = _plain(_plain(call))
        storage = _storage_of(call.arguments[0], str(self._path)) if call.arguments else None
        layout = call.arguments[1:4]
        if "_rebuild_tensor" not in call.function or storage is None or len(layout) != 3:
            raise CheckpointError(f"{self._path}: {name} is no plain tensor")
        offset, sizes, strides = layout
        self._check(name, storage, offset, sizes, strides)
        return storage, offset, list(sizes), list(strides)

    def _check(self, name: str, storage: _Storage, offset: Any, sizes: Any, strides: Any) -> None:
        """Refuse a view that reaches beyond its storage, or repeats its elements."""
        where = f"{self._path}: {name[:200]}"
        if not (_whole([offset]) and _whole(sizes) and _whole(strides)):
            raise CheckpointError(f"{where} has a size that is no number")
        if len(sizes) != len(strides):
            raise CheckpointError(f"{where} has {len(sizes)} sizes and {len(strides)} strides")
        count = math.prod(sizes)
        steps = zip(sizes, strides, strict=True)
        last = sum((size - 1) * stride for size, stride in steps) if count else -1
        if offset + last + 1 > storage.elements:
            raise CheckpointError(
                f"{where} needs {offset + last + 1:,} elements, its storage has "
                f"{storage.elements:,}: truncated or altered"
            )
        if count > storage.elements:
            raise CheckpointError(
                f"{where} repeats its elements: {count:,} over {storage.elements:,}. Save "
                "tensor.contiguous()"
            )

    def _elements(self, storage: _Storage) -> Tensor:
        if storage.key not in self._storages:
            view = self._find(storage)
            mapped = isinstance(view, np.ndarray) and view.ctypes.data % 16 == 0
            array = np.asarray(view) if mapped else np.array(view)
            elements = torch.from_numpy(array).view(storage.dtype)
            self._storages[storage.key] = storage, elements
        first, elements = self._storages[storage.key]
        if storage != first:
            raise CheckpointError(
                f"{self._path}: storage {storage.key} is {first.elements:,} of {first.dtype} for "
                f"one tensor and {storage.elements:,} of {storage.dtype} for another"
            )
        return elements


def _plain(call: Call) -> Call:
    """The tensor that a parameter, or a tensor with attributes of Python, is rebuilt from."""
    match call.arguments:
        case (Call() as inner, *_) if "_rebuild_parameter" in call.function:
            return inner
        case (Name(path=function), Name(), tuple(arguments), *_) if "from_type" in call.function:
            return Call(function, arguments)
    return call


def _in_order(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a tensor's elements lie one after another, the last axis first."""
    expected = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    return all(size == 1 or a == b for size, a, b in zip(sizes, strides, expected, strict=True))


def _whole(numbers: Any) -> bool:
    """Whether `numbers` are integers from 0 to 2^62."""
    return isinstance(numbers, tuple | list) and all(
        type(number) is int and 0 <= number < 2**62 for number in numbers
    )


def _storage_of(reference: Any, where: str) -> _Storage:
    """The storage in a tensor's reference: ('storage', type, key, device, elements, …)."""
    place = reference.place if isinstance(reference, Reference) else None
    if not isinstance(place, tuple) or len(place) < 5 or place[0] != "storage":
        raise CheckpointError(f"{where}: truncated or not a checkpoint: a storage is missing")
    _, type_name, key, _, elements = place[:5]
    is_name = isinstance(type_name, Name)
    word = type_name.path.rpartition(".")[2].removesuffix("Storage") if is_name else ""
    view = place[5] if len(place) > 5 else None
    if word not in _DTYPES or not isinstance(key, str) or not _whole([elements]) or view:
        raise CheckpointError(f"{where}: truncated or not a checkpoint: a damaged storage")
    return _Storage(key, _DTYPES[word], elements)


def _storages(document: Any, where: str) -> Iterator[_Storage]:
    """Every storage that `document` refers to."""
    visited: set[int] = set()
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if id(value) in visited:
            continue
        visited.add(id(value))
        if isinstance(value, Reference):
            yield _storage_of(value, where)
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, Call):
            waiting.extend(value.arguments)
        elif isinstance(value, list | tuple):
            waiting.extend(value)
