"""Checkpoints of `torch.distributed.checkpoint`: a folder of `.metadata` and a file per trainer.

`.metadata` is a pickle, read as data like every other. It names tensors, and the pieces of each:
row-, column- or table-wise, of any trainer. A piece is a tensor as `torch.save` writes it, at some
offset of a file. Pieces stay mapped and are put together as rows are asked for.
Source: torch/distributed/checkpoint/{metadata,filesystem}.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from erless.dlrm.archive.container import Bytes
from erless.errors import ArtifactError, CheckpointError
from erless.importers.lazy import LazyTensor, checkpoint_errors
from erless.importers.pickles import Call, Name, read_pickle
from erless.importers.storages import MAX_PICKLE_BYTES, read_tensor_bytes
from erless.storage.atomic import os_errors, path_inside
from erless.storage.ranged import LazyBytes, open_ranges

__all__ = ["METADATA", "ShardedTensor", "read_distributed"]

METADATA = ".metadata"
MAX_PIECES = 4096  # of one tensor

_DCP = r"torch\.distributed\.checkpoint\."
_NAMES = re.compile(
    rf"{_DCP}metadata\.(Metadata|TensorStorageMetadata|TensorProperties|_MEM_FORMAT_ENCODING"
    r"|ChunkStorageMetadata|BytesStorageMetadata|MetadataIndex|StorageMeta)"
    rf"|{_DCP}filesystem\._StorageInfo|pathlib(\._local)?\.(Posix|Windows)Path"
)

Box = tuple[tuple[int, int], ...]  # begin and end along each axis


@dataclass(frozen=True, slots=True)
class _Piece:
    """Part of a tensor: its box in the tensor, and the bytes of a file that hold it."""

    box: Box
    file: str
    begin: int
    size_bytes: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Its extent along each axis."""
        return tuple(end - begin for begin, end in self.box)


class ShardedTensor(LazyTensor):
    """A tensor in pieces, of which rows are read as they are asked for.

    Args:
        name, dtype, shape: of the whole tensor.
        pieces: they cover it exactly.
        folder: where their files are.
    """

    def __init__(
        self,
        name: str,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        pieces: list[_Piece],
        folder: CheckpointFolder,
    ) -> None:
        super().__init__(name, dtype, shape)
        self._pieces, self._folder = pieces, folder
        self._opened: dict[_Piece, Bytes] = {}  # mapped, and their checksums compared

    def __getitem__(self, rows: slice) -> Tensor:
        begin, end, _ = rows.indices(self.shape[0])
        out = torch.empty((max(0, end - begin), *self.shape[1:]), dtype=self.dtype)
        for piece in self._pieces:
            (first, last), *rest = piece.box
            low, high = max(begin, first), min(end, last)
            if low < high:
                inner = tuple(slice(*bounds) for bounds in rest)
                part = self._read(piece, low - first, high - first)
                out[(slice(low - begin, high - begin), *inner)] = part
        return out

    def scalar(self) -> Tensor:
        """The tensor, where it has no dimension."""
        return self._read(self._pieces[0], 0, 1).reshape(())

    def _read(self, piece: _Piece, begin: int, end: int) -> Tensor:
        """Rows of a piece, in memory."""
        if piece not in self._opened:
            self._opened[piece] = self._open(piece)
        sizes = piece.sizes
        row = math.prod(sizes[1:]) * self.dtype.itemsize
        with checkpoint_errors():
            part = np.array(self._opened[piece][begin * row : end * row])
        return torch.from_numpy(part).view(self.dtype).view(-1, *sizes[1:])

    def _open(self, piece: _Piece) -> Bytes:
        """The bytes of a piece's elements, in order."""
        where = f"{self._folder.name}/{piece.file}"
        with checkpoint_errors():
            data = self._folder.open(piece.file)[piece.begin : piece.begin + piece.size_bytes]
            elements, dtype, shape = read_tensor_bytes(where, data)
        if dtype is not self.dtype or shape != piece.sizes:
            raise CheckpointError(
                f"{where}: a piece of {self.name} is {shape} of {dtype}, {METADATA} says "
                f"{piece.sizes} of {self.dtype}: altered, or of another save"
            )
        return elements


