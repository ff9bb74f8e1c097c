"""Arithmetic on sizes while a rebuilt graph runs: Python's own, kept within 64 bits.

Python's integers grow without limit, so a chain of multiplications, or one power, in an archive
could keep a process busy for ever. Every result here fits 64 bits or is an error.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from erless.errors import ModelError

__all__ = ["FUNCTIONS", "Number"]

Number = int | float | bool

_LIMIT = 2**63
MAX_EXPONENT = 64


def add(a: Number, b: Number) -> Number:
    """a + b."""
    return _bounded(a + b)


def subtract(a: Number, b: Number) -> Number:
    """a - b."""
    return _bounded(a - b)


def multiply(a: Number, b: Number) -> Number:
    """a · b."""
    return _bounded(a * b)


def floor_divide(a: Number, b: Number) -> Number:
    """The whole part of a / b, rounded down."""
    return _bounded(a // _divisor(b))


def divide(a: Number, b: Number) -> Number:
    """a / b as a float."""
    return _bounded(a / _divisor(b))


def modulo(a: Number, b: Number) -> Number:
    """The remainder of `floor_divide`, with the sign of b."""
    return _bounded(a % _divisor(b))


def power(a: Number, b: Number) -> Number:
    """a to the power of b; b is at most 64."""
    if not 0 <= b <= MAX_EXPONENT or abs(a) >= _LIMIT:
        raise ModelError(f"the tower computes a size as {a} to the power of {b}")
    return _bounded(a**b)


def negate(a: Number) -> Number:
    """-a."""
    return _bounded(-a)


def positive(a: Number) -> Number:
    """a itself."""
    return a


def truncate(a: Number) -> Number:
    """The whole part of a, rounded towards zero."""
    return math.trunc(_bounded(a))


def to_float(a: Number) -> Number:
    """a as a float."""
    return float(_bounded(a))


def maximum(a: Number, b: Number) -> Number:
    """The larger of two sizes."""
    return max(a, b)


def minimum(a: Number, b: Number) -> Number:
    """The smaller of two sizes."""
    return min(a, b)


def choose(condition: Number, a: Number, b: Number) -> Number:
    """One of two sizes."""
    return a if condition else b


def square_root(a: Number) -> Number:
    """The square root of a size."""
    if a < 0:
        raise ModelError(f"the tower takes the square root of {a}")
    return math.sqrt(_bounded(a))


def _bounded(value: Number) -> Number:
    if not abs(value) < _LIMIT:
        raise ModelError("the tower computes a size that needs more than 64 bits")
    return value


def _divisor(value: Number) -> Number:
    if value == 0:
        raise ModelError("the tower divides a size by zero")
    return value


# The targets that torch.export writes for arithmetic on sizes: torch._export.serde.serialize.
FUNCTIONS: dict[str, tuple[Callable[..., Any], int]] = {
    "_operator.add": (add, 2),
    "_operator.sub": (subtract, 2),
    "_operator.mul": (multiply, 2),
    "_operator.floordiv": (floor_divide, 2),
    "_operator.truediv": (divide, 2),
    "_operator.mod": (modulo, 2),
    "_operator.pow": (power, 2),
    "_operator.neg": (negate, 1),
    "_operator.pos": (positive, 1),
    "_operator.eq": (operator.eq, 2),
    "_operator.ne": (operator.ne, 2),
    "_operator.lt": (operator.lt, 2),
    "_operator.le": (operator.le, 2),
    "_operator.gt": (operator.gt, 2),
    "_operator.ge": (operator.ge, 2),
    "_operator.and_": (operator.and_, 2),
    "_operator.or_": (operator.or_, 2),
    "math.trunc": (truncate, 1),
    "torch.sym_not": (operator.not_, 1),
    "torch.sym_int": (truncate, 1),
    "torch.sym_float": (to_float, 1),
    "torch.sym_ite": (choose, 3),
    "torch.sym_max": (maximum, 2),
    "torch.sym_min": (minimum, 2),
    "torch.sym_sqrt": (square_root, 1),
}
