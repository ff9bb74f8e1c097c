"""bfloat16 in numpy, which has no such dtype: its 16 bits as uint16, which no input is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["all_finite", "from_bfloat16", "to_bfloat16"]

_EXPONENT = np.uint16(0x7F80)  # all of its bits are set in infinities and NaN


def to_bfloat16(values: NDArray[Any]) -> NDArray[np.uint16]:
    """The bits of `values`, rounded to the nearest bfloat16, ties to even.

    >>> hex(to_bfloat16(np.array([1.0]))[0])
    '0x3f80'
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    nan = np.isnan(values)
    return np.where(nan, 0x7FC0, rounded).astype(np.uint16)


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The numbers that `bits` stand for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def all_finite(values: NDArray[Any]) -> bool:
    """Whether no value of an output is infinite or NaN; uint16 holds the bits of bfloat16.

    >>> all_finite(to_bfloat16(np.array([1.0, 3e38]))), all_finite(to_bfloat16(np.array([np.nan])))
    (True, False)
    """
    if values.dtype == np.uint16:
        return not ((values & _EXPONENT) == _EXPONENT).any()
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())