class CheckpointFolder(Protocol):
    """The files of a distributed checkpoint, wherever they lie."""

    name: str

    def open(self, file: str) -> Bytes:
        """The bytes of a file: mapped, or read by ranges.

        Raises:
            ArtifactError: there is no such file, or it lies outside.
            StorageError: the disk or bucket refused.
        """


class _LocalFolder:
    """A folder on a disk."""

    def __init__(self, folder: Path) -> None:
        self.name, self._folder = str(folder), folder

    def open(self, file: str) -> Bytes:
        path = path_inside(self._folder, file)
        with os_errors(path, "read"):
            size = path.stat().st_size
            return np.memmap(path, np.uint8, "c") if size else np.zeros(0, np.uint8)


class _BucketFolder:
    """A prefix of a bucket, each of its files opened once."""

    def __init__(self, url: str, endpoint_url: str | None) -> None:
        self.name, self._endpoint_url = url.rstrip("/"), endpoint_url
        self._files: dict[str, LazyBytes] = {}

    def open(self, file: str) -> Bytes:
        if any(part in ("", ".", "..") for part in file.split("/")):
            raise ArtifactError(f"{self.name}/{file} leads out of {self.name}")
        if file not in self._files:
            self._files[file] = LazyBytes(open_ranges(f"{self.name}/{file}", self._endpoint_url))
        return self._files[file]


def read_distributed(location: Path | str, endpoint_url: str | None = None) -> dict[str, Any]:
    """The tensors of a distributed checkpoint, nested as they were saved.

    Args:
        location: its folder, or its prefix in a bucket.
        endpoint_url: of the bucket's service, where it is not AWS's.

    Raises:
        CheckpointError: damaged, of unknown form, or naming objects other than tensors.
        ArtifactError: a file is missing.
    """
    folder: CheckpointFolder = (
        _BucketFolder(location, endpoint_url)
        if isinstance(location, str)
        else _LocalFolder(location)
    )
    path = f"{folder.name}/{METADATA}"
    described = folder.open(METADATA)
    if len(described) > MAX_PICKLE_BYTES:
        raise CheckpointError(f"{path}: has {len(described):,} bytes")
    document = _state(read_pickle(described.tobytes(), path, _NAMES), "Metadata", path)
    tensors, stored = document.get("state_dict_metadata"), document.get("storage_data")
    paths = document.get("planner_data") or {}
    if not (isinstance(tensors, dict) and isinstance(stored, dict) and isinstance(paths, dict)):
        raise CheckpointError(f"{path}: does not say which tensors lie where")
    places = dict(_places(stored, path))
    nested: dict[str, Any] = {}
    for name, entry in tensors.items():
        if not isinstance(entry, Call) or not entry.function.endswith(".TensorStorageMetadata"):
            continue  # numbers and words, whose pickles are not read
        keys = paths.get(name, (name,))
        if not isinstance(keys, tuple) or not keys:
            raise CheckpointError(f"{path}: {str(name)[:100]} stands nowhere")
        group = nested
        for key in keys[:-1]:
            group = group.setdefault(str(key), {})
            if not isinstance(group, dict):
                raise CheckpointError(f"{path}: {str(name)[:100]} stands inside of a tensor")
        group[str(keys[-1])] = _tensor(str(name), entry, places, folder)
    return nested


def _state(value: Any, kind: str, path: str) -> dict[str, Any]:
    """The fields of an object of the class `kind`."""
    if not isinstance(value, Call) or not value.function.endswith(f".{kind}"):
        raise CheckpointError(f"{path}: is no distributed checkpoint's: {kind} is missing")
    if not isinstance(value.state, dict):
        raise CheckpointError(f"{path}: damaged: a {kind} without fields")
    return value.state


def _places(stored: dict[Any, Any], path: str) -> Iterator[tuple[tuple[str, Any], dict[str, Any]]]:
    """(name, offsets) of each piece, and where it is stored."""
    for index, info in stored.items():
        key = _state(index, "MetadataIndex", path)
        offset = key.get("offset")
        offsets = None if offset is None else _sizes(offset, path)
        yield (str(key.get("fqn")), offsets), _state(info, "_StorageInfo", path)


