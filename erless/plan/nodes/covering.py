"""The cheapest whole nodes that cover a need, as whole-number programmes (HiGHS).

    min price·x   with   rows·x ≥ least,  x ≥ 0 and whole

x has one number for each node type, `rows` what one node of each type gives.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

__all__ = ["Cover", "covers", "least_cover"]

Floats = NDArray[np.float64]
INFEASIBLE = 2  # status of scipy.optimize.milp
ROUNDING = 1e-9


@dataclass(frozen=True)
class Cover:
    """Nodes that cover a need.

    Args:
        bound: no cover is cheaper; inf where there is none.
        nodes: (types,) how many of each type, of the best that was found; None where there is none.
    """

    bound: float
    nodes: NDArray[np.int64] | None


def least_cover(
    price: Floats, rows: Floats, least: Floats, most: float = math.inf, cheapest: float = 0.0
) -> Cover:
    """The cheapest cover, if it costs `cheapest` or more, and less than `most`.

    Args:
        price: (types,) of one node.
        rows: (needs, types) what it gives.
        least: (needs,) what is needed.
        most: price from which on a cover is of no use.
        cheapest: price below which covers are not wanted.
    """
    upper = np.full(len(rows), np.inf)
    if math.isfinite(most) or cheapest:
        rows, least = np.vstack([rows, price]), np.append(least, cheapest)
        upper = np.append(upper, most)
    with _quiet_stdout():
        result = milp(
            price,
            constraints=LinearConstraint(rows, least - np.abs(least) * ROUNDING, upper),
            integrality=np.ones(len(price), np.int64),
            bounds=Bounds(0, np.inf),
            options={"time_limit": 5.0, "mip_rel_gap": 1e-3},
        )
    if result.status == INFEASIBLE:
        return Cover(math.inf, None)
    bound = getattr(result, "mip_dual_bound", None)
    nodes = None if result.x is None else np.rint(result.x).astype(np.int64)
    return Cover(float(bound if bound is not None else 0.0), nodes)


def covers(price: Floats, rows: Floats, least: Floats, count: int, step: float) -> Iterator[Cover]:
    """The cheapest cover, and then `count` - 1 more, each dearer by a share of `step` or more."""
    cheapest = 0.0
    for _ in range(count):
        cover = least_cover(price, rows, least, cheapest=cheapest)
        if cover.nodes is None:
            return
        yield cover
        cheapest = float(price @ cover.nodes) * (1 + step)


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Keep off stdout what HiGHS prints there whatever its options say (SciPy 1.17).

    `-o json` promises one document on stdout, so the C library's buffer is emptied both times.
    """
    sys.stdout.flush()
    library = ctypes.CDLL(None)
    library.fflush(None)
    try:
        kept = os.dup(1)
    except OSError:  # no stdout at all
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 1)
        yield
    finally:
        library.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(sink)
