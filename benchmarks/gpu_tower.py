"""The dense tower on a GPU: bare, with its copies, and as the function that serves it.

python -m benchmarks.gpu_tower --out gpu.json      # one GPU, at most 5 minutes
python -m benchmarks.gpu_tower --device cpu --small --out cpu.json

For RM1 to RM3 and DLRM-v2, in fp32 and bf16, at batches of 32 to 8,192 samples:

bare       a pass on inputs that lie on the device; launched step by step, as a CUDA graph, and
           compiled by torch.compile (at two batches)
copied     a pass with its inputs copied to the device and its answer back, from pageable memory, as
           the function does it, and from pinned memory
served     the function behind its wire: one query in flight, and many, which dynamic batching joins
roofline   the least time that the peak rate of multiply-adds and the bandwidth of the device's
           memory leave, both measured in the same run, ÷ the best bare time

Times are medians, in seconds; p99 beside them. `curves` in the report is what `erless profile
--gpu-towers` reads, so that plans know this GPU. What the time does not allow is left out, and
`left_out` says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.functions import Fleet, fleet
from erless.dlrm.infer_request import infer_request
from erless.dlrm.tower import BuiltinTower, builtin_tower, tower_layers
from erless.dlrm.workload import WORKLOADS
from erless.observe.loadtest.encoded_queries import Body
from erless.pack.inputs import PackInputs
from erless.pack.packer import Packer
from erless.plan.costs.tower import tower_macs
from erless.plan.planner import Planner
from erless.plan.report.document import plan_document
from erless.plan.request import PlanRequest
from erless.plan.source import profile_source
from erless.profile.fit import fit_line
from erless.profile.throughput import machine
from erless.specs.model import DlrmTower, ModelSpec
from erless.specs.profile import GpuTowerCurve, TowerSample
from erless.specs.release import ReleaseManifest
from erless.storage.stores import open_store
from loadtests.closed_loop import run_closed_loop

MODELS = ("rm1", "rm2", "rm3", "dlrmv2")
BATCHES = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
QUERY, LANES = 32, 32  # samples of one query, and queries in flight under load
GRAPH_LARGEST = 1024  # beyond it launches are a small part of a pass
Pass = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """How much is measured: seconds of each point, of each load, and the sizes of the peaks."""

    point_s: float = 0.1
    load_s: float = 4.0
    square: int = 8192
    copied_bytes: int = 1 << 30
    batches: Sequence[int] = BATCHES
    compiled_at: Sequence[int] = (32, 1024)


SMALL = Sizes(0.01, 0.5, 256, 16 << 20, (32, 64), ())


@dataclass
class Bench:
    """The device, the time that is left, and what was found so far."""

    device: str
    sizes: Sizes
    until: float
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device == "cuda"

    @property
    def name(self) -> str:
        """The device, as its driver calls it."""
        return torch.cuda.get_device_name() if self.cuda else machine().processor

    def has_time(self, what: str, needs_s: float = 0.0) -> bool:
        """Whether there is time for it; else it is noted as left out."""
        if time.monotonic() + needs_s < self.until:
            return True
        self.report.setdefault("left_out", []).append(what)
        return False

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.cuda:
            torch.cuda.synchronize()

    def timed(self, run: Pass) -> dict[str, float]:
        """Median and p99 of the seconds that `run` takes, device and all."""
        for _ in range(3):
            run()
        self.wait()
        took: list[float] = []
        end = time.perf_counter() + self.sizes.point_s
        while time.perf_counter() < end or len(took) < 5:
            begin = time.perf_counter()
            run()
            self.wait()
            took.append(time.perf_counter() - begin)
        return {"s": float(np.median(took)), "p99_s": float(np.quantile(took, 0.99))}


def peaks(bench: Bench) -> dict[str, float]:
    """FLOP/s of a square product in each precision, and bytes/s of a copy within the device."""
    found = {}
    for name, dtype in DTYPES.items():
        square = torch.rand(bench.sizes.square, bench.sizes.square, device=bench.device).to(dtype)
        took = bench.timed(lambda square=square: square @ square)  # type: ignore[misc]
        found[f"{name}_flops"] = 2 * bench.sizes.square**3 / took["s"]
    data = torch.empty(bench.sizes.copied_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(data)
    took = bench.timed(lambda: target.copy_(data))
    return {**found, "bytes_per_s": 2 * bench.sizes.copied_bytes / took["s"]}


@dataclass(frozen=True)
class Case:
    """A tower at one precision and batch, on the device."""

    model: ModelSpec
    precision: str
    batch: int
    tower: BuiltinTower
    dense: Tensor
    pooled: Tensor

    @classmethod
    def of(cls, bench: Bench, model: ModelSpec, precision: str, batch: int) -> Case:
        """With random weights and inputs."""
        generator = torch.Generator().manual_seed(0)
        tensors = {
            name: (torch.rand(shape, generator=generator) - 0.5) / max(1.0, shape[-1] ** 0.5)
            for name, shape in tower_layers(model).items()
        }
        tower = builtin_tower(model, tensors).to(bench.device, DTYPES[precision])
        width = sum(table.dim for table in model.tables)
        dense = torch.rand(batch, model.dense_features, generator=generator)
        return cls(model, precision, batch, tower, dense, torch.rand(batch, width))

    @property
    def flops(self) -> float:
        """Of one pass, a multiply-add being two."""
        assert isinstance(self.model.tower, DlrmTower)
        return 2.0 * tower_macs(self.model, self.model.tower) * self.batch

    @property
    def moved(self) -> float:
        """Bytes that a pass reads and writes at least: weights, inputs and answer."""
        weights = sum(float(np.prod(shape)) for shape in tower_layers(self.model).values())
        inputs = self.dense.numel() + self.pooled.numel()
        return weights * DTYPES[self.precision].itemsize + 4.0 * (inputs + self.batch)

    def roofline_s(self, found: dict[str, float]) -> float:
        """The least time of a pass by what was measured of the device."""
        return max(self.flops / found[f"{self.precision}_flops"], self.moved / found["bytes_per_s"])


def measure(bench: Bench, case: Case, found: dict[str, float]) -> dict[str, Any]:
    """One point of the report."""
    x, vectors = case.dense.to(bench.device), case.pooled.to(bench.device)
    ways: dict[str, dict[str, float]] = {
        "bare": bench.timed(lambda: case.tower(x, [vectors])),
        "copied": bench.timed(_copied(case, bench.device, case.dense, case.pooled)),
    }
    if bench.cuda:
        pinned = case.dense.pin_memory(), case.pooled.pin_memory()
        ways["copied_pinned"] = bench.timed(_copied(case, bench.device, *pinned))
        if case.batch <= GRAPH_LARGEST:
            ways["graph"] = bench.timed(_graph(case, x, vectors))
    if case.batch in bench.sizes.compiled_at and case.precision == "fp32":
        what = f"torch.compile of {case.model.name} at {case.batch}"
        if bench.has_time(what, needs_s=60.0 if bench.cuda else 0.0):
            ways.update(_compiled(bench, case, x, vectors, what))
    best = min(ways[name]["s"] for name in ways if not name.startswith("copied"))
    return {
        "model": case.model.name,
        "precision": case.precision,
        "batch": case.batch,
        **ways,
        "roofline_share": case.roofline_s(found) / best,
        "flops": case.flops / best,
    }


def _copied(case: Case, device: str, dense: Tensor, pooled: Tensor) -> Pass:
    def run() -> object:
        x, vectors = (tensor.to(device, non_blocking=True) for tensor in (dense, pooled))
        return case.tower(x, [vectors]).cpu()

    return run


def _graph(case: Case, x: Tensor, vectors: Tensor) -> Pass:
    """The pass as a CUDA graph, captured after a warm-up on a stream of its own."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            case.tower(x, [vectors])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.tower(x, [vectors])
    return graph.replay


