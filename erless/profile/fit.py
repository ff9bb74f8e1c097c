"""Fit seconds(n) = a + β·n to measured points: non-negative, least squares of relative errors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import nnls

__all__ = ["Line", "fit_line"]

LEAST_OVERHEAD_S = 1e-9  # a call is never free; keeps QPS finite where the fit says a = 0


class Line(NamedTuple):
    """a, β and the largest relative error of the fit."""

    overhead_s: float
    slope_s: float
    residual: float


def fit_line(sizes: ArrayLike, seconds: ArrayLike) -> Line:
    """The a ≥ 0, β ≥ 0 that minimise Σ ((a + β·n)/s - 1)².

    Relative errors, because a call of 40,960 gathers must not drown one of 256.

    >>> line = fit_line([100, 1000, 10_000], [3e-6, 12e-6, 102e-6])
    >>> round(line.overhead_s * 1e6, 3), round(line.slope_s * 1e9, 3)
    (2.0, 10.0)
    """
    n, s = np.asarray(sizes, np.float64), np.asarray(seconds, np.float64)
    scale = n.max()  # both columns near 1: well conditioned
    solution, _ = nnls(np.stack([1 / s, n / scale / s], axis=1) * s.mean(), np.ones(len(n)))
    overhead = max(float(solution[0] * s.mean()), LEAST_OVERHEAD_S)
    slope = float(solution[1] * s.mean() / scale)
    residual = float(np.abs((overhead + slope * n) / s - 1).max())
    return Line(overhead, slope, residual)
