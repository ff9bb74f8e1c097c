"""The local target's numbers, each part in one run:

    python -m benchmarks.local cold --rows 4000000       # from zero to the first exact answer
    python -m benchmarks.local supervisor                # idle, with 20 functions
    python -m benchmarks.local memory --rows 2000000     # against model-wise replicas of RM1

cold: a function of one table at zero, its files out of the page cache; a query through the gateway,
compared with the monolith's answer. Allowed: 0.5 s + bytes ÷ (0.8 × the disk's bandwidth, measured
in turns on the same files, also out of the cache).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from erless.deploy.desired_release import load_desired
from erless.deploy.local.supervisor.replica.memory import pss_bytes
from erless.deploy.local.supervisor.spec import Timing
from erless.deploy.local.target import LocalTarget
from erless.deploy.target import FunctionState
from erless.dlrm.queries import QueryFile
from erless.dlrm.reference import Monolith
from erless.dlrm.workload import WORKLOADS
from erless.importers.synthetic import ACCESS_LOG, QUERIES, make_example
from erless.pack.inputs import PackInputs
from erless.pack.packer import Packer
from erless.profile.access import profile_access
from erless.profile.formats import LogSource
from erless.progress import Silent
from erless.serve.protocol.client import QueryClient
from erless.specs.bundle import BundleManifest
from erless.specs.config import Config, LocalConfig, TargetsConfig
from erless.specs.plan import Plan, RankRange, Scaling, ShardPlan, Tier
from erless.specs.profile import MANIFEST, Profile
from erless.storage.stores import open_store

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
WAIT_S = 600.0
BLOCK = 4 << 20


@contextmanager
def deployed(
    work: Path, rows: int, shards: int, scaling: Scaling, timing: Timing
) -> Iterator[tuple[LocalTarget, str]]:
    """One table of RM1 in `shards` functions of equal size, on this machine."""
    bundle, profile, store = work / "model", work / "profile", work / "store"
    workload = dataclasses.replace(WORKLOADS["rm1"], rows=rows, tables=1)
    make_example(workload, bundle, queries=8, log_samples=512)
    profile_access(bundle, [LogSource.parse(str(bundle / ACCESS_LOG))], profile)
    manifest = BundleManifest.open(bundle)
    table = manifest.model.tables[0].name
    cuts = np.linspace(0, rows, shards + 1).astype(int).tolist()
    plan = Plan.create(
        model_digest=manifest.digest,
        profile_digest=Profile.load(profile / MANIFEST).digest,
        policy="joint",
        shards=tuple(
            ShardPlan(
                name=f"cold-{number}",
                tier=Tier.COLD,
                scaling=scaling,
                slices=(RankRange(table=table, start=cuts[number], stop=cuts[number + 1]),),
            )
            for number in range(shards)
        ),
    )
    plan.save(work / "plan.json")
    opened = open_store(str(store), create=True)
    release = Packer(PackInputs(bundle, profile, work / "plan.json"), opened).pack().release
    assert release is not None
    options = LocalConfig(state=work / "state")
    target = LocalTarget(Config(targets=TargetsConfig(local=options)), timing)
    try:
        desired = load_desired(str(store), release.digest, None)
        yield target, target.deploy(desired, Silent(), WAIT_S).url
    finally:
        target.destroy(Silent(), WAIT_S)


def evict(files: list[Path]) -> None:
    """Out of the page cache."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_s(files: list[Path]) -> float:
    """Seconds to read `files` from the disk, past the page cache, in order."""
    begin = time.perf_counter()
    with mmap.mmap(-1, BLOCK) as block:
        for file in files:
            descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
            offset = 0
            while count := os.preadv(descriptor, [block], offset):
                offset += count
                if count % 4096:  # the end of the file
                    break
            os.close(descriptor)
    return time.perf_counter() - begin


def cold(rows: int, rounds: int) -> dict[str, Any]:
    """From zero, out of the page cache, to the first exact answer."""
    scaling = Scaling(min_scale=0, initial_scale=0, window_s=1.0, grace_s=0.1)
    results: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="erless-local-") as folder:
        work = Path(folder)
        with deployed(work, rows, 1, scaling, Timing(poll_s=0.1)) as (target, url):
            blobs = sorted((work / "store" / "blobs").iterdir(), key=lambda p: -p.stat().st_size)
            files = blobs[:1]  # the table's rows and their index
            size = files[0].stat().st_size
            query = QueryFile(work / "model" / QUERIES)[0]
            expected = Monolith.load(work / "model", mapped=True, verify=False).predict(query)
            for _ in range(rounds):
                until_at_zero(target)
                evict(files)
                bandwidth = size / read_s(files)
                evict(files)
                with QueryClient(url) as client:
                    answer = client.predict(query)
                error = np.abs(answer.predictions - expected) / np.abs(expected)
                assert answer.cold_start
                assert error.max() <= 1e-5, error.max()
                allowed = 0.5 + size / (0.8 * bandwidth)
                results.append(
                    {
                        "cold_s": answer.took_s,
                        "allowed_s": allowed,
                        "bandwidth": bandwidth,
                        "ratio": answer.took_s / allowed,
                    }
                )
    return {
        "bytes": size,
        "rounds": results,
        **{name: spread([row[name] for row in results]) for name in results[0]},
    }


def until_at_zero(target: LocalTarget) -> None:
    """Wait until the shard is."""
    deadline = time.monotonic() + WAIT_S
    while not any(
        function.state is FunctionState.AT_ZERO for function in target.status().functions
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def supervisor(functions: int, seconds: float) -> dict[str, Any]:
    """CPU and memory of the supervisor while nothing is asked."""
    with (
        tempfile.TemporaryDirectory(prefix="erless-local-") as folder,
        deployed(Path(folder), 40_000, functions - 1, Scaling(), Timing()) as (target, _),
    ):
        pids = target.processes()["supervisor"]  # its zygote is part of it
        time.sleep(5)
        begin, cpu = time.monotonic(), sum(map(cpu_s, pids))
        time.sleep(seconds)
        share = (sum(map(cpu_s, pids)) - cpu) / (time.monotonic() - begin)
        return {
            "functions": len(target.status().functions),
            "cpu_share_of_a_core": round(share, 5),
            "pss_bytes": sum(map(pss_bytes, pids)),
            "resident_bytes": sum(map(resident_bytes, pids)),
            "seconds": seconds,
        }


def resident_bytes(pid: int) -> int:
    """Of one process, pages that it shares counted whole."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return (
        int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) << 10
    )


def cpu_s(pid: int) -> float:
    """User and system, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def memory(rows: int) -> dict[str, Any]:
    """`erless demo` at size: PSS of all processes against model-wise replicas."""
    with tempfile.TemporaryDirectory(prefix="erless-local-") as folder:
        command = [sys.executable, "-m", "erless", "demo", "--rows", str(rows), "-o", "json"]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {
        "median": round(statistics.median(values), 4),
        "least": round(min(values), 4),
        "most": round(max(values), 4),
    }


def main() -> None:
    """Run one part and print it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("part", choices=["cold", "supervisor", "memory"])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--functions", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    if arguments.part == "cold":
        measured = cold(arguments.rows, arguments.rounds)
    elif arguments.part == "supervisor":
        measured = supervisor(arguments.functions, arguments.seconds)
    else:
        measured = memory(arguments.rows)
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
