"""Traffic shapes as Locust's `LoadTestShape`s, over `erless.specs.traffic`.

Locust's shapes set a number of users. Here users are connections, all there from the start, and
the shape is a rate: users take turns at the next arrival of a Poisson process (`Arrivals`), whether
or not earlier answers came. `--traffic` chooses the shape; the test ends when its traffic does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from locust import LoadTestShape

from erless.specs.traffic import Traffic, parse_traffic

__all__ = ["Arrivals", "OpenLoop", "now", "shape_of"]

DRAIN_S = 1.0  # after the last arrival, for the last answers


class Arrivals:
    """When each query is due, seconds after `start`; users take turns at it.

    Args:
        traffic: offered in all.
        processes: of Locust; each offers its part.
        seed: of the process.
    """

    def __init__(self, traffic: Traffic, processes: int = 1, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self._due: Iterator[float] = iter(traffic.arrivals(generator, 1 / processes).tolist())

    def take(self) -> float | None:
        """The next due time; None after the last."""
        return next(self._due, None)


class OpenLoop(LoadTestShape):
    """All connections from the beginning; ends with the traffic, or with `--run-time`."""

    abstract = True
    use_common_options = True
    traffic: Traffic

    def tick(self) -> tuple[int, float] | None:
        """Locust asks once a second: (users, users per second), or None to end."""
        runner: Any = self.runner
        options = runner.environment.parsed_options
        if self.get_run_time() > self.traffic.duration_s + DRAIN_S:
            return None
        users = options.num_users or 64
        return users, float(users)


def shape_of(text: str, duration_s: float | None) -> type[OpenLoop]:
    """The shape class for `--traffic text`.

    Raises:
        TrafficError: no such shape or trace.
    """
    traffic = parse_traffic(text, duration_s)
    return type("Traffic", (OpenLoop,), {"abstract": False, "traffic": traffic})


def now() -> float:
    """Seconds on the clock that due times are measured against."""
    return time.perf_counter()
