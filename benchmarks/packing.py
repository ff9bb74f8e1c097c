"""Pack, load, cold start, row index and S3, each beside what the plain tool reaches in this run.

    python -m benchmarks.packing --folder /tmp/packing --gigabytes 4

Needs three times the bytes on the disk of --folder, which is emptied at the end. Every figure is
the median of interleaved rounds; page caches of the files in question are dropped before each
timing, so that the disk takes part. `peak_mb` is the packing process' ru_maxrss.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import numpy as np
from numpy.typing import NDArray

from erless.dlrm.rows import RowIndex
from erless.importers.bundle import new_bundle
from erless.specs.artifact import FileEntry
from erless.specs.bundle import BundleManifest
from erless.specs.model import DlrmTower, ModelSpec, TableSpec
from erless.specs.plan import Plan, Precision, RankRange, ShardPlan, Tier
from erless.specs.profile import MANIFEST, Profile, TableAccess
from erless.specs.stored import find_release
from erless.storage.digests import digest_file
from erless.storage.s3.store import S3Store
from erless.storage.store import Blob, Ignore
from erless.storage.stores import open_store
from erless.storage.tensors import write_tensors

DIM = 32
CHUNK_ROWS = 1 << 18
TIERS = ((Tier.RESIDENT, 0.001), (Tier.HOT, 0.02), (Tier.COLD, 0.3), (Tier.FROZEN, 1.0))
IDS = 40_960  # RM1: batch 32 × pooling 128 × 10 tables

PACK = (
    "import sys; from pathlib import Path\n"
    "from erless.pack.inputs import PackInputs; from erless.pack.packer import Packer\n"
    "from erless.storage.stores import open_store\n"
    "f = Path(sys.argv[1])\n"
    "store = open_store(str(f/'store'), create=True)\n"
    "Packer(PackInputs(f/'model', f/'profile', f/'plan.json'), store).pack()\n"
)
LOAD = (
    "import sys; from pathlib import Path; import numpy as np\n"
    "from erless.serve.files import Source, open_shard\n"
    "cache = Path(sys.argv[3]) if len(sys.argv) > 3 else None\n"
    "shard = open_shard(Source(sys.argv[1], cache=cache), sys.argv[2]).shard\n"
    "ids = shard.slices[0].index.ids(0, 4096)\n"
    "out = shard.pool(ids, np.full((1, 32), 128, np.int32))\n"
    "print(float(out.sum()))\n"
)


def make(folder: Path, rows: int, tables: int = 1) -> None:
    """A bundle with tables of `rows`, a profile that touches a third of them, and a plan."""
    names = ["t"] if tables == 1 else [f"t{number}" for number in range(tables)]
    specs = tuple(TableSpec(name=name, rows=rows, dim=DIM) for name in names)
    model = ModelSpec(
        dense_features=1, tables=specs, tower=DlrmTower(bottom_mlp=(DIM,), top_mlp=(1,))
    )
    generator = np.random.default_rng(0)

    def chunks() -> Any:
        for begin in range(0, rows, CHUNK_ROWS):
            yield generator.standard_normal((min(CHUNK_ROWS, rows - begin), DIM), np.float32)

    with new_bundle(folder / "model", model) as bundle:
        for table in specs:
            bundle.add_table(table, chunks())
        shapes = {"bottom.0": (DIM, 1), "top.0": (1, DIM + tables * (tables + 1) // 2)}
        tower: dict[str, NDArray[np.float32]] = {}
        for name, shape in shapes.items():
            tower[f"{name}.weight"] = np.zeros(shape, np.float32)
            tower[f"{name}.bias"] = np.zeros(shape[0], np.float32)
        bundle.add_tower(tower)
        bundle.finish()
    (folder / "profile" / "counts").mkdir(parents=True)
    accesses = tuple(
        tally(folder / "profile", name, rows, generator.permutation(rows)[: rows // 3])
        for name in names
    )
    own = BundleManifest.open(folder / "model").digest
    profile = Profile.create(model_digest=own, sources=("benchmark",), tables=accesses)
    profile.save(folder / "profile" / MANIFEST)
    shards, start = [], 0
    for tier, to in TIERS:
        stop = round(to * rows)
        slices = tuple(RankRange(table=name, start=start, stop=stop) for name in names)
        shards.append(
            ShardPlan(name=tier.value, tier=tier, slices=slices, precision=Precision.FP32)
        )
        start = stop
    Plan.create(
        model_digest=own, profile_digest=profile.digest, policy="joint", shards=tuple(shards)
    ).save(folder / "plan.json")


def tally(profile: Path, table: str, rows: int, ids: NDArray[np.int64]) -> TableAccess:
    """Write a table's counts of the rows `ids`, hottest first."""
    counts = np.maximum(1, 1e7 / np.arange(1, len(ids) + 1)).astype(np.int64)
    path = f"counts/{table}.safetensors"
    digest = write_tensors(profile / path, {"ids": ids, "counts": counts})
    return TableAccess(
        table=table,
        rows=rows,
        samples=1000,
        accesses=int(counts.sum()),
        touched=len(ids),
        counts=FileEntry(path=path, **digest._asdict()),
    )


