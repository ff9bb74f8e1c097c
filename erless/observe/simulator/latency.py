"""Latencies of sampled queries, from what each step of the simulation was like.

A query waits at the gateway, is served there, and meanwhile waits for the slowest of the functions
that it touches: behind the fluid backlog, then as `queueing` says. A function at zero makes its
query wait until a replica is ready, or, with `cold_miss: default`, degrades the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from erless.observe.simulator.engine import GATEWAY, Trace
from erless.observe.simulator.fleet import Fleet, Terms
from erless.observe.simulator.queueing import draw_waits
from erless.observe.simulator.quotas import PERIOD_S, draw_stays

__all__ = ["Samples", "sample_latencies", "weighted_quantiles"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
DRAWS = 12_000_000  # most random numbers: samples × functions
MOST_PER_STEP = 400


@dataclass(frozen=True)
class Samples:
    """Sampled queries: (T, S) each; `weight` (T,) is how many queries one sample stands for.

    latency_s: NaN where the query failed.
    """

    latency_s: Floats
    cold: Bools
    degraded: Bools
    weight: Floats


def sample_latencies(fleet: Fleet, trace: Trace, terms: Terms, seed: int = 0) -> Samples:
    """Draw up to `MOST_PER_STEP` queries of every step."""
    generator = np.random.default_rng([seed, 1])
    steps, size = trace.ready.shape
    count = int(np.clip(DRAWS // max(1, steps * size), 10, MOST_PER_STEP))
    shape = (steps, count)
    slowest = np.zeros(shape)
    cold, degraded = np.zeros(shape, bool), np.zeros(shape, bool)
    gateway = _call(fleet, trace, terms, GATEWAY, count, generator)
    for index in range(1, size):
        hop = _spread_out(generator, np.full(steps, terms.hop_s), terms.hop_spread, count)
        took = hop + _call(fleet, trace, terms, index, count, generator)
        asleep = trace.ready[:, index] == 0
        if asleep.any():
            waking = _until_ready(trace, index)[:, None] + took
            if terms.cold_miss == "wait":
                took = np.where(asleep[:, None], waking, took)
            else:
                took = np.where(asleep[:, None], 0.0, took)
        touched: Bools | bool = True
        if fleet.touch[index] < 1:
            touched = generator.random(shape) < fleet.touch[index]
            took = np.where(touched, took, 0.0)
        if asleep.any():
            hit = touched & asleep[:, None]
            cold |= hit
            if terms.cold_miss == "default":
                degraded |= hit
        np.maximum(slowest, took, out=slowest)
    latency = gateway + slowest
    latency[latency > terms.deadline_s] = np.nan
    return Samples(latency, cold, degraded, trace.arrived / count)


def _call(
    fleet: Fleet, trace: Trace, terms: Terms, index: int, count: int, generator: np.random.Generator
) -> Floats:
    """Waiting and service at one function, and reads of its disk, (T, S)."""
    stay = _on_cores(fleet, trace, terms, index, count, generator)
    reads, busy = float(fleet.disk_s[index]), trace.disk_busy[:, index]
    if not reads:
        return stay
    each = np.full(len(busy), reads)
    stay = stay + reads + draw_waits(generator, busy, 1.0, each, 0.0, count)
    if not fleet.quota[index]:
        return stay
    # what waits for the disk is not among what waits for the cores
    return np.asarray(stay + np.where(busy > 1, trace.backlog_s[:, index], 0.0)[:, None])


def _on_cores(
    fleet: Fleet, trace: Trace, terms: Terms, index: int, count: int, generator: np.random.Generator
) -> Floats:
    """Waiting and service, (T, S)."""
    servers = float(fleet.servers[index])
    service = fleet.service_s[index] * trace.stretch
    if fleet.quota[index]:
        held = int(fleet.quota[:index].sum())
        return draw_stays(
            generator,
            trace.work[:, held],
            trace.ahead[:, held],
            trace.vcpu[:, index] * PERIOD_S,
            service,
            servers,
            terms.call_spread,
            count,
        )
    wait = draw_waits(generator, trace.busy[:, index], servers, service, terms.call_spread, count)
    took = _spread_out(generator, service, terms.call_spread, count)
    return np.asarray(wait + took + trace.backlog_s[:, index, None])


def _spread_out(
    generator: np.random.Generator, mean_s: Floats, spread: float, count: int
) -> Floats:
    """(n, count) gamma-distributed times with these means and coefficient of variation."""
    if spread <= 0:
        return np.broadcast_to(mean_s[:, None], (len(mean_s), count))
    form = spread**-2
    return np.asarray(generator.gamma(form, 1 / form, (len(mean_s), count)) * mean_s[:, None])


def _until_ready(trace: Trace, index: int) -> Floats:
    """Seconds from the middle of each step to the next one with a ready replica, (T,)."""
    steps = len(trace.t_s)
    places = np.where(trace.ready[:, index] > 0, np.arange(steps), steps)
    following = np.minimum.accumulate(places[::-1])[::-1]
    wait = (following - np.arange(steps) - 0.5) * trace.step_s
    return np.where(following < steps, np.maximum(wait, 0.0), np.inf)


def weighted_quantiles(values: Floats, weights: Floats, at: tuple[float, ...]) -> Floats:
    """Quantiles of `values` where each counts `weights` times; NaN without any.

    >>> values, weights = np.array([1.0, 2.0, 9.0]), np.array([1.0, 1.0, 8.0])
    >>> weighted_quantiles(values, weights, (0.1, 0.5)).tolist()
    [1.0, 9.0]
    """
    good = np.isfinite(values) & (weights > 0)
    if not good.any():
        return np.full(len(at), np.nan)
    values, weights = values[good], weights[good]
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    place = np.searchsorted(total, np.asarray(at) * total[-1] * (1 - 1e-12))
    return np.asarray(values[order][np.minimum(place, len(values) - 1)], np.float64)
