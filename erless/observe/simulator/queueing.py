"""Waiting in front of a replica that serves c calls at a time, while its load is steady.

For one at a time and Poisson arrivals this is exact (M/G/1, Pollaczek-Khinchine): the wait is a sum
of N residual service times, N geometric, P(N ≥ n) = ρⁿ. For c at a time, the chance to wait at all
becomes ρ^(√(2(c+1))-1) (Sakasegawa 1977) and the sum is worked off c times as fast.

ρ is the busy share, s the mean service time, v its coefficient of variation; gamma-distributed
service times, and a gamma for the sum, with the mean and variance that N residual times have.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["BUSIEST", "draw_waits", "mean_wait"]

Floats = NDArray[np.float64]
BUSIEST = 0.995  # beyond it the fluid backlog speaks


def mean_wait(busy: Floats, servers: Floats | float, service_s: Floats, spread: float) -> Floats:
    """Mean wait of all calls, seconds; arrays of one shape.

    >>> float(mean_wait(np.array(0.5), 1.0, np.array(1.0), 0.0))
    0.5
    """
    load = _bounded(busy)
    wait = service_s * (1 + spread**2) / 2 / (np.asarray(servers) * (1 - load))
    return np.asarray(_chance(load, servers) * wait)


def draw_waits(
    generator: np.random.Generator,
    busy: Floats,
    servers: float,
    service_s: Floats,
    spread: float,
    count: int,
) -> Floats:
    """`count` waits for each of n loads, (n, count), seconds.

    Args:
        generator: of random numbers.
        busy: (n,) busy share.
        servers: calls at a time.
        service_s: (n,) mean service time.
        spread: its coefficient of variation.
        count: waits to draw for each.
    """
    load = _bounded(busy)[:, None]
    shape = (len(busy), count)
    waits = generator.random(shape) < _chance(load, servers)
    # inverse transform of the geometric number of residual times beyond the first
    more = np.log(generator.random(shape)) / np.log(np.maximum(load, 1e-12))
    number = np.where(waits, 1 + np.floor(more), 0.0)
    mean, square = (1 + spread**2) / 2, (1 + spread**2) * (1 + 2 * spread**2) / 3
    form = mean**2 / (square - mean**2)
    drawn = generator.standard_gamma(form * number) * (mean / form)
    return np.asarray(drawn * service_s[:, None] / servers)


def _chance(load: Floats, servers: Floats | float) -> Floats:
    """Share of calls that wait at all."""
    return np.asarray(load ** (np.sqrt(2 * (np.asarray(servers) + 1)) - 1))


def _bounded(busy: Floats) -> Floats:
    return np.minimum(np.where(np.isfinite(busy), busy, 0.0), BUSIEST)