def drop(*paths: Path) -> None:
    """Forget the files' pages, so that the next reading comes from the disk."""
    os.sync()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def child(program: str, *arguments: str) -> tuple[float, float, float]:
    """Run `program`; returns wall seconds, CPU seconds, peak MB."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    if status:
        raise SystemExit(f"a child failed: {status}")
    process.returncode = 0
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def timed(run: Callable[[], object]) -> float:
    """Wall seconds."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def dd(*arguments: str) -> None:
    """The plain sequential copy."""
    subprocess.run(["dd", "bs=8M", "status=none", *arguments], check=True)


def disk(folder: Path, rounds: int) -> dict[str, Any]:
    """Pack and load against dd, and cold starts against their bound."""
    source = folder / "model" / "tables" / "t.safetensors"
    size = source.stat().st_size
    copies, packs, cpus, peaks = [], [], [], []
    for _ in range(rounds):
        drop(source)
        copies.append(timed(lambda: dd(f"if={source}", f"of={folder / 'copy'}", "conv=fsync")))
        drop(source, folder / "profile" / "counts" / "t.safetensors")
        shutil.rmtree(folder / "store", ignore_errors=True)
        wall, cpu, peak = child(PACK, str(folder))
        packs.append(wall)
        cpus.append(cpu)
        peaks.append(peak)
    release = find_release(open_store(str(folder / "store")), "")
    frozen = release.shards[-1]
    blobs = list((folder / "store" / "blobs").iterdir())
    nothing = statistics.median(child("pass")[0] for _ in range(5))
    reads, loads, noted = [], [], []
    for _ in range(rounds):
        drop(source)
        reads.append(timed(lambda: dd(f"if={source}", "of=/dev/null")))
        drop(*blobs)
        loads.append(child(LOAD, str(folder / "store"), frozen.digest)[0])
        cache = str(folder / "cache")
        child(LOAD, str(folder / "store"), frozen.digest, cache)  # makes the note
        drop(*blobs)
        noted.append(child(LOAD, str(folder / "store"), frozen.digest, cache)[0])
    read_rate = size / statistics.median(reads)
    bound = 0.5 + frozen.size_bytes / (0.8 * read_rate)
    copy_rate = size / statistics.median(copies)
    packed = sum(shard.size_bytes for shard in release.shards)
    return {
        "table_gb": round(size / 1e9, 2),
        "copy_mb_s": round(copy_rate / 1e6),
        "pack_mb_s": round(packed / statistics.median(packs) / 1e6),
        "pack_over_copy": round(
            statistics.median(c / p for c, p in zip(copies, packs, strict=True)) * packed / size, 2
        ),
        "pack_over_copy_rounds": [
            round(c / p * packed / size, 2) for c, p in zip(copies, packs, strict=True)
        ],
        "pack_cpu_s_per_gb": round(statistics.median(cpus) / (size / 1e9), 2),
        "pack_peak_mb": round(max(peaks)),
        "read_mb_s": round(read_rate / 1e6),
        "load_mb_s": round(frozen.size_bytes / statistics.median(loads) / 1e6),
        "load_over_copy": round(frozen.size_bytes / statistics.median(loads) / copy_rate, 2),
        "load_over_read": round(frozen.size_bytes / statistics.median(loads) / read_rate, 2),
        "python_start_s": round(nothing, 3),
        "cold_start_gb": round(frozen.size_bytes / 1e9, 2),
        "cold_start_s": round(statistics.median(loads), 2),
        "cold_start_noted_s": round(statistics.median(noted), 2),
        "cold_start_bound_s": round(bound, 2),
        "index_bytes_per_row": round(
            (frozen.size_bytes - frozen.row_bytes) / release.model.tables[0].rows, 4
        ),
        "routing_bytes_per_row": round(
            release.gateway.routing.size_bytes / release.model.tables[0].rows, 4
        ),
    }


