"""What the dense tower costs per query, and where that number comes from.

Best is a measurement of this very tower (`erless profile --throughput`). Without one, a built-in
tower's multiply-accumulates are counted. An exported tower cannot be counted without running it:
each fp32 weight of its archive is taken to be used once per sample, as in an MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from erless.errors import PlanError
from erless.plan.costs.cost import CostTerms
from erless.specs.model import DlrmTower, Interaction, ModelSpec
from erless.specs.profile import GpuTowerCurve, TowerCurve

__all__ = ["COALESCED_SAMPLES", "GpuCost", "TowerCost", "gpu_cost", "tower_cost", "tower_macs"]

WEIGHT_BYTES = 4
COALESCED_SAMPLES = 256  # of one pass of the dense function, where queries wait
GPU_MACS = 1e12  # per second: 2 TFLOP/s fp32, a quarter of a T4's peak; shipped, not measured
GPU_CALL_S = 5e-5  # launches of a coalesced batch, per query


@dataclass(frozen=True)
class TowerCost:
    """Seconds of one vCPU per query, multiply-accumulates per query, and where they come from."""

    seconds: float
    macs: float
    source: str


def tower_cost(
    model: ModelSpec,
    batch: int,
    terms: CostTerms,
    *,
    given_ms: float | None = None,
    curves: Sequence[TowerCurve] = (),
    archive_bytes: int | None = None,
) -> TowerCost:
    """The tower's cost: as given, else as measured, else counted, else estimated.

    Args:
        model: its shape.
        batch: samples per query.
        terms: seconds per multiply-accumulate.
        given_ms: what the user says it takes, CPU ms per query.
        curves: measurements; one of another model's tower is not used.
        archive_bytes: size of an exported tower's archive.

    Raises:
        PlanError: an exported tower of unknown size.
    """
    per_sample, how = _macs(model, archive_bytes)
    macs = per_sample * batch
    if given_ms is not None:
        return TowerCost(given_ms / 1e3, macs, f"{given_ms:g} ms per query, as given")
    for curve in curves:
        if curve.name == model.name and curve.macs_per_sample in (0, _weights(model)):
            seconds = curve.overhead_s + curve.sample_s * batch
            return TowerCost(
                seconds,
                macs,
                f"{seconds * 1e3:.3g} ms per query, measured "
                f"(largest residual {curve.residual:.0%})",
            )
    seconds = macs * terms.mac_s
    rate = f"{1e-9 * 2 / terms.mac_s:g} GFLOP/s per vCPU"
    return TowerCost(
        seconds,
        macs,
        f"{seconds * 1e3:.3g} ms per query: {macs:,.0f} multiply-adds "
        f"{how} at {rate} (shipped default)",
    )


@dataclass(frozen=True)
class GpuCost:
    """Seconds of one GPU per query, of one vCPU beside it, and where they come from.

    Queries that wait are answered by one pass, so a pass's launches are shared out.
    """

    seconds: float
    cpu_s: float
    source: str


def gpu_cost(
    model: ModelSpec, batch: int, tower: TowerCost, curves: Sequence[GpuTowerCurve] = ()
) -> GpuCost:
    """The tower's cost on a GPU: as measured in fp32, else by a shipped default."""
    for curve in curves:
        if (
            curve.name == model.name
            and curve.precision == "fp32"
            and curve.macs_per_sample in (0, _weights(model))
        ):
            passes = batch / max(batch, COALESCED_SAMPLES)
            seconds = curve.overhead_s * passes + curve.sample_s * batch
            return GpuCost(seconds, curve.cpu_s, f"measured on {curve.gpu}")
    source = f"a shipped default ({2e-12 * GPU_MACS:g} TFLOP/s), not measured"
    return GpuCost(GPU_CALL_S + tower.macs / GPU_MACS, 0.0, source)


def _macs(model: ModelSpec, archive_bytes: int | None) -> tuple[int, str]:
    if isinstance(model.tower, DlrmTower):
        return tower_macs(model, model.tower), "counted"
    if archive_bytes is None:
        raise PlanError(
            "an exported tower's cost is not known without its archive: measure it "
            "with `erless profile --throughput` or give --tower-ms"
        )
    return archive_bytes // WEIGHT_BYTES, (
        f"estimated from the archive's {archive_bytes:,} bytes, one per fp32 weight and sample "
        "(`erless profile --throughput` measures it),"
    )


def _layers(model: ModelSpec, tower: DlrmTower) -> tuple[int, list[tuple[int, int]]]:
    """Multiply-accumulates of the interaction, and (inputs, outputs) of each layer."""
    vectors = len(model.feature_dims) + 1
    pairs = vectors * (vectors - 1) // 2
    if tower.interaction in (Interaction.CAT, Interaction.DCN):
        width, dots = tower.bottom_mlp[-1] + sum(model.feature_dims), 0
    else:
        pairs += vectors if tower.interaction is Interaction.DOT_ITSELF else 0
        width, dots = tower.bottom_mlp[-1] + pairs, pairs * tower.bottom_mlp[-1]
    bottom = (model.dense_features, *tower.bottom_mlp)
    cross = tower.cross
    crossed = [(width, cross.rank), (cross.rank, width)] * cross.layers if cross else []
    return dots, [*pairwise(bottom), *crossed, *pairwise((width, *tower.top_mlp))]


def tower_macs(model: ModelSpec, tower: DlrmTower) -> int:
    """Multiply-accumulates of the built-in tower per sample."""
    dots, layers = _layers(model, tower)
    return dots + sum(x * y for x, y in layers)


def _weights(model: ModelSpec) -> int:
    """Weights of a built-in tower's layers, as its measured curve counts them."""
    if not isinstance(model.tower, DlrmTower):
        return 0
    return sum(x * y for x, y in _layers(model, model.tower)[1])
