"""Rows at each precision: the one definition of how they are stored.

| precision | one stored row | value |
|---|---|---|
| fp32 | dim × float32 | as it is |
| fp16 | dim × float16 | nearest, ties to even |
| int8 | float16 scale, float16 bias, dim × uint8 | code × scale + bias |
| int4 | float16 scale, float16 bias, ceil(dim / 2) bytes, low nibble first | code × scale + bias |

Scale and bias lie in front of their row's codes rather than in arrays of their own, so that a
gather touches one stretch of memory (36 bytes for int8, 20 for int4 at dim 32) and not two. They
are float16: bias is rounded down and scale up, and the codes are fitted to the rounded pair, so
the codes always reach over the whole row and no element is off by more than scale / 2, plus one
rounding of float32. (facebookresearch/FBGEMM's fused row-wise formats keep float32 scale and bias
behind the codes for int8, and float16 for int4; four bytes a row less is 10 % at dim 32.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.embedding import stored_dtype, stored_width
from erless.errors import ModelError
from erless.specs.plan import Precision

__all__ = ["decode", "encode", "error_bound", "stored_dtype", "stored_width"]

HEADER_BYTES = 4  # float16 scale, float16 bias
FP16_MAX = 65504.0
_LEVELS = {Precision.INT8: 255, Precision.INT4: 15}
_HALF_MAX = np.float16(FP16_MAX)

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]


def encode(rows: Floats, precision: Precision) -> NDArray[Any]:
    """Store `rows` (n, dim) float32 at `precision`.

    Returns:
        (n, stored_width) of stored_dtype; `rows` itself for fp32.

    Raises:
        ModelError: an element is not finite, or beyond what float16 holds.
    """
    if precision is Precision.FP32:
        return rows
    _check_range(rows, precision)
    if precision is Precision.FP16:
        return rows.astype("<f2")
    levels = _LEVELS[precision]
    scale, bias = _scale_and_bias(rows, levels)
    step = scale.astype(np.float32)
    with np.errstate(divide="ignore"):
        inverse = np.where(step > 0, np.float32(1) / step, np.float32(0))
    codes = rows - bias.astype(np.float32)[:, None]
    codes *= inverse[:, None]
    np.rint(codes, out=codes)
    np.clip(codes, 0, levels, out=codes)
    stored = np.zeros((len(rows), stored_width(precision, rows.shape[1])), np.uint8)
    stored[:, 0:2] = scale.astype("<f2").view(np.uint8).reshape(-1, 2)
    stored[:, 2:4] = bias.astype("<f2").view(np.uint8).reshape(-1, 2)
    if precision is Precision.INT8:
        stored[:, HEADER_BYTES:] = codes
    else:
        nibbles = codes.astype(np.uint8)
        stored[:, HEADER_BYTES:] = nibbles[:, 0::2]
        stored[:, HEADER_BYTES : HEADER_BYTES + nibbles.shape[1] // 2] |= nibbles[:, 1::2] << 4
    return stored


def decode(stored: NDArray[Any], precision: Precision, dim: int) -> Floats:
    """The float32 values (n, dim) that `stored` rows stand for."""
    if precision in (Precision.FP32, Precision.FP16):
        return stored.astype(np.float32)
    scale, bias = _header(stored)
    codes = stored[:, HEADER_BYTES:]
    if precision is Precision.INT4:
        pairs = np.stack((codes & 0xF, codes >> 4), axis=2)
        codes = pairs.reshape(len(stored), -1)[:, :dim]
    values = codes.astype(np.float32)
    values *= scale[:, None]
    values += bias[:, None]
    return values


def error_bound(stored: NDArray[Any], precision: Precision, rows: Floats) -> NDArray[np.float64]:
    """Most by which an element of each stored row may differ from the fp32 `rows`: (n,) float64."""
    largest = np.abs(rows).max(axis=1, initial=0).astype(np.float64)
    if precision is Precision.FP32:
        return np.zeros(len(rows))
    if precision is Precision.FP16:
        return np.maximum(largest * 2.0**-11, 2.0**-25)  # type: ignore[no-any-return]
    scale, bias = (part.astype(np.float64) for part in _header(stored))
    span = np.maximum(largest, np.abs(bias)) + _LEVELS[precision] * scale
    return np.asarray(scale / 2 + 4 * span * 2.0**-24)


def _header(stored: NDArray[Any]) -> tuple[Floats, Floats]:
    """Scale and bias of each row, as float32."""
    pair = np.ascontiguousarray(stored[:, :HEADER_BYTES]).view("<f2").astype(np.float32)
    return pair[:, 0], pair[:, 1]


def _scale_and_bias(rows: Floats, levels: int) -> tuple[Halves, Halves]:
    """The smallest float16 pair with bias ≤ min and bias + levels·scale ≥ max of each row."""
    low, high = rows.min(axis=1), rows.max(axis=1)
    bias = low.astype(np.float16)
    above = bias.astype(np.float32) > low
    bias[above] = np.nextafter(bias[above], -_HALF_MAX)
    reach = (high - bias.astype(np.float32)).astype(np.float64) / levels
    scale = reach.astype(np.float16)
    below = scale.astype(np.float64) < reach
    scale[below] = np.nextafter(scale[below], _HALF_MAX)
    return scale, bias


def _check_range(rows: Floats, precision: Precision) -> None:
    """Elements must be finite and within float16."""
    inside = np.abs(rows) <= FP16_MAX  # False for NaN
    if not inside.all():
        row, column = (int(index) for index in np.argwhere(~inside)[0])
        raise ModelError(
            f"element {column} of a row is {rows[row, column]}: {precision} holds finite values "
            f"up to ±{FP16_MAX:,.0f}"
        )
