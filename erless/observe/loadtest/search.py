"""The highest rate that meets the SLA: bisection over measured trials, decided with confidence.

A trial offers one constant rate (Poisson) and asks whether at most `LATE` of the queries came later
than the SLA, or not at all. Neighbouring queries share their fate, so the evidence is the late
share per block of one second, not per query: the mean of the blocks with a one-sided t-interval.
Where the interval straddles the limit the trial is repeated, up to `trials` times, and the blocks
add up; still undecided, it counts as not met.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from erless.errors import LoadTestError
from erless.observe.queries import QueryOutcomes

__all__ = ["LATE", "HighestRate", "Trial", "late_blocks", "search"]

Floats = NDArray[np.float64]
LATE = 0.05  # p95: one query in twenty may be late
CONFIDENCE = 0.9
WARMUP_S = 2.0
BLOCK_S = 1.0
GROWTH = 2.0
MOST_STEPS = 24


@dataclass(frozen=True)
class Trial:
    """One rate, and what the blocks said: late share with its interval."""

    qps: float
    met: bool
    late: float
    low: float
    high: float
    blocks: int


@dataclass
class HighestRate:
    """Met at `qps`, not met at `beyond` (∞: never reached)."""

    qps: float
    beyond: float
    trials: list[Trial] = field(default_factory=list)
    interrupted: bool = False


def late_blocks(log: QueryOutcomes, duration_s: float, sla_ms: float) -> Floats:
    """Late share of each block after the warm-up: late, failed, or never answered."""
    answered = np.nan_to_num(log.latency_s * 1e3, nan=np.inf)
    late = (answered > sla_ms).astype(np.float64)
    edges = np.arange(WARMUP_S, max(duration_s, WARMUP_S + BLOCK_S) + 1e-9, BLOCK_S)
    place = np.searchsorted(edges, log.due_s, side="right") - 1
    inside = (place >= 0) & (place < len(edges) - 1)
    count = np.bincount(place[inside], minlength=len(edges) - 1)
    total = np.bincount(place[inside], late[inside], len(edges) - 1)
    return np.asarray(total[count > 0] / count[count > 0])


def search(
    blocks_at: Callable[[float], Floats],
    *,
    start_qps: float,
    width: float = 0.05,
    trials: int = 3,
    on_trial: Callable[[Trial], None] | None = None,
) -> HighestRate:
    """Double, then bisect until `beyond ÷ qps - 1 ≤ width`.

    Args:
        blocks_at: runs one trial at a rate and returns its late shares.
        start_qps: first rate.
        width: relative, of the bracket at the end.
        trials: most at one rate.
        on_trial: called after each decision.

    Raises:
        LoadTestError: not even a hundredth of `start_qps` meets the SLA.
    """
    highest = HighestRate(0.0, np.inf)
    rate = start_qps
    for _ in range(MOST_STEPS):
        try:
            trial = _decide(blocks_at, rate, trials)
        except KeyboardInterrupt:
            highest.interrupted = True
            return highest
        highest.trials.append(trial)
        if on_trial:
            on_trial(trial)
        if trial.met:
            highest.qps = rate
        else:
            highest.beyond = rate
        if highest.qps and highest.beyond / highest.qps - 1 <= width:
            break
        if not highest.qps:
            rate /= GROWTH
            if rate < start_qps / 100:
                raise LoadTestError(f"the SLA is not met even at {rate * GROWTH:g} queries/s")
        elif np.isinf(highest.beyond):
            rate *= GROWTH
        else:
            rate = (highest.qps * highest.beyond) ** 0.5
    return highest


def _decide(blocks_at: Callable[[float], Floats], rate: float, trials: int) -> Trial:
    blocks = np.empty(0)
    for _ in range(trials):
        blocks = np.concatenate([blocks, blocks_at(rate)])
        low, high = _interval(blocks)
        if high <= LATE:
            return Trial(rate, True, float(blocks.mean()), low, high, len(blocks))
        if low > LATE:
            return Trial(rate, False, float(blocks.mean()), low, high, len(blocks))
    return Trial(rate, False, float(blocks.mean()), low, high, len(blocks))


def _interval(blocks: Floats) -> tuple[float, float]:
    """One-sided bounds of the mean, each at `CONFIDENCE`."""
    from scipy.stats import t

    count = len(blocks)
    if count < 2:
        return 0.0, 1.0
    mean = float(blocks.mean())
    reach = float(t.ppf(CONFIDENCE, count - 1)) * float(blocks.std(ddof=1)) / count**0.5
    return mean - reach, mean + reach
