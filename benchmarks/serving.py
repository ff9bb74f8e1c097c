"""What serving by shards costs over one process with the whole model, side by side in one run.

    python -m benchmarks.serving --output json          # RM1, 200,000 rows a table, 4 shards

Monolith and shards answer the same queries in turns; each round gives one ratio, and the medians
and quartiles of the ratios are printed. CPU is that of all server processes, from the kernel; the
client's is left out.

tax             CPU per query by shards ÷ CPU per query by the monolith, 8 queries in flight
tax_one         the same with one query in flight: every call then wakes a process
p99_ratio       (p99 by shards - 1 ms) ÷ p99 by the monolith, one query in flight
qps             queries/s by shards with several in flight; monolith_qps likewise
gather_ratio    torch.nn.functional.embedding_bag's time ÷ ours for the same gathers, per precision
bucketize_ms    time to sort one query's 40,960 ids by shard
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from benchmarks.functions import Client, Fleet, Process, fleet
from erless.dlrm.queries import Query, QueryFile
from erless.observe.loadtest.encoded_queries import Body, build
from erless.serve.files import Source, open_gateway
from erless.specs.release import ReleaseManifest
from erless.specs.stored import find_release
from erless.storage.stores import open_store
from loadtests.closed_loop import run_closed_loop

LANES = 8  # queries in flight where throughput is measured


def prepare(work: Path, rows: int, shards: int, resident: float | None) -> ReleaseManifest:
    """RM1 in `work`, imported, profiled, planned and packed; what is there is kept."""

    def run(*arguments: object) -> None:
        command = [sys.executable, "-m", "erless", *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    model, profile = work / "model", work / "profile"
    if not model.exists():
        run("example", "rm1", "--rows", rows, "--out", model)
    if not profile.exists():
        run("profile", "--model", model, "--log", model / "access.parquet", "--out", profile)
    plan = work / f"plan-{shards}-{resident}.json"
    share = () if resident is None else ("--resident-share", resident)
    run("plan", "--model", model, "--profile", profile, "--shards", shards, *share, "--out", plan)
    store = work / f"store-{shards}-{resident}"
    run("pack", "--model", model, "--profile", profile, "--plan", plan, "--store", store)
    return find_release(open_store(str(store)), "")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": round(middle, 4), "q1": round(low, 4), "q3": round(high, 4)}


class Side:
    """One way of serving: where to ask, and whose CPU counts."""

    def __init__(self, server: Process, processes: Sequence[Process], model: str) -> None:
        self.processes, self.url = processes, server.url
        self.path = f"/v2/models/{model}/infer"
        self.client = Client(server.port, model)
        self.cpu_ms: list[float] = []  # per query, several in flight
        self.cpu_one_ms: list[float] = []
        self.p50_ms: list[float] = []
        self.p99_ms: list[float] = []
        self.qps: list[float] = []

    def cpu_s(self) -> float:
        """CPU seconds of all its processes."""
        return sum(process.cpu_s() for process in self.processes)

    def one_by_one(self, queries: Sequence[Body]) -> None:
        """A round with one query in flight: latency and CPU per query."""
        took = []
        cpu = self.cpu_s()
        for query in queries:
            begin = time.perf_counter()
            self.client.infer(query)
            took.append((time.perf_counter() - begin) * 1e3)
        self.cpu_one_ms.append((self.cpu_s() - cpu) / len(queries) * 1e3)
        self.p50_ms.append(float(np.quantile(took, 0.5)))
        self.p99_ms.append(float(np.quantile(took, 0.99)))

    def many(self, queries: Sequence[Body], seconds: float) -> None:
        """A round with several in flight."""
        cpu = self.cpu_s()
        measured = run_closed_loop(self.url, self.path, queries, LANES, seconds)
        if measured.failures:
            raise SystemExit(f"{self.url}: {measured.failures[0]}")
        self.cpu_ms.append((self.cpu_s() - cpu) / len(measured.latency_ms) * 1e3)
        self.qps.append(measured.qps)


def measure(
    running: Fleet, work: Path, store: str, release: ReleaseManifest, options: argparse.Namespace
) -> dict[str, Any]:
    """All rounds; what is printed."""
    model = release.model.name
    monolith = running.monolith(work / "model")
    shards = running.shards(store, release)
    gateway = running.gateway(
        store, release, shards, ERLESS_HALF_PARTIALS="1" if options.half else "0"
    )
    running.ready()
    whole = Side(monolith, [monolith], model)
    split = Side(gateway, [gateway, *shards.values()], model)
    queries = list(QueryFile(work / "model" / "queries.safetensors"))
    requests = [build(query) for query in queries]
    worst = max(
        float(np.max(np.abs(split.client.infer(r) - m) / np.maximum(np.abs(m), 1e-30)))
        for r in requests
        for m in [whole.client.infer(r)]
    )
    for _ in range(options.rounds):
        for side in (whole, split):
            side.one_by_one(requests * options.repeat)
    for _ in range(options.throughput_rounds):
        for side in (whole, split):
            side.many(requests, options.seconds)
    pairs = list(zip(split.cpu_ms, whole.cpu_ms, strict=True))
    ones = list(zip(split.cpu_one_ms, whole.cpu_one_ms, strict=True))
    tails = list(zip(split.p99_ms, whole.p99_ms, strict=True))
    return {
        "tax": spread([a / b for a, b in pairs]),
        "tax_one": spread([a / b for a, b in ones]),
        "cpu_ms": spread(split.cpu_ms),
        "monolith_cpu_ms": spread(whole.cpu_ms),
        "cpu_one_ms": spread(split.cpu_one_ms),
        "monolith_cpu_one_ms": spread(whole.cpu_one_ms),
        "p99_ratio": spread([max(0.0, a - 1) / b for a, b in tails]),
        "p50_ms": spread(split.p50_ms),
        "monolith_p50_ms": spread(whole.p50_ms),
        "p99_ms": spread(split.p99_ms),
        "monolith_p99_ms": spread(whole.p99_ms),
        "qps": spread(split.qps),
        "monolith_qps": spread(whole.qps),
        "max_relative_difference": worst,
        "memory_mb": {process.name: process.memory_mb() for process in running.processes},
        "ready_s": {
            process.name: process.event("ready")["seconds"] for process in running.processes
        },
        "resident_share": resident_share(store, release, queries),
    }


def resident_share(store: str, release: ReleaseManifest, queries: Sequence[Query]) -> float:
    """Share of the queries' gathers that stay inside the gateway."""
    with open_gateway(Source(store), release.digest) as opened:
        here = total = 0
        for query in queries:
            buckets = opened.routing.bucketize(query.values, query.lengths)
            here += buckets.kept
            here += sum(buckets.gathers(number) for number in opened.resident)
            total += len(query.values)
    return round(here / total, 4)


