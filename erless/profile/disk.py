"""How fast a disk of this machine answers: random reads of blocks, as the disk tier makes them.

A file of random rows is written, and read through the same engine, cache off, that serves it: as
many reads as it takes at full depth for the rate and the CPU of a read, and one at a time for the
latency of a read alone.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from erless.dlrm.disk import DiskShard, DiskSlice, block_checksums
from erless.dlrm.rows import INDEX_WORDS, RowIndex
from erless.errors import StorageError
from erless.profile.throughput import machine
from erless.progress import Progress, Silent
from erless.specs.model import TableSpec
from erless.specs.plan import Precision
from erless.specs.profile import DiskCurve
from erless.storage.atomic import os_errors

__all__ = ["measure_disk"]

DIM = 32
FILE_BYTES, QUICK_FILE_BYTES = 2 << 30, 256 << 20
CHUNK_BYTES = 16 << 20
BATCH_ROWS = 2048  # of one query: eight times the depth
SECONDS, QUICK_SECONDS = 5.0, 1.0
ALONE = 300  # reads one at a time


def measure_disk(
    folder: Path, *, quick: bool = False, progress: Progress | None = None
) -> DiskCurve:
    """Measure the disk that `folder` is on; the file is removed afterwards.

    Raises:
        StorageError: the disk is too full for the file, or refused.
        DiskReadError: it cannot be read.
    """
    size = QUICK_FILE_BYTES if quick else FILE_BYTES
    with os_errors(folder):
        free = os.statvfs(folder)
    if free.f_bavail * free.f_frsize < 2 * size:
        raise StorageError(f"{folder}: {size:,} bytes are needed twice over to measure its disk")
    with os_errors(folder), tempfile.TemporaryDirectory(dir=folder, prefix="erless-disk-") as made:
        shard = _written(Path(made) / "rows", size, progress or Silent())
        rows = shard.tables[0].rows
        seconds = QUICK_SECONDS if quick else SECONDS
        generator = np.random.default_rng(0)
        alone = []
        one = np.array([[1]], np.int32)
        for row in generator.integers(0, rows, ALONE):
            begun = time.perf_counter()
            shard.pool(np.array([row]), one)
            alone.append(time.perf_counter() - begun)
        lengths = np.full((1, 8), BATCH_ROWS // 8, np.int32)
        before, begun, cpu = shard.counts().reads, time.perf_counter(), time.process_time()
        while time.perf_counter() - begun < seconds:
            shard.pool(generator.integers(0, rows, BATCH_ROWS), lengths)
        wall, busy = time.perf_counter() - begun, time.process_time() - cpu
        reads = shard.counts().reads - before
    return DiskCurve(
        reads_per_s=reads / wall,
        read_cpu_s=busy / reads,
        seek_s=float(np.median(alone)),
        engine=shard.engine,
        direct=shard.direct,
        machine=machine(),
    )


def _written(path: Path, size: int, progress: Progress) -> DiskShard:
    """A shard of random rows on the disk."""
    generator = np.random.default_rng(0)
    checksums = []
    with progress.step("write", size, "bytes") as step, path.open("wb", buffering=0) as file:
        for _ in range(size // CHUNK_BYTES):
            data = generator.integers(0, 256, CHUNK_BYTES, np.uint8)
            checksums.append(block_checksums(data))
            file.write(data.data)
            step.advance(CHUNK_BYTES)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    rows = size // (4 * DIM)
    part = DiskSlice(
        TableSpec(name="rows", rows=rows, dim=DIM),
        Precision.FP32,
        path,
        0,
        RowIndex(rows, np.empty((0, INDEX_WORDS), np.uint64)),
        np.concatenate(checksums),
    )
    return DiskShard([part], cache_bytes=0)
