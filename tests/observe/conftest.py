"""A small result, as a load test would write it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from erless.observe.queries import QueryOutcomes, timeline_of, totals_of
from erless.observe.results import Event, Series, write_result
from erless.specs.result import (
    FUNCTIONS,
    AccessPlot,
    Baseline,
    FunctionResult,
    PredictionCheck,
    Usage,
)

DURATION_S = 60


def query_log(seed: int = 0) -> QueryOutcomes:
    generator = np.random.default_rng(seed)
    due = np.sort(generator.random(3000) * DURATION_S)
    latency = 0.005 + generator.exponential(0.004, len(due))
    failure = ["deadline" if index % 300 == 0 else "" for index in range(len(due))]
    latency[::300] = np.nan
    cold = (due > 30) & (due < 30.5)
    return QueryOutcomes(due, latency, failure, np.zeros(len(due), bool), cold)


def write_small(folder: Path, title: str = "a <small> run", functions: int = 3) -> Path:
    log = query_log()
    names = ["gateway", *(f"hot-{index}" for index in range(functions - 1))]
    times = np.arange(0, DURATION_S, 2.0)
    columns = {
        "t_s": np.repeat(times, functions),
        "function": np.array(names * len(times), object),
        "ready": np.tile(np.arange(1, functions + 1), len(times)),
        "wanted": np.tile(np.arange(1, functions + 1), len(times)),
        "memory_bytes": np.tile(np.arange(1, functions + 1) * 10**8, len(times)),
    }
    assert set(columns) <= set(FUNCTIONS)
    ranks = (1, 10, 100, 1000)
    fields = {
        **totals_of(log, 12.0),
        "source": "loadtest",
        "title": title,
        "duration_s": DURATION_S,
        "memory_bytes": Usage(mean=6e8, peak=6e8),
        "replicas": Usage(mean=6, peak=6),
        "usd_per_month": 100.0,
        "model_wise": Baseline(
            memory_bytes=Usage(mean=2.4e9, peak=2.4e9),
            source="reckoned",
            replicas=Usage(mean=4, peak=4),
            usd_per_month=200.0,
        ),
        "functions": tuple(
            FunctionResult(
                name=name,
                kind="sparse" if index else "gateway",
                tier="hot" if index else "",
                usd_per_month=10.0,
                memory_bytes=Usage(mean=1e8 * index, peak=1e8 * index),
            )
            for index, name in enumerate(names, 1)
        ),
        "access": (
            AccessPlot(
                table="user", ranks=ranks, share=(0.1, 0.5, 0.9, 1.0), cuts=((100, "hot-0"),)
            ),
        ),
        "prediction": PredictionCheck(
            checked=10, wrong=0, tolerance=1e-5, max_relative_error=2e-7, histogram=((1e-6, 10),)
        ),
    }
    timeline = timeline_of(log, DURATION_S, 5.0, 12.0)
    events = [Event(30.0, "cold start", "hot-0", "woke in 0.4 s")]
    write_result(folder, fields, Series(timeline, columns, events))
    return folder
