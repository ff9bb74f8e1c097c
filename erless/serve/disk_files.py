"""A shard of the disk tier, from a store to this machine's disk: its rows are left there.

    with open_disk_shard(source, shard_digest, DiskOptions()) as opened:
        opened.shard.pool(values, lengths)

Its files are verified as those of any shard. What was read for that is not kept in the page cache.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field

from erless.dlrm.disk import DEPTH, MOST_WAITING, DiskShard, DiskSlice, Engine
from erless.serve.files import (
    MappedFile,
    Opened,
    Source,
    mapped_files,
    slice_index,
    slice_table,
)
from erless.specs.release import ShardManifest
from erless.specs.stored import load_shard
from erless.storage.atomic import os_errors
from erless.storage.store import Counter
from erless.storage.tensors import TensorFile

__all__ = ["DiskOptions", "OpenDiskShard", "open_disk_shard"]


@dataclass(frozen=True, slots=True)
class DiskOptions:
    """How a function reads its disk. `workers` share the memory of its cache."""

    engine: Engine = "auto"
    depth: int = DEPTH
    most_waiting: int = MOST_WAITING
    workers: int = 1


@dataclass(frozen=True)
class OpenDiskShard(Opened):
    """One shard of the disk tier, ready to answer."""

    manifest: ShardManifest
    shard: DiskShard
    mapped: tuple[MappedFile, ...]
    _leases: ExitStack = field(repr=False)


def open_disk_shard(
    source: Source, digest: str, options: DiskOptions, counter: Counter | None = None
) -> OpenDiskShard:
    """Open a shard of the disk tier, whose rows stay in its files.

    Args:
        source: where it is.
        digest: of its `ShardManifest`, which says how much memory its cache may take.
        options: how its disk is read.
        counter: called with the bytes verified or fetched.

    Raises:
        ArtifactError, StoreError, StorageError: as `open_shard`.
        DiskReadError: the disk cannot be read in the way that is asked for.
    """
    store = source.open()
    name = f"shard {digest[:12]}"
    with ExitStack() as leases:
        manifest = load_shard(store, digest)
        lease = leases.enter_context(source.obtain(store, digest, manifest.files(), counter))
        slices = []
        for part in manifest.slices:
            file = TensorFile(lease.folder / part.file.path)
            # nothing is mapped: a file that is cut short must not end the process (SIGBUS)
            index, checksums = slice_index(part, file, copied=True), file.read("checksums")
            _forget_pages(file)  # verifying read all of it
            slices.append(
                DiskSlice(
                    slice_table(part),
                    manifest.precision_of(part),
                    file.path,
                    file.info("rows").begin,
                    index,
                    checksums,
                )
            )
        shard = DiskShard(
            slices,
            cache_bytes=(manifest.cache_bytes or 0) // options.workers,
            engine=options.engine,
            depth=options.depth,
            most_waiting=options.most_waiting,
            name=name,
        )
        mapped = mapped_files(lease, manifest.files())
        return OpenDiskShard(manifest, shard, mapped, leases.pop_all())


def _forget_pages(file: TensorFile) -> None:
    """Let the kernel take back the page cache of the file."""
    with os_errors(file.path, "read"), file.path.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