def _compiled(
    bench: Bench, case: Case, x: Tensor, vectors: Tensor, what: str
) -> dict[str, dict[str, float]]:
    """The pass by torch.compile; where no compiler is at hand, it is noted as left out."""
    try:
        compiled = torch.compile(lambda a, b: case.tower(a, [b]), dynamic=False)
        return {"compiled": bench.timed(lambda: compiled(x, vectors))}
    except Exception as error:  # whatever the compiler's back end raises
        reason = str(error).strip().splitlines()
        bench.report.setdefault("left_out", []).append(
            f"{what}: {type(error).__name__}: {reason[0] if reason else ''}"
        )
        return {}


def curves(bench: Bench, points: Sequence[dict[str, Any]], served: Sequence[dict[str, Any]]) -> Any:
    """a + β·B of each tower and precision, copied from pageable memory, as the function does it."""
    fitted = []
    for name in dict.fromkeys(point["model"] for point in points):
        for precision in DTYPES:
            mine = [p for p in points if (p["model"], p["precision"]) == (name, precision)]
            if len(mine) < 2:
                continue
            line = fit_line([p["batch"] for p in mine], [p["copied"]["s"] for p in mine])
            known = [s for s in served if (s["model"], s["precision"]) == (name, precision)]
            spec = WORKLOADS[name].model()
            layers = tower_layers(spec).items()
            curve = GpuTowerCurve(
                name=name,
                gpu=bench.name,
                precision=precision,
                overhead_s=line.overhead_s,
                sample_s=line.slope_s,
                cpu_s=known[0]["loaded"]["cpu_s"] if known else 0.0,
                macs_per_sample=sum(a[0] * a[1] for n, a in layers if n.endswith("weight")),
                residual=line.residual,
                machine=machine(),
                samples=tuple(
                    TowerSample(batch=p["batch"], seconds=p["copied"]["s"]) for p in mine
                ),
            )
            fitted.append(curve.model_dump(mode="json"))
    return fitted