def index(rounds: int) -> dict[str, Any]:
    """Row id → local index, 40,960 ids in a table of 20 M rows, CPU of one core."""
    rows = 20_000_000
    generator = np.random.default_rng(0)
    stored = np.flatnonzero(generator.random(rows) < 0.3)
    index = RowIndex.build(rows, stored)
    uniform = generator.choice(stored, IDS)
    skewed = stored[(generator.pareto(0.5, IDS) * 100).astype(np.int64) % len(stored)]
    result = {}
    for name, ids in (("uniform", uniform), ("skewed", skewed)):
        times = []
        for _ in range(50 * rounds):
            begin = time.thread_time()
            index.local(ids)
            times.append(time.thread_time() - begin)
        result[f"index_{name}_ms"] = round(statistics.median(times) * 1e3, 3)
    return result


def bucket(folder: Path, rounds: int, megabytes: int) -> dict[str, Any]:
    """S3 against boto3's own transfer of the same bytes, from a moto server of its own."""
    os.environ.update(dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "made-up"))
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    program = (
        "import time; from moto.server import ThreadedMotoServer\n"
        "server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)\n"
        "server.start(); print(server.get_host_and_port()[1], flush=True); time.sleep(3600)\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        plain = boto3.client("s3", endpoint_url=endpoint)
        plain.create_bucket(Bucket="bench")
        store = S3Store("s3://bench/store", endpoint)
        data = folder / "blob"
        block = np.random.default_rng(0).bytes(1 << 20)
        with data.open("wb") as file:
            for _ in range(megabytes):
                file.write(block)
        size, sha256 = digest_file(data)
        blob = Blob(f"blobs/{sha256}.bin", size, sha256)
        key = f"store/{blob.name}"
        figures: dict[str, list[float]] = {}

        def note(name: str, run: Callable[[], object]) -> None:
            figures.setdefault(name, []).append(timed(run))

        def boto_up() -> None:
            with data.open("rb") as file:
                plain.upload_fileobj(file, "bench", "plain")

        def boto_down() -> None:
            with (folder / "down").open("wb") as file:
                plain.download_fileobj("bench", "plain", file)
                file.flush()
                os.fsync(file.fileno())

        for _ in range(rounds):
            note("boto_up", boto_up)
            staged = folder / "staged"
            os.link(data, staged)
            note("up", partial(store.adopt, staged, blob, Ignore()))
            note("boto_down", boto_down)
            note("down", lambda: store.fetch(blob, folder / "down", Ignore()))
            plain.delete_object(Bucket="bench", Key=key)
            plain.delete_object(Bucket="bench", Key="plain")
    finally:
        server.kill()
        server.wait()
    ratio = {
        way: [b / o for b, o in zip(figures[f"boto_{way}"], figures[way], strict=True)]
        for way in ("up", "down")
    }
    return {
        "s3_mb": megabytes,
        **{
            f"s3_{name}_mb_s": round(size / statistics.median(times) / 1e6)
            for name, times in figures.items()
        },
        **{
            f"s3_{way}_over_boto3": round(statistics.median(value), 2)
            for way, value in ratio.items()
        },
        **{f"s3_{way}_rounds": [round(e, 2) for e in value] for way, value in ratio.items()},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--s3-megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["disk", "index", "s3"])
    parser.add_argument("--output", choices=["text", "json"], default="text")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    result: dict[str, Any] = {"rounds": arguments.rounds, "cores": os.cpu_count()}
    try:
        if arguments.only in (None, "index"):
            result |= index(arguments.rounds)
        if arguments.only in (None, "disk"):
            make(arguments.folder, round(arguments.gigabytes * 1e9 / (4 * DIM)))
            result |= disk(arguments.folder, arguments.rounds)
        if arguments.only in (None, "s3"):
            result |= bucket(arguments.folder, arguments.rounds, arguments.s3_megabytes)
    finally:
        shutil.rmtree(arguments.folder)
    if arguments.output == "json":
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