def _tensor(
    name: str, entry: Call, places: dict[tuple[str, Any], dict[str, Any]], folder: CheckpointFolder
) -> ShardedTensor:
    """The tensor that an entry of the metadata describes; its pieces cover it exactly."""
    path = f"{folder.name}/{METADATA}"
    fields = _state(entry, "TensorStorageMetadata", path)
    shape = _sizes(fields.get("size"), path)
    dtype = _dtype(fields.get("properties"), path)
    chunks = fields.get("chunks")
    if not isinstance(chunks, list) or not 0 < len(chunks) <= MAX_PIECES:
        raise CheckpointError(f"{path}: {name} has no pieces, or more than {MAX_PIECES:,}")
    pieces = []
    for chunk in chunks:
        state = _state(chunk, "ChunkStorageMetadata", path)
        offsets, sizes = (_sizes(state.get(field), path) for field in ("offsets", "sizes"))
        if len(offsets) != len(shape) or len(sizes) != len(shape):
            raise CheckpointError(f"{path}: {name}: a piece of other dimensions")
        box = tuple((o, o + size) for o, size in zip(offsets, sizes, strict=True))
        info = places.get((name, offsets)) or places.get((name, None))
        if info is None:
            raise CheckpointError(f"{path}: {name}: it is not said where the piece {offsets} lies")
        pieces.append(_piece(name, box, info, folder))
    _check_cover(name, shape, [piece.box for piece in pieces], path)
    return ShardedTensor(name, dtype, shape, pieces, folder)


def _piece(name: str, box: Box, info: dict[str, Any], folder: CheckpointFolder) -> _Piece:
    path = f"{folder.name}/{METADATA}"
    if info.get("transform_descriptors"):
        raise CheckpointError(
            f"{path}: {name} is stored through {str(info['transform_descriptors'])[:100]}; save "
            "without extensions"
        )
    file, begin, size = (info.get(field) for field in ("relative_path", "offset", "length"))
    if not (isinstance(file, str) and isinstance(begin, int) and isinstance(size, int)):
        raise CheckpointError(f"{path}: damaged: it is not said where a piece of {name} lies")
    if begin < 0 or size < 1:
        raise CheckpointError(f"{path}: damaged: a piece of {name} lies at {begin}, {size} bytes")
    with checkpoint_errors():
        file_bytes = len(folder.open(file))
    if begin + size > file_bytes:
        raise CheckpointError(
            f"{folder.name}/{file}: {file_bytes:,} bytes, a piece of {name} ends at "
            f"{begin + size:,}: truncated"
        )
    return _Piece(box, file, begin, size)


def _check_cover(name: str, shape: tuple[int, ...], boxes: list[Box], path: str) -> None:
    """Each element lies in exactly one piece: they fill the tensor, and no two overlap."""
    bounds = np.array(boxes, np.int64).reshape(len(boxes), len(shape), 2)
    outside = (bounds[:, :, 1] > np.array(shape, np.int64)).any()
    filled = sum(math.prod(end - begin for begin, end in box) for box in boxes)
    overlap = False
    for index in range(len(boxes) - 1):
        begins = np.maximum(bounds[index, :, 0], bounds[index + 1 :, :, 0])
        ends = np.minimum(bounds[index, :, 1], bounds[index + 1 :, :, 1])
        overlap = overlap or bool((begins < ends).all(axis=1).any())
    if outside or overlap or filled != math.prod(shape):
        raise CheckpointError(
            f"{path}: the pieces of {name} do not add up to {shape}: a trainer's is missing, or "
            "two overlap"
        )


def _sizes(value: Any, path: str) -> tuple[int, ...]:
    """The numbers of a `torch.Size`."""
    sizes = value.arguments[0] if isinstance(value, Call) and len(value.arguments) == 1 else value
    if not isinstance(sizes, tuple | list) or not all(
        type(size) is int and 0 <= size < 2**62 for size in sizes
    ):
        raise CheckpointError(f"{path}: damaged: a size that is no number")
    return tuple(sizes)


def _dtype(properties: Any, path: str) -> torch.dtype:
    state = properties.state if isinstance(properties, Call) else None
    name = state[0] if isinstance(state, tuple) and state else None
    dtype = getattr(torch, name.path.rpartition(".")[2], None) if isinstance(name, Name) else None
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{path}: damaged: a tensor without a dtype")
    return dtype
