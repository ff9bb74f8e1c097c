"""What was measured of a machine, as a profile keeps it."""

from __future__ import annotations

from typing import NamedTuple

from erless.specs.profile import ThroughputCurve, TowerCurve

__all__ = ["MachineCurves"]


class MachineCurves(NamedTuple):
    """Throughput of gathers, and latency of the tower."""

    gathers: tuple[ThroughputCurve, ...] = ()
    towers: tuple[TowerCurve, ...] = ()
