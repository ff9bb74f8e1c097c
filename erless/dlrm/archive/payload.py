"""Weights and constants: plain tensors over raw records, checked against the bytes there are."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from erless.dlrm.archive.container import ArchiveRecords, Record
from erless.dlrm.archive.document import parse_document
from erless.dlrm.archive.tensor_schema import PayloadConfig, PayloadMeta, SymInt, TensorMeta
from erless.errors import ArtifactError

__all__ = ["DTYPES", "Payloads"]

# torch._export.serde.schema.ScalarType, without complex and 8-bit floats.
DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
_KINDS = {
    "weight": ("data/weights/", "data/weights/model_weights_config.json"),
    "tensor": ("data/constants/", "data/constants/model_constants_config.json"),
}


class Payloads:
    """The tensors of an archive by the dotted names that its signature uses.

    Every record must belong to a tensor, and every tensor must lie inside its record: sizes,
    strides and offsets of the document are checked against the bytes that are there.

    Args:
        copy: give tensors memory of their own. False maps them, for weights that exceed memory;
            the file must then stay as it is.

    Raises:
        ArtifactError: a record is missing, left over, pickled or of another size.
    """

    def __init__(self, records: ArchiveRecords, copy: bool = True) -> None:
        self._records, self._copy = records, copy
        self._storages: dict[str, Tensor] = {}
        self._places: dict[str, tuple[str, TensorMeta]] = {}
        for prefix, (folder, config) in _KINDS.items():
            for name, meta in self._entries(config):
                self._places[name] = self._place(name, meta, prefix, folder)
        self._check_leftovers()

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`. Tensors that shared memory in the model share it here.

        Raises:
            ArtifactError: there is none, or its record is damaged.
        """
        if name not in self._places:
            raise ArtifactError(f"{self._records.where}: the tensor {name} is missing")
        record, meta = self._places[name]
        sizes = [_fixed(size) for size in meta.sizes]
        strides = [_fixed(stride) for stride in meta.strides]
        storage = self._storage(record).view(DTYPES[meta.dtype])
        return torch.as_strided(storage, sizes, strides, _fixed(meta.storage_offset))

    def rows_at(self, name: str) -> Record | None:
        """Where the rows of the float32 matrix `name` lie, one after another.

        None where it is no such matrix, or another tensor lies in the same record.
        """
        if name not in self._places:
            return None
        record, meta = self._places[name]
        sizes, strides = ([_fixed(n) for n in numbers] for numbers in (meta.sizes, meta.strides))
        place = self._records.place(record)
        alone = sum(other == record for other, _ in self._places.values()) == 1
        matrix = len(sizes) == 2 and strides == [sizes[1], 1] and _fixed(meta.storage_offset) == 0
        whole = DTYPES[meta.dtype] is torch.float32 and 4 * math.prod(sizes) == place.size
        return place if alone and matrix and whole else None

    def shape(self, name: str) -> tuple[int, ...]:
        """The sizes of the tensor `name`."""
        return tuple(_fixed(size) for size in self._places[name][1].sizes)

    def _entries(self, config: str) -> Iterator[tuple[str, PayloadMeta]]:
        where = f"{self._records.where}: {config}"
        document = parse_document(PayloadConfig, self._records.read(config), where)
        for name, meta in document.config.items():
            if name in self._places:
                raise ArtifactError(f"{where}: {name} is a weight and a constant")
            yield name, meta

    def _place(
        self, name: str, meta: PayloadMeta, prefix: str, folder: str
    ) -> tuple[str, TensorMeta]:
        """Where a tensor lies, checked against its record."""
        where = f"{self._records.where}: {name}"
        layout = meta.tensor_meta
        if meta.use_pickle or layout is None or not meta.path_name.startswith(f"{prefix}_"):
            raise ArtifactError(f"{where} is a pickled object; only raw tensors load")
        if layout.dtype not in DTYPES:
            raise ArtifactError(f"{where} has dtype {layout.dtype} of torch's ScalarType")
        record = f"{folder}{meta.path_name}"
        record_bytes = self._records.size(record)
        needed = _extent_bytes(where, layout)
        elements = math.prod(_fixed(size) for size in layout.sizes)
        item = DTYPES[layout.dtype].itemsize
        if needed > record_bytes or record_bytes % item:
            raise ArtifactError(f"{where} needs {needed:,} bytes, its record has {record_bytes:,}")
        if elements * item > record_bytes:
            raise ArtifactError(
                f"{where} repeats its elements: {elements:,} of {record_bytes:,} bytes"
            )
        return record, layout

    def _check_leftovers(self) -> None:
        used = {record for record, _ in self._places.values()}
        for name in sorted(self._records.names):
            payload = name.startswith(("data/weights/weight_", "data/constants/tensor_"))
            if payload and name not in used:
                raise ArtifactError(f"{self._records.where}: {name} belongs to no tensor")

    def _storage(self, record: str) -> Tensor:
        if record not in self._storages:
            view = self._records.view(record)
            aligned = view.ctypes.data % 16 == 0
            array = np.asarray(view) if aligned and not self._copy else np.array(view)
            self._storages[record] = torch.from_numpy(array)
        return self._storages[record]


def _fixed(size: SymInt) -> int:
    return -1 if size.as_int is None else size.as_int


def _extent_bytes(where: str, layout: TensorMeta) -> int:
    """Bytes from the start of the storage to the end of the last element.

    Raises:
        ArtifactError: a size, stride or offset is negative or not a number, or they disagree.
    """
    sizes = [_fixed(size) for size in layout.sizes]
    strides = [_fixed(stride) for stride in layout.strides]
    offset = _fixed(layout.storage_offset)
    if len(sizes) != len(strides) or min((*sizes, *strides, offset)) < 0:
        raise ArtifactError(f"{where} has sizes {sizes}, strides {strides}, offset {offset}")
    if 0 in sizes:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return (offset + last + 1) * DTYPES[layout.dtype].itemsize
