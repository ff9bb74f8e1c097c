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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from erless.errors import ArtifactError, CheckpointError
from erless.importers.pickles import Call, Name, read_pickle
from erless.importers.storages import MAX_PICKLE_BYTES, read_tensor_bytes
from erless.storage.atomic import os_errors, path_inside

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
    file: Path
    begin: int
    size_bytes: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Its extent along each axis."""
        return tuple(end - begin for begin, end in self.box)


class ShardedTensor:
    """A tensor in pieces, of which rows are read as they are asked for.

    Args:
        name: of the tensor, for errors.
        dtype, shape: of the whole tensor.
        pieces: they cover it exactly.
    """

    def __init__(
        self, name: str, dtype: torch.dtype, shape: tuple[int, ...], pieces: list[_Piece]
    ) -> None:
        self.name, self.dtype, self.shape, self._pieces = name, dtype, shape, pieces
        self._opened: dict[_Piece, NDArray[np.uint8]] = {}  # mapped, their checksums compared

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        """Rows `rows.start` to `rows.stop - 1`.

        Raises:
            CheckpointError: a piece is damaged, or not of the size that `.metadata` says.
        """
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

    def dim(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)

    def element_size(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    def whole(self) -> Tensor:
        """The tensor in memory. Raises as reading rows does."""
        if self.shape:
            return self[0 : len(self)]
        return self._read(self._pieces[0], 0, 1).reshape(())

    def _read(self, piece: _Piece, begin: int, end: int) -> Tensor:
        """Rows of a piece, in memory."""
        if piece not in self._opened:
            self._opened[piece] = self._open(piece)
        sizes = piece.sizes
        row = math.prod(sizes[1:]) * self.dtype.itemsize
        part = np.array(self._opened[piece][begin * row : end * row])
        return torch.from_numpy(part).view(self.dtype).view(-1, *sizes[1:])

    def _open(self, piece: _Piece) -> NDArray[np.uint8]:
        """The bytes of a piece's elements, in order."""
        data: NDArray[np.uint8] = np.memmap(
            piece.file, np.uint8, "c", offset=piece.begin, shape=(piece.size_bytes,)
        )
        elements, dtype, shape = read_tensor_bytes(piece.file, data)
        if dtype is not self.dtype or shape != piece.sizes:
            raise CheckpointError(
                f"{piece.file}: a piece of {self.name} is {shape} of {dtype}, {METADATA} says "
                f"{piece.sizes} of {self.dtype}: altered, or of another save"
            )
        return elements


def read_distributed(folder: Path) -> dict[str, Any]:
    """The tensors in the folder of a distributed checkpoint, nested as they were saved.

    Raises:
        CheckpointError: damaged, of unknown form, or naming objects other than tensors.
        ArtifactError: a file is missing.
    """
    path = folder / METADATA
    with os_errors(path, "read"):
        if path.stat().st_size > MAX_PICKLE_BYTES:
            raise CheckpointError(f"{path}: has {path.stat().st_size:,} bytes")
        document = _state(read_pickle(path.read_bytes(), str(path), _NAMES), "Metadata", path)
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


def _state(value: Any, kind: str, path: Path) -> dict[str, Any]:
    """The fields of an object of the class `kind`."""
    if not isinstance(value, Call) or not value.function.endswith(f".{kind}"):
        raise CheckpointError(f"{path}: is no distributed checkpoint's: {kind} is missing")
    if not isinstance(value.state, dict):
        raise CheckpointError(f"{path}: damaged: a {kind} without fields")
    return value.state


def _places(stored: dict[Any, Any], path: Path) -> Iterator[tuple[tuple[str, Any], dict[str, Any]]]:
    """(name, offsets) of each piece, and where it is stored."""
    for index, info in stored.items():
        key = _state(index, "MetadataIndex", path)
        offset = key.get("offset")
        offsets = None if offset is None else _sizes(offset, path)
        yield (str(key.get("fqn")), offsets), _state(info, "_StorageInfo", path)


def _tensor(
    name: str, entry: Call, places: dict[tuple[str, Any], dict[str, Any]], folder: Path
) -> ShardedTensor:
    """The tensor that an entry of the metadata describes; its pieces cover it exactly."""
    path = folder / METADATA
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
    return ShardedTensor(name, dtype, shape, pieces)


def _piece(name: str, box: Box, info: dict[str, Any], folder: Path) -> _Piece:
    path = folder / METADATA
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
    try:
        place = path_inside(folder, file)
    except ArtifactError as error:
        raise CheckpointError(str(error)) from error
    with os_errors(place, "read"):
        file_bytes = place.stat().st_size
    if begin + size > file_bytes:
        raise CheckpointError(
            f"{place}: {file_bytes:,} bytes, a piece of {name} ends at {begin + size:,}: truncated"
        )
    return _Piece(box, place, begin, size)


def _check_cover(name: str, shape: tuple[int, ...], boxes: list[Box], path: Path) -> None:
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


def _sizes(value: Any, path: Path) -> tuple[int, ...]:
    """The numbers of a `torch.Size`."""
    sizes = value.arguments[0] if isinstance(value, Call) and len(value.arguments) == 1 else value
    if not isinstance(sizes, tuple | list) or not all(
        type(size) is int and 0 <= size < 2**62 for size in sizes
    ):
        raise CheckpointError(f"{path}: damaged: a size that is no number")
    return tuple(sizes)


def _dtype(properties: Any, path: Path) -> torch.dtype:
    state = properties.state if isinstance(properties, Call) else None
    name = state[0] if isinstance(state, tuple) and state else None
    dtype = getattr(torch, name.path.rpartition(".")[2], None) if isinstance(name, Name) else None
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{path}: damaged: a tensor without a dtype")
    return dtype
