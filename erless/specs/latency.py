"""Bounds of the latency histogram that functions count in, and that alerts ask for."""

from __future__ import annotations

__all__ = ["BUCKETS_S"]

# Seconds: from a fast gather to a cold start.
BUCKETS_S = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)
