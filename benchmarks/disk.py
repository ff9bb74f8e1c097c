"""The disk tier against fio on the same file, and what it saves in dollars.

python -m benchmarks.disk [--folder FOLDER] [--gigabytes 8] [--seconds 6] [--rounds 3]
python -m benchmarks.disk --dollars

Rows of 128 bytes (32 fp32) fill one file. In turn, fio (randread, io_uring, direct, blocks of
4 KiB, the same depth) and a shard of the disk tier read it at random: reads/s, CPU of a read, and
the time of a query of 400 rows. fio is a package of Debian; without it its part is left out. The
file is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from erless.dlrm.disk import BLOCK_BYTES, DiskLookup, DiskShard, DiskSlice, Engine, block_checksums
from erless.dlrm.rows import INDEX_WORDS, RowIndex
from erless.specs.model import TableSpec
from erless.specs.plan import Precision

DIM = 32
DEPTH = 256
QUERY_ROWS, SAMPLES = 400, 20
CACHE_SHARE = 0.1
CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Reads:
    """What one reader did: reads/s, CPU µs of each, and the times of queries of 400 rows in ms."""

    reader: str
    reads_s: float
    cpu_us: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0


def write_rows(path: Path, gigabytes: float) -> tuple[int, np.ndarray]:
    """Fill `path`; returns how many rows there are, and the checksums of its blocks."""
    generator = np.random.default_rng(0)
    chunks = max(1, round(gigabytes * 1e9 / CHUNK_BYTES))
    checksums = []
    with path.open("wb") as file:
        for _ in range(chunks):
            data = generator.integers(0, 256, CHUNK_BYTES, np.uint8)
            checksums.append(block_checksums(data))
            file.write(data.data)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return chunks * CHUNK_BYTES // (4 * DIM), np.concatenate(checksums)


def run_fio(path: Path, seconds: float) -> Reads | None:
    """fio on the same file; None where it is not installed."""
    fio = shutil.which("fio")
    if fio is None:
        return None
    options = {
        "name": "rows",
        "filename": str(path),
        "rw": "randread",
        "bs": str(BLOCK_BYTES),
        "iodepth": str(DEPTH),
        "ioengine": "io_uring",
        "direct": "1",
        "runtime": f"{seconds:g}",
        "output-format": "json",
    }
    command = [fio, *(f"--{key}={value}" for key, value in options.items())]
    answer = subprocess.check_output(
        [*command, "--time_based", "--readonly", "--thread"], text=True
    )
    job = json.loads(answer)["jobs"][0]
    iops = float(job["read"]["iops"])
    busy = (float(job["usr_cpu"]) + float(job["sys_cpu"])) / 100
    return Reads("fio io_uring", iops, busy / iops * 1e6)


def run_shard(shard: DiskShard, rows: int, seconds: float, in_flight: int, seed: int) -> Reads:
    """Queries of 400 rows, so many at a time."""
    generator = np.random.default_rng(seed)
    lengths = np.full((1, SAMPLES), QUERY_ROWS // SAMPLES, np.int32)
    pending: list[tuple[float, DiskLookup]] = []
    took: list[float] = []
    before = shard.counts()
    begun, cpu = time.perf_counter(), time.process_time()
    while (now := time.perf_counter()) - begun < seconds or pending:
        while len(pending) < in_flight and now - begun < seconds:
            values = generator.integers(0, rows, QUERY_ROWS)
            lookup = shard.begin(shard.shape.dense(values, lengths, None))
            if isinstance(lookup, DiskLookup):
                pending.append((time.perf_counter(), lookup))
        select.select([shard.event], [], [], 1.0)
        shard.clear_event()
        done = [entry for entry in pending if entry[1].done()]
        pending = [entry for entry in pending if entry not in done]
        for at, lookup in done:
            lookup.finish()
            took.append(time.perf_counter() - at)
    wall, busy = time.perf_counter() - begun, time.process_time() - cpu
    after = shard.counts()
    reads = after.reads - before.reads
    p50, p99 = np.percentile(took, [50, 99]) * 1e3
    name = f"{shard.engine}, {in_flight} in flight"
    return Reads(name, reads / wall, busy / reads * 1e6, float(p50), float(p99))


def measure(folder: Path, gigabytes: float, seconds: float, rounds: int) -> list[Reads]:
    """All readers in turn, `rounds` times; each one's median by reads/s."""
    path = folder / "rows"
    found: dict[str, list[Reads]] = {}
    try:
        rows, checksums = write_rows(path, gigabytes)
        index = RowIndex(rows, np.empty((0, INDEX_WORDS), np.uint64))
        table = TableSpec(name="rows", rows=rows, dim=DIM)
        part = DiskSlice(table, Precision.FP32, path, 0, index, checksums)
        cache_bytes = round(CACHE_SHARE * path.stat().st_size)
        engines: tuple[Engine, ...] = ("auto", "pread")
        for turn in range(rounds):
            results = [run_fio(path, seconds)]
            for engine in engines:
                shard = DiskShard([part], cache_bytes=cache_bytes, engine=engine, depth=DEPTH)
                results += [
                    run_shard(shard, rows, seconds, in_flight, turn) for in_flight in (1, 4)
                ]
            for result in results:
                if result is not None:
                    found.setdefault(result.reader, []).append(result)
    finally:
        path.unlink(missing_ok=True)
    return [sorted(runs, key=lambda run: run.reads_s)[len(runs) // 2] for runs in found.values()]


def print_reads(reads: list[Reads]) -> None:
    """The table of docs/disk.md."""
    base = next((each for each in reads if each.reader.startswith("fio")), None)
    print("| reader | reads/s | of fio | CPU µs a read | of fio | query of 400 rows, p50 | p99 |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for each in reads:
        rate = f"{each.reads_s / base.reads_s:.2f}" if base else ""
        cpu = f"{each.cpu_us / base.cpu_us:.2f}" if base else ""
        times = [f"{each.p50_ms:.1f} ms", f"{each.p99_ms:.1f} ms"] if each.p99_ms else ["", ""]
        cells = [each.reader, f"{each.reads_s:,.0f}", rate, f"{each.cpu_us:.2f}", cpu, *times]
        print(f"| {' | '.join(cells)} |")


def print_dollars() -> None:
    """Dollars a month without and with a disk tier, of the cells of docs/disk.md."""
    from benchmarks.economics import ALLOWED, model_of
    from erless.plan.planner import Planner
    from erless.plan.request import PlanRequest
    from erless.specs.planning import ARCHITECTURES

    print("| model, fp32 size, traffic | in memory | with --disk | p95 |")
    print("|---|---:|---:|---:|")
    for name, size_gb, traffic in (("rm1", 260, 0.1), ("rm3", 260, 0.1), ("rm1", 2600, 0.1)):
        model, tables, tower_ms = model_of(name, size_gb, 0.9)
        cells = []
        for disk in (False, True):
            request = PlanRequest(
                traffic=traffic,
                tower_ms=tower_ms or None,
                arch=ARCHITECTURES,
                allowed=ALLOWED,
                sla_p95_ms=100.0,
                disk=disk,
            )
            best = Planner(model, tables, request, coarse=True).outcome().best["joint"]
            cells.append(f"${best.packing.usd_per_month:,.0f}")
        late = f"{best.layout.p95_s * 1e3:.0f} ms"
        print(f"| {name}, {size_gb} GB, {traffic}× | {' | '.join(cells)} | {late} |")


def main() -> None:
    """Measure, or plan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each reader")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--dollars", action="store_true")
    options = parser.parse_args()
    if options.dollars:
        print_dollars()
        return
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="erless-disk-") as folder:
        reads = measure(Path(folder), options.gigabytes, options.seconds, options.rounds)
    print(f"{os.cpu_count()} cores, load {statistics.fmean(os.getloadavg()):.1f}")
    print_reads(reads)
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in reads], indent=2) + "\n")


if __name__ == "__main__":
    main()
