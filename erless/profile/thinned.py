"""How hot rows are, from a sample that saw only a small part of all accesses.

Of rows that a sample saw once or twice, some are hotter and most colder than that: ranked by their
counts, the hottest tenth seems to take too much. How many rows were seen 0, 1, 2, … times says how
rates are distributed: each rate λ makes Poisson counts, and the mixture of rates that explains
those numbers best (Robbins 1950; here over a grid of rates, by EM, Laird 1978) is that of all
traffic. Counts above `CERTAIN` are taken as they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["CERTAIN", "mixture"]

Floats = NDArray[np.float64]

CERTAIN = 64  # a count with a standard error of an eighth
RATES = 96
STEPS = 600
LEAST = 1e-4  # accesses: rows that are colder cannot be told from those that are never read


def mixture(seen: Floats) -> tuple[Floats, Floats]:
    """Rates, falling, and how many rows have each.

    Args:
        seen: (CERTAIN + 1,) how many rows were seen 0 … CERTAIN times.

    Returns:
        (g,) expected accesses of a row in such a sample, and (g,) numbers of rows.
    """
    rates = np.geomspace(LEAST, 1.25 * CERTAIN, RATES)
    counts = np.arange(len(seen))
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.maximum(counts[1:], 1)))])
    chances = np.exp(
        counts[:, None] * np.log(rates)[None, :] - rates[None, :] - log_factorial[:, None]
    )
    total = float(seen.sum())
    if not total:
        return rates[::-1], np.zeros(RATES)
    weights = np.full(RATES, 1 / RATES)
    share = seen / total
    for _ in range(STEPS):
        expected = chances @ weights
        weights = weights * (chances.T @ (share / np.maximum(expected, 1e-300)))
        weights /= weights.sum()
    # what is seen, of all rows, must come to what was seen
    mean = float(rates @ weights)
    factor = float(share @ counts) / mean if mean else 1.0
    return (rates * factor)[::-1].copy(), (weights * total)[::-1].copy()
