"""The header of a safetensors file: which tensors it has, and where; read without its data.

It is read through a function, so that a file may as well lie in a bucket.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from erless.errors import ArtifactError
from erless.storage.strict_json import MOST_BYTES, read_json

__all__ = ["DTYPES", "TensorHeader", "TensorInfo"]

FORMATS = {  # other formats by their first bytes
    b"PAR1": "a parquet file",
    b"PK\x03\x04": "a zip archive, as torch.save and numpy.savez write it",
    b"\x93NUMPY": "a .npy file",
    b"\x80\x02": "a pickle",
    b"{": "JSON text",
}

DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
    "BF16": "<u2",  # numpy has no bfloat16: its bits
}


class TensorInfo(NamedTuple):
    """Where one tensor lies: `begin` and `end` are bytes from the start of the file."""

    dtype_name: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype; bfloat16 reads as its uint16 bits."""
        return np.dtype(DTYPES[self.dtype_name])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: of all dimensions but the first."""
        return self.dtype.itemsize * math.prod(self.shape[1:])


class TensorHeader:
    """The tensors of one file, which cover it without gap or overlap.

    Args:
        name: of the file, for messages.
        size_bytes: of the whole file.
        read: (begin, size) → the file's bytes from `begin` on, fewer where it ends.

    Raises:
        ArtifactError: not a safetensors file, truncated, or with trailing bytes; says where.
    """

    def __init__(self, name: str, size_bytes: int, read: Callable[[int, int], bytes]) -> None:
        self.name, self.size_bytes = name, size_bytes
        prefix = read(0, min(8, size_bytes))
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(MOST_BYTES, size_bytes - 8):
            for magic, other in FORMATS.items():
                if prefix.startswith(magic):
                    raise ArtifactError(f"{name}: not a safetensors file but {other}")
            raise ArtifactError(
                f"{name}: truncated or not a safetensors file: the header at offset 8 should "
                f"have {length:,} bytes, the file has {size_bytes:,}"
            )
        where = f"{name}: the header at offset 8 is damaged"
        header = read_json(read(8, length).rstrip(b" "), where)
        try:
            self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
            self.tensors = {name: _tensor_info(entry, 8 + length) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ArtifactError(f"{where}: {error}") from error
        self._check_layout(8 + length)

    def _check_layout(self, data_begin: int) -> None:
        """The tensors must cover the rest of the file without gap or overlap."""
        offset = data_begin
        for name, info in sorted(self.tensors.items(), key=lambda item: item[1][2:]):
            if info.begin != offset:
                raise ArtifactError(
                    f"{self.name}: tensor {name} begins at offset {info.begin:,}, "
                    f"expected {offset:,}"
                )
            if info.end > self.size_bytes:
                raise ArtifactError(
                    f"{self.name}: truncated inside tensor {name}, which ends at offset "
                    f"{info.end:,}; the file has {self.size_bytes:,} bytes"
                )
            offset = info.end
        if offset != self.size_bytes:
            raise ArtifactError(
                f"{self.name}: {self.size_bytes - offset:,} unexpected bytes at offset {offset:,}"
            )

    def info(self, name: str) -> TensorInfo:
        """Where tensor `name` lies.

        Raises:
            ArtifactError: there is no such tensor.
        """
        try:
            return self.tensors[name]
        except KeyError:
            has = ", ".join(sorted(self.tensors)) or "nothing"
            raise ArtifactError(f"{self.name}: no tensor {name}; the file has {has}") from None


def _tensor_info(entry: Mapping[str, Any], data_begin: int) -> TensorInfo:
    unknown = sorted(set(entry) - {"dtype", "shape", "data_offsets"})
    if unknown:
        raise ValueError(f"{unknown[0]} is not known")
    numbers = [*entry["data_offsets"], *entry["shape"]]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("offsets and shapes must be whole numbers from 0 on")
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    info = TensorInfo(entry["dtype"], shape, data_begin + begin, data_begin + end)
    if info.dtype_name not in DTYPES:
        raise ValueError(f"unknown dtype {info.dtype_name}")
    if end - begin != info.dtype.itemsize * math.prod(shape):
        raise ValueError(f"shape {shape} does not match {end - begin} bytes")
    return info
