"""CFS quotas: a call runs at full speed until its replica's allowance of the period is spent.

A replica of c vCPU may use A = c · `PERIOD_S` CPU seconds in each period, on w workers at once. One
replica stands for all of a function. What it could not serve in a period waits for the next:

    ahead[k+1] = max(0, ahead[k] + work[k] - A)        in CPU seconds

A call that has X = ahead + what came before it in its period + its own s CPU seconds to be done
ends in its own period where X ≤ A, as at full speed; else m = ⌈X / A⌉ - 1 periods later, when
(X - m·A) / w of that one has passed. Unused allowance is lost, as the kernel has it by default.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from erless.autoscale.kpa import TICK_S
from erless.observe.simulator.queueing import draw_waits

__all__ = ["PERIODS", "PERIOD_S", "Periods", "advance", "draw_stays", "mean_stay"]

Floats = NDArray[np.float64]
PERIOD_S = 0.1  # the kernel's and Kubernetes' default
PERIODS = round(TICK_S / PERIOD_S)


class Periods(NamedTuple):
    """One step of the functions under quotas: (Q, PERIODS) CPU seconds of one replica each.

    work: that arrived in each period. ahead: waiting at its beginning. left: (Q,) at the step's
    end. allowance: (Q,) of each period.
    """

    work: Floats
    ahead: Floats
    left: Floats
    allowance: Floats

    @property
    def throttled(self) -> Floats:
        """(Q,) share of the periods in which the allowance did not suffice."""
        return np.asarray((self.ahead + self.work > self.allowance[:, None] + 1e-12).mean(axis=1))

    @property
    def used_vcpu(self) -> Floats:
        """(Q,) vCPU that one replica used on average."""
        done = self.ahead[:, 0] + self.work.sum(axis=1) - self.left
        return np.asarray(done / TICK_S)


def advance(work: Floats, waiting: Floats, allowance: Floats) -> Periods:
    """Serve `work` behind what is `waiting`.

    Args:
        work: (Q, PERIODS) CPU seconds that arrive at one replica.
        waiting: (Q,) CPU seconds left over from before.
        allowance: (Q,) CPU seconds of each period.
    """
    surplus = np.cumsum(work - allowance[:, None], axis=1)
    lowest = np.minimum.accumulate(np.minimum(surplus, 0.0), axis=1)
    after = surplus + np.maximum(waiting[:, None], -lowest)
    ahead = np.concatenate([waiting[:, None], after[:, :-1]], axis=1)
    return Periods(work, ahead, after[:, -1], allowance)


def mean_stay(periods: Periods, service_s: Floats, workers: Floats) -> Floats:
    """Mean seconds from arrival to answer: (Q,), of calls that come amid each period."""
    weight = periods.work + 1e-12
    total = periods.ahead + periods.work / 2 + service_s[:, None]
    room = periods.allowance[:, None]
    later = np.maximum(np.ceil(total / room - 1e-9) - 1, 0.0)
    end_s = later * PERIOD_S + (total - later * room) / workers[:, None]
    stay = np.maximum(end_s - PERIOD_S / 2, service_s[:, None])
    return np.asarray((stay * weight).sum(axis=1) / weight.sum(axis=1))


def draw_stays(
    generator: np.random.Generator,
    work: Floats,
    ahead: Floats,
    allowance: Floats,
    service_s: Floats,
    workers: float,
    spread: float,
    count: int,
) -> Floats:
    """Seconds from arrival to answer of `count` calls in each of T steps: (T, count).

    Args:
        generator: of random numbers.
        work, ahead: (T, PERIODS) of `Periods`, one function's.
        allowance: (T,) CPU seconds per period.
        service_s: (T,) CPU seconds of one call.
        workers: calls at a time.
        spread: coefficient of variation of a call's CPU seconds.
        count: calls to draw per step.
    """
    steps = len(work)
    rows = np.arange(steps)[:, None]
    weight = np.cumsum(work + 1e-12, axis=1)  # most calls come in the busiest periods
    place = generator.random((steps, count)) * weight[:, -1:]
    period = np.minimum((place[:, :, None] > weight[:, None, :]).sum(axis=2), PERIODS - 1)
    at_s = generator.random((steps, count)) * PERIOD_S
    own = np.broadcast_to(service_s[:, None], (steps, count))
    if spread > 0:
        form = spread**-2
        own = own * generator.gamma(form, 1 / form, (steps, count))
    waiting = ahead[rows, period]
    others = np.rint(np.maximum(work[rows, period] / service_s[:, None] - 1, 0.0))
    before = generator.binomial(others.astype(np.int64), at_s / PERIOD_S) * service_s[:, None]
    total = waiting + before + own
    room = allowance[:, None]
    periods = np.maximum(np.ceil(total / room - 1e-9) - 1, 0.0)
    busy = work.mean(axis=1) / (PERIOD_S * workers)
    queued = draw_waits(generator, busy, workers, service_s, spread, count)
    at_once = np.maximum(at_s + queued, waiting / workers) + own
    later = periods * PERIOD_S + (total - periods * room) / workers
    end_s = np.where(periods > 0, np.maximum(later, at_s + own), at_once)
    return np.asarray(end_s - at_s)
