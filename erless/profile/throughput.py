"""Micro-benchmarks of the real gather kernel and the real tower on this machine.

CPU seconds of the calling threads, not wall time, so that a busy machine disturbs little. All
points are visited once per round in a new random order; a point's value is its median over rounds
and its spread the interquartile range ÷ median. What is measured is the arithmetic of a call: the
HTTP exchange around it is not in a.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil

from erless.dlrm.embedding import EmbeddingShard, StoredSlice, stored_dtype, stored_width
from erless.dlrm.rows import INDEX_WORDS, RowIndex
from erless.dlrm.workload import WORKLOADS, PowerLaw, RowOrder
from erless.profile.curves import MachineCurves
from erless.profile.fit import fit_line
from erless.progress import Progress, Silent
from erless.specs.bundle import BundleManifest
from erless.specs.model import DlrmTower, ModelSpec, TableSpec
from erless.specs.plan import Precision
from erless.specs.profile import (
    CurveSample,
    Machine,
    ThroughputCurve,
    TowerCurve,
    TowerSample,
)

__all__ = ["machine", "measure", "measure_gathers", "measure_tower"]

BATCH = 32
DIMS = (16, 32, 64, 128)
GATHERS = (256, 1024, 4096, 16384, 40960)
LOCALITIES = (0.5, 0.9, 0.99)
USUAL_DIM, USUAL_LOCALITY = 32, 0.9
TABLE_BYTES = 48 << 20  # more than a second-level cache; all 16 tables take 768 MB
QUICK_TABLE_BYTES = 12 << 20
ID_POOL = 1 << 19
TOWER_BATCHES = (1, 8, 32, 128, 256)
GATHER_SECONDS, TOWER_SECONDS = 40.0, 12.0
QUICK = 0.2
MIN_ROUNDS = 3

T = TypeVar("T")
Ids = np.ndarray[tuple[int], np.dtype[np.int32]]


@dataclass(frozen=True, slots=True)
class _Point:
    """What one measurement varies."""

    dim: int
    precision: Precision
    locality: float
    vcpu: int
    gathers: int


def machine() -> Machine:
    """This machine, as it is written beside a curve."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), name)
    return Machine(
        processor=name,
        cores=_cores(),
        memory_bytes=psutil.virtual_memory().total,
        python=platform.python_version(),
        measured_on=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def measure(
    model: Path | None = None, *, quick: bool = False, progress: Progress | None = None
) -> MachineCurves:
    """Gather curves, and the tower's curve (of the bundle `model`, else of RM1).

    Raises:
        ArtifactError: no bundle at `model`.
    """
    return MachineCurves(
        measure_gathers(quick=quick, progress=progress),
        measure_tower(model, quick=quick, progress=progress),
    )


def _points() -> list[_Point]:
    points = []
    for precision in Precision:
        shapes = [(dim, USUAL_LOCALITY, 1) for dim in DIMS]
        shapes += [(USUAL_DIM, value, 1) for value in LOCALITIES if value != USUAL_LOCALITY]
        shapes += [(USUAL_DIM, USUAL_LOCALITY, _cores())] if _cores() > 1 else []
        for dim, locality, vcpu in shapes:
            points += [_Point(dim, precision, locality, vcpu, gathers) for gathers in GATHERS]
    return points


def measure_gathers(
    *, quick: bool = False, progress: Progress | None = None
) -> tuple[ThroughputCurve, ...]:
    """One curve per (row bytes, precision, locality, vCPU), each over `GATHERS`."""
    generator = np.random.default_rng(0)
    table_bytes = QUICK_TABLE_BYTES if quick else TABLE_BYTES
    shards = {
        (dim, precision): _shard(dim, precision, table_bytes, generator)
        for dim in DIMS
        for precision in Precision
    }
    points = _points()
    pools: dict[tuple[int, float], Ids] = {}
    for point in points:
        rows = shards[point.dim, point.precision].tables[0].rows
        if (rows, point.locality) not in pools:
            pools[rows, point.locality] = _ids(rows, point.locality, generator)
    lengths = {n: np.full((1, BATCH), n // BATCH, np.int32) for n in GATHERS}

    with ThreadPoolExecutor(max(2, _cores())) as threads:

        def run(point: _Point) -> float:
            shard = shards[point.dim, point.precision]
            pool = pools[shard.tables[0].rows, point.locality]
            starts = generator.integers(0, len(pool) - point.gathers, point.vcpu).tolist()

            def call(start: int) -> float:
                values = pool[start : start + point.gathers]
                begin = time.thread_time()
                shard.pool(values, lengths[point.gathers])
                return time.thread_time() - begin

            return float(np.mean(list(threads.map(call, starts))))

        seconds = GATHER_SECONDS * (QUICK if quick else 1)
        measured = _rounds(points, run, seconds, generator, "measure gathers", progress)
    return _curves(measured)


def _shard(
    dim: int, precision: Precision, table_bytes: int, generator: np.random.Generator
) -> EmbeddingShard:
    """A whole table of random rows, stored as the sparse function stores them."""
    rows = table_bytes // precision.row_bytes(dim)
    shape = (rows, stored_width(precision, dim))
    if precision in (Precision.FP32, Precision.FP16):
        stored = generator.random(shape, np.float32).astype(stored_dtype(precision), copy=False)
    else:
        stored = generator.integers(0, 256, shape, np.uint8)
        stored[:, :4] = np.array([1.0, 0.0], np.float16).view(np.uint8)  # scale, bias
    table = TableSpec(name="table", rows=rows, dim=dim)
    index = RowIndex(rows, np.empty((0, INDEX_WORDS), np.uint64))
    return EmbeddingShard([StoredSlice(table, precision, stored, index)])


def _ids(rows: int, locality: float, generator: np.random.Generator) -> Ids:
    ranks = PowerLaw(rows, locality).sample(generator, ID_POOL)
    return RowOrder.seeded(rows, generator).ids(ranks).astype(np.int32)


def _rounds(
    points: list[T],
    run: Callable[[T], float],
    budget_s: float,
    generator: np.random.Generator,
    label: str,
    progress: Progress | None,
) -> dict[T, tuple[float, float]]:
    """Median and spread of each point over as many rounds as the time allows."""
    seconds: dict[T, list[float]] = {point: [] for point in points}
    for point in points:
        run(point)  # page in, load code
    end = time.monotonic() + budget_s
    rounds = 0
    with (progress or Silent()).step(label, None, "steps") as step:
        while rounds < MIN_ROUNDS or time.monotonic() < end:
            for index in generator.permutation(len(points)).tolist():
                seconds[points[index]].append(run(points[index]))
            rounds += 1
            step.advance(len(points))
    return {point: _median(values) for point, values in seconds.items()}


def _median(values: list[float]) -> tuple[float, float]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(middle), float((high - low) / middle)


def _curves(measured: dict[_Point, tuple[float, float]]) -> tuple[ThroughputCurve, ...]:
    this_machine = machine()
    groups: dict[tuple[int, Precision, float, int], list[CurveSample]] = {}
    for point, (seconds, spread) in measured.items():
        key = (point.dim, point.precision, point.locality, point.vcpu)
        sample = CurveSample(
            gathers=point.gathers,
            row_bytes=point.precision.row_bytes(point.dim),
            precision=point.precision,
            locality=point.locality,
            vcpu=point.vcpu,
            seconds=seconds,
            spread=spread,
        )
        groups.setdefault(key, []).append(sample)
    curves = []
    for (dim, precision, locality, vcpu), samples in groups.items():
        line = fit_line(
            [sample.gathers for sample in samples], [sample.seconds for sample in samples]
        )
        curves.append(
            ThroughputCurve(
                name=f"{precision}-{precision.row_bytes(dim)}B-P{locality:g}-{vcpu}vcpu",
                overhead_s=line.overhead_s,
                gather_s=line.slope_s,
                row_bytes=precision.row_bytes(dim),
                precision=precision,
                locality=locality,
                vcpu=vcpu,
                residual=line.residual,
                machine=this_machine,
                samples=tuple(samples),
            )
        )
    return tuple(curves)


def measure_tower(
    model: Path | None = None, *, quick: bool = False, progress: Progress | None = None
) -> tuple[TowerCurve, ...]:
    """The tower's CPU seconds over `TOWER_BATCHES` on one thread."""
    import torch

    from erless.dlrm.tower import builtin_tower, load_tower, tower_layers

    if model is None:
        spec = WORKLOADS["rm1"].model()
        tensors = {name: torch.rand(shape) - 0.5 for name, shape in tower_layers(spec).items()}
        tower = builtin_tower(spec, tensors)
    else:
        bundle = BundleManifest.open(model)
        spec = bundle.model
        tower = load_tower(model, bundle)  # type: ignore[assignment]
    width = sum(table.dim for table in spec.tables)
    inputs = {
        batch: (torch.rand(batch, spec.dense_features), [torch.rand(batch, width)])
        for batch in TOWER_BATCHES
    }

    def run(batch: int) -> float:
        begin = time.thread_time()
        tower(*inputs[batch])
        return time.thread_time() - begin

    seconds = TOWER_SECONDS * (QUICK if quick else 1)
    with _one_thread(), torch.inference_mode():
        measured = _rounds(
            list(TOWER_BATCHES), run, seconds, np.random.default_rng(0), "measure tower", progress
        )
    line = fit_line(list(measured), [middle for middle, _ in measured.values()])
    samples = tuple(TowerSample(batch=b, seconds=s, spread=d) for b, (s, d) in measured.items())
    return (
        TowerCurve(
            name=spec.name,
            overhead_s=line.overhead_s,
            sample_s=line.slope_s,
            macs_per_sample=_macs(spec),
            residual=line.residual,
            machine=machine(),
            samples=samples,
        ),
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _macs(spec: ModelSpec) -> int:
    """Multiply-adds of the built-in tower's layers per sample; 0 for an exported one."""
    if not isinstance(spec.tower, DlrmTower):
        return 0
    from erless.dlrm.tower import tower_layers

    layers = tower_layers(spec).items()
    return sum(shape[0] * shape[1] for name, shape in layers if name.endswith("weight"))