def bucketize_ms(
    store: str, release: ReleaseManifest, queries: Sequence[Query]
) -> dict[str, float]:
    """CPU milliseconds to sort one query's ids by shard."""
    with open_gateway(Source(store), release.digest) as opened:
        route = opened.routing.bucketize
        return spread([_cpu_ms(route, [(q.values, q.lengths) for q in queries]) for _ in range(21)])


def _cpu_ms(call: Callable[..., object], calls: Sequence[tuple[Any, ...]]) -> float:
    begin = time.thread_time()
    for arguments in calls:
        call(*arguments)
    return (time.thread_time() - begin) / len(calls) * 1e3


def gather_ratios(work: Path, queries: Sequence[Query]) -> dict[str, Any]:
    """torch's CPU time for a query's gathers, a call per table, ÷ ours, per precision."""
    import torch

    from erless.dlrm.embedding import EmbeddingShard, StoredSlice
    from erless.dlrm.quantize import encode
    from erless.dlrm.rows import INDEX_WORDS, RowIndex
    from erless.specs.bundle import TABLE_TENSOR, BundleManifest
    from erless.specs.plan import Precision
    from erless.storage.tensors import TensorFile

    torch.set_num_threads(1)
    bundle = BundleManifest.open(work / "model")
    specs = bundle.model.tables
    tables = [
        TensorFile(bundle.table_file(work / "model", spec)).read(TABLE_TENSOR) for spec in specs
    ]
    ours_in = [(query.values, query.lengths) for query in queries]
    theirs_in = []
    for query in queries:
        ends = np.cumsum(query.lengths.sum(axis=1))
        ids = [torch.from_numpy(part) for part in np.split(query.values, ends[:-1])]
        offsets = np.zeros((len(specs), query.batch + 1), query.values.dtype)
        np.cumsum(query.lengths, axis=1, out=offsets[:, 1:])
        theirs_in.append((ids, list(torch.from_numpy(offsets))))

    def theirs(precision: Precision) -> Callable[..., object]:
        """One call of torch's operator per table."""
        if precision is Precision.INT8:
            prepack = torch.ops.quantized.embedding_bag_byte_prepack
            packed = [prepack(torch.from_numpy(table)) for table in tables]
            bags = torch.ops.quantized.embedding_bag_byte_rowwise_offsets
            return lambda ids, offsets: [
                bags(table, i, o, False, 0, False, None, None, True)
                for table, i, o in zip(packed, ids, offsets, strict=True)
            ]
        dtype = torch.float16 if precision is Precision.FP16 else torch.float32
        plain = [torch.from_numpy(table).to(dtype) for table in tables]
        bag = torch.nn.functional.embedding_bag
        return lambda ids, offsets: [
            bag(i, table, o, mode="sum", include_last_offset=True)
            for table, i, o in zip(plain, ids, offsets, strict=True)
        ]

    measured = {}
    for precision in (Precision.FP32, Precision.FP16, Precision.INT8):
        shard = EmbeddingShard(
            [
                StoredSlice(
                    spec,
                    precision,
                    encode(table, precision),
                    RowIndex(spec.rows, np.empty((0, INDEX_WORDS), np.uint64)),
                )
                for spec, table in zip(specs, tables, strict=True)
            ]
        )
        torchs = theirs(precision)
        pairs = []
        with torch.inference_mode():
            for _ in range(21):
                pairs.append((_cpu_ms(torchs, theirs_in), _cpu_ms(shard.pool, ours_in)))
        measured[precision.value] = {
            **spread([a / b for a, b in pairs]),
            "ours_ms": round(statistics.median(b for _, b in pairs), 4),
            "torch_ms": round(statistics.median(a for a, _ in pairs), 4),
        }
    return measured


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="keep what is made here, for the next run")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--resident-share", type=float, default=None, help="default: the plan's")
    parser.add_argument("--half", action="store_true", help="partials in float16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeat", type=int, default=3, help="times all queries per round")
    parser.add_argument("--throughput-rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a throughput round")
    parser.add_argument("--no-kernels", action="store_true", help="only what crosses the wire")
    parser.add_argument("--output", choices=["text", "json"], default="text")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="erless-bench-") as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        release = prepare(work, options.rows, options.shards, options.resident_share)
        store = str(work / f"store-{options.shards}-{options.resident_share}")
        with fleet() as running:
            result = measure(running, work, store, release, options)
        if not options.no_kernels:
            queries = list(QueryFile(work / "model" / "queries.safetensors"))
            result["bucketize_ms"] = bucketize_ms(store, release, queries)
            result["gather_ratio"] = gather_ratios(work, queries)
    if options.output == "json":
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:24} {json.dumps(value)}")


if __name__ == "__main__":
    main()