def packed(work: Path, name: str) -> tuple[str, ReleaseManifest]:
    """A release of the workload with few rows, its tower a function of its own."""
    from erless.importers.synthetic import ACCESS_LOG, make_example
    from erless.profile.access import profile_access
    from erless.profile.formats import LogSource

    workload = replace(WORKLOADS[name].scaled(1e-4), batch=QUERY)
    model, profile, plan = work / "model", work / "profile", work / "plan.json"
    make_example(workload, model, queries=1, log_samples=256, seed=0)
    profile_access(model, [LogSource.parse(str(model / ACCESS_LOG))], profile)
    source = profile_source(model, profile, QUERY)
    request = PlanRequest(dense="function", qps=10.0, batch=QUERY, shards=1)
    outcome = Planner(source.model, source.tables, request, measured=source.measured).outcome()
    plan_document(outcome, source.model_digest, source.profile_digest).save(plan)
    store = str(work / "store")
    release = (
        Packer(PackInputs(model, profile, plan), open_store(store, create=True)).pack().release
    )
    assert release is not None
    return store, release


def serve(bench: Bench, name: str) -> Iterator[dict[str, Any]]:
    """The function in each precision: one query in flight, then many."""
    with tempfile.TemporaryDirectory(prefix="erless-tower-") as folder:
        store, release = packed(Path(folder), name)
        bodies = [_body(release.model, number) for number in range(8)]
        for precision in DTYPES:
            if not bench.has_time(f"{name} served in {precision}", 2 * bench.sizes.load_s + 15):
                continue
            with fleet() as running, _dense(running, store, release, bench, precision) as url:
                process = running.processes[-1]
                path = "/v2/models/tower/infer"
                ways: dict[str, Any] = {}
                for way, lanes in (("alone", 1), ("loaded", LANES)):
                    run_closed_loop(url, path, bodies, lanes, bench.sizes.load_s / 4)
                    cpu = process.cpu_s()
                    done = run_closed_loop(url, path, bodies, lanes, bench.sizes.load_s)
                    if done.failures:
                        raise SystemExit(f"{name}: {done.failures[0]}")
                    ways[way] = {
                        "in_flight": lanes,
                        "qps": done.qps,
                        "samples_s": done.qps * QUERY,
                        "p50_s": float(np.quantile(done.latency_ms, 0.5)) / 1e3,
                        "p99_s": float(np.quantile(done.latency_ms, 0.99)) / 1e3,
                        "cpu_s": (process.cpu_s() - cpu) / len(done.latency_ms),
                    }
            yield {"model": name, "precision": precision, "batch": QUERY, **ways}


@contextmanager
def _dense(
    running: Fleet, store: str, release: ReleaseManifest, bench: Bench, precision: str
) -> Iterator[str]:
    """The dense function, ready; its URL."""
    env = {
        "ERLESS_STORE": store,
        "ERLESS_RELEASE": release.digest,
        "ERLESS_DEVICE": bench.device,
        "ERLESS_PRECISION": precision,
        "ERLESS_MAX_DELAY_MS": "1",
        "ERLESS_MAX_COALESCE": str(QUERY * LANES),
        "PORT": "0",
    }
    process = running.start(f"dense-{precision}", ["-m", "erless.serve", "dense"], env)
    process.event("ready")
    yield process.url


def _body(model: ModelSpec, seed: int) -> Body:
    """A query to the tower."""
    generator = np.random.default_rng(seed)
    widest = max(table.dim for table in model.tables)
    shapes = {
        "dense": (QUERY, model.dense_features),
        "pooled": (QUERY, len(model.lookups), widest),
    }
    head, data = infer_request(
        {name: generator.random(shape, np.float32) for name, shape in shapes.items()}
    )
    return Body(b"".join([head, *data]), len(head), QUERY, seed)


def run(bench: Bench, models: Sequence[str]) -> dict[str, Any]:
    """Everything, in an order that leaves out the largest batches first where time is short."""
    report = bench.report
    report |= {
        "device": bench.name,
        "torch": torch.__version__,
        "machine": machine().model_dump(mode="json"),
        "served": [],
        "points": [],
    }
    with torch.inference_mode():
        report["peaks"] = found = peaks(bench)
    for name in models:
        report["served"] += serve(bench, name)
        print(f"{name}: served", file=sys.stderr, flush=True)
    with torch.inference_mode():
        for batch in bench.sizes.batches:
            for name in models:
                for precision in DTYPES:
                    if bench.has_time(f"{name} {precision} at {batch}"):
                        case = Case.of(bench, WORKLOADS[name].model(), precision, batch)
                        report["points"].append(measure(bench, case, found))
            print(f"batch {batch}: done", file=sys.stderr, flush=True)
    report["curves"] = curves(bench, report["points"], report["served"])
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--minutes", type=float, default=4.5, help="after which points are left")
    parser.add_argument("--small", action="store_true", help="few points, to try it on a CPU")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device here; --device cpu --small tries the rest")
    torch.backends.cuda.matmul.allow_tf32 = False
    sizes = SMALL if options.small else Sizes()
    bench = Bench(options.device, sizes, time.monotonic() + 60 * options.minutes)
    report = run(bench, options.models)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
