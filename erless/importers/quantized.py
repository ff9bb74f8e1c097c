"""Tables as torchrec's and fbgemm's quantized collections keep them: each row a run of bytes.

`int8`, `int4`   scale and bias, both fp16, then the row's numbers; 4-bit ones two to a byte, the
                 lower half first: value = number · scale + bias
`fp16`           the row's halves

Rows are filled up to the alignment of the device. The state dict records neither the precision of a
table nor its dim: a row of 16 bytes holds 8 halves, 8 to 12 bytes or 16 to 24 nibbles.
Source: fbgemm_gpu/split_embedding_configs.py, `rounded_row_size_in_bytes`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from erless.errors import CheckpointError
from erless.importers.bundle import row_chunks
from erless.importers.checkpoint import Stored, TableRows, float_rows
from erless.importers.options import Quantization

__all__ = ["table_rows"]

ALIGNMENTS = (1, 4, 8, 16, 32, 64, 128)  # bytes; 16 on a GPU, 1 on a CPU, rounded as fbgemm does

_HEADER = {Quantization.INT8: 4, Quantization.INT4: 4, Quantization.FP16: 0}  # bytes
_BITS = {Quantization.INT8: 8, Quantization.INT4: 4, Quantization.FP16: 16}


def table_rows(name: str, stored: Stored, kind: Quantization | None, dim: int) -> TableRows:
    """The rows of a table as floats: as they are, or dequantized.

    Args:
        kind: the precision of a table that holds bytes.
        dim: of a table that holds bytes.

    Raises:
        CheckpointError: bytes without a precision, or rows of too few or too many bytes.
    """
    shape = tuple(stored.shape)
    if stored.dtype is not torch.uint8:
        return TableRows(shape, lambda: float_rows(name, stored))
    if kind is None:
        raise CheckpointError(
            f"table {name} holds bytes, quantized rows, and not of which precision: it is one of "
            f"{', '.join(Quantization)}"
        )
    used = _HEADER[kind] + -(-dim * _BITS[kind] // 8)
    fits = {-(-used // alignment) * alignment for alignment in ALIGNMENTS}
    if len(shape) != 2 or shape[1] not in fits:
        raise CheckpointError(
            f"table {name} has shape {shape}; a row of {dim} in {kind} has {used} bytes, and more "
            "only to fill it up"
        )
    return TableRows((shape[0], dim), lambda: _dequantized(stored, kind, dim))


def _dequantized(stored: Stored, kind: Quantization, dim: int) -> Iterator[NDArray[np.float32]]:
    for chunk in row_chunks(stored, dim * 4):
        rows: NDArray[np.uint8] = np.ascontiguousarray(chunk.numpy())
        if kind is Quantization.FP16:
            yield rows[:, : 2 * dim].copy().view("<f2").astype(np.float32)
            continue
        scale, bias = rows[:, :4].copy().view("<f2").astype(np.float32).T[:, :, None]
        numbers = rows[:, 4:]
        if kind is Quantization.INT4:
            numbers = np.stack([numbers & 15, numbers >> 4], axis=2).reshape(len(rows), -1)
        yield numbers[:, :dim] * scale + bias
