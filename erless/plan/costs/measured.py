"""Terms from a profile's measured curves instead of the shipped ones.

The arithmetic of a call is measured (`erless profile --throughput`), the HTTP exchange around it
is not: its shipped figure is added to the fitted overhead. β is interpolated over the row's bytes,
per precision, and scaled to the traffic's locality and to cores that gather at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from erless.plan.costs.cost import EXCHANGE_S, BetaCurve, CostTerms
from erless.plan.costs.disk import DiskTerms
from erless.specs.plan import Precision
from erless.specs.profile import DiskCurve, GpuTowerCurve, ThroughputCurve, TowerCurve

__all__ = ["MeasuredSpeed", "disk_terms", "measured_terms"]


@dataclass(frozen=True)
class MeasuredSpeed:
    """Measurements of speed in a profile, and facts of a bundle; empty: the shipped defaults.

    Args:
        curves: throughput of gathers, as `erless profile --throughput` wrote them.
        towers: CPU of the dense tower, likewise.
        locality: share of accesses that the hottest 10 % of rows take, over all tables.
        archive_bytes: size of the tower's file.
        disks: random reads, as `erless profile --disk` measured them.
        gpus: the dense tower on a GPU, as `benchmarks/gpu_tower.py` measured it.
    """

    curves: tuple[ThroughputCurve, ...] = ()
    towers: tuple[TowerCurve, ...] = ()
    locality: float = 0.9
    archive_bytes: int | None = None
    disks: tuple[DiskCurve, ...] = ()
    gpus: tuple[GpuTowerCurve, ...] = ()


def measured_terms(terms: CostTerms, measured: MeasuredSpeed) -> CostTerms:
    """`terms` with β and a as measured, or as they are where nothing was measured in fp32."""
    curves, locality = measured.curves, measured.locality
    betas = [beta for kind in Precision if (beta := _beta_curve(kind, curves, locality))]
    if not betas or betas[0].precision is not Precision.FP32:
        return terms
    fp32 = _single(Precision.FP32, curves)
    overhead = float(np.median([curve.overhead_s for curve in fp32]))
    machine = fp32[0].machine
    where = f"{machine.processor}, {machine.measured_on}" if machine else "unknown machine"
    worst = max(curve.residual for curve in curves)
    return replace(
        terms,
        curve=f"{where} (largest residual {worst:.0%})",
        curve_shipped=all(curve.shipped for curve in fp32),
        call_s=EXCHANGE_S + overhead,
        gather_s=betas[0].at(128),
        betas=tuple(betas),
    )


def disk_terms(measured: MeasuredSpeed) -> DiskTerms:
    """What a read costs: as measured, or the shipped default.

    How many reads a second a node's disk can do is the node type's, not this machine's.
    """
    if not measured.disks:
        return DiskTerms()
    disk = measured.disks[-1]
    where = f"{disk.machine.processor}, {disk.machine.measured_on}" if disk.machine else "measured"
    source = f"{disk.engine}, {where}"
    return DiskTerms(read_s=disk.read_cpu_s, seek_s=disk.seek_s, source=source)


def _single(precision: Precision, curves: Sequence[ThroughputCurve]) -> list[ThroughputCurve]:
    """The curves of one precision on one vCPU at its most measured locality, by row bytes."""
    on_one = [curve for curve in curves if curve.precision == precision and curve.vcpu == 1]
    localities = [curve.locality for curve in on_one]
    if not on_one:
        return []
    commonest = max(set(localities), key=lambda locality: (localities.count(locality), locality))
    return sorted(
        (curve for curve in on_one if curve.locality == commonest),
        key=lambda curve: curve.row_bytes,
    )


def _beta_curve(
    precision: Precision, curves: Sequence[ThroughputCurve], locality: float
) -> BetaCurve | None:
    single = _single(precision, curves)
    if not single:
        return None
    usual = single[0].locality
    factor = 1.0
    for base in single:
        skewed = sorted(
            (curve.locality, curve.gather_s)
            for curve in curves
            if (curve.precision, curve.row_bytes, curve.vcpu) == (precision, base.row_bytes, 1)
        )
        if len(skewed) > 1:
            localities, values = zip(*skewed, strict=True)
            factor *= float(np.interp(locality, localities, values)) / base.gather_s
        shared = [
            curve.gather_s / base.gather_s
            for curve in curves
            if (curve.precision, curve.row_bytes, curve.locality)
            == (precision, base.row_bytes, usual)
            and curve.vcpu > 1
        ]
        factor *= max([1.0, *shared])
    return BetaCurve(
        precision,
        tuple(curve.row_bytes for curve in single),
        tuple(curve.gather_s * factor for curve in single),
    )
