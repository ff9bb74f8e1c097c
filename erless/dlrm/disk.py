"""Gather-pool over rows that lie on a disk.

A shard of the disk tier keeps in memory the index of its rows, four bytes of checksum for each
block of 4096, and a bounded cache of rows. A query's other rows are read together, whole blocks at
a time, around the page cache (O_DIRECT) where the file system can, and pooled by the kernels that
pool rows in memory: the answers are the same to the bit.

    shard = DiskShard(slices, cache_bytes=64 << 20)
    shard.pool(values, lengths)            # waits for the disk
    answer = shard.begin(call)             # does not: an array, or what finishes later

Reads go through io_uring where the kernel has it and lets us, else through threads that call
pread; `engine` says which, and why.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from erless.dlrm import _kernels
from erless.dlrm.embedding import POOLING_CODES, PRECISION_CODES, check_stored
from erless.dlrm.patches import RowChanges, SlicePatch
from erless.dlrm.pool_call import PoolCall, ShardTables
from erless.dlrm.query_arrays import Floats, Ids, Lengths
from erless.dlrm.rows import RowIndex
from erless.errors import ArtifactError, DiskBusyError, DiskReadError
from erless.specs.model import TableSpec
from erless.specs.plan import Precision

__all__ = [
    "BLOCK_BYTES",
    "DEPTH",
    "MOST_WAITING",
    "BlockChecksums",
    "DiskCounts",
    "DiskLookup",
    "DiskShard",
    "DiskSlice",
    "Engine",
    "block_checksums",
]

BLOCK_BYTES = _kernels.DISK_BLOCK
DEPTH = 256  # reads in flight: local NVMe gives its full rate from 64 to 256 on
MOST_WAITING = 32_768  # reads that wait: half a second of a disk of 60,000 reads/s

Engine = Literal["auto", "io_uring", "pread"]
_ENGINES = {
    "auto": _kernels.ENGINE_AUTO,
    "io_uring": _kernels.ENGINE_URING,
    "pread": _kernels.ENGINE_PREAD,
}
_REFUSALS = {
    0: "",
    errno.ENOSYS: "this kernel has no io_uring, or one before 5.11",
    errno.EPERM: "io_uring is forbidden here (seccomp, or kernel.io_uring_disabled)",
    errno.ENOMEM: "io_uring found no memory that it may lock",
}


def block_checksums(rows: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """The CRC-32C of each block of 4096 bytes of `rows`, the last perhaps shorter.

    >>> [hex(crc) for crc in block_checksums(np.frombuffer(b"123456789", np.uint8)).tolist()]
    ['0xe3069283']
    """
    out = np.empty(-(-rows.nbytes // BLOCK_BYTES), np.uint32)
    _kernels.block_checksums(np.ascontiguousarray(rows).reshape(-1).view(np.uint8), out)
    return out


class BlockChecksums:
    """The block checksums of rows that come in chunks."""

    def __init__(self) -> None:
        self._done: list[NDArray[np.uint32]] = []
        self._rest = np.empty(0, np.uint8)

    def add(self, rows: NDArray[Any]) -> None:
        """Go on with `rows`."""
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        if len(self._rest):
            data = np.concatenate([self._rest, data])
        whole = len(data) - len(data) % BLOCK_BYTES
        self._done.append(block_checksums(data[:whole]))
        self._rest = data[whole:].copy()

    def finish(self) -> NDArray[np.uint32]:
        """One for each block."""
        return np.concatenate([*self._done, block_checksums(self._rest)])


@dataclass(frozen=True)
class DiskSlice:
    """The rows of one table that one shard has on a disk.

    Args:
        table: the whole table's shape and pooling.
        precision: how the rows are stored.
        path: their file.
        begin: where in it they begin, bytes.
        index: row id → position.
        checksums: of each block of the rows, where `begin` is a multiple of a block; else none is
            checked while reading.
    """

    table: TableSpec
    precision: Precision
    path: Path
    begin: int
    index: RowIndex
    checksums: NDArray[np.uint32] | None = None


class DiskCounts(NamedTuple):
    """What a shard has counted so far; `waiting` is now."""

    cached: int
    rows_read: int
    reads: int
    bytes_read: int
    faults: int
    refused: int
    waiting: int


class DiskShard:
    """The slices of one shard, whose rows are read when a query asks for them.

    Args:
        slices: in the order of the shard's lengths.
        cache_bytes: memory for rows that were read, at most.
        engine: how to read; `auto`: io_uring where it works.
        depth: reads in flight.
        most_waiting: reads that may wait; a query beyond them is refused.
        name: for error messages.

    Raises:
        ArtifactError: a file is not there, or shorter than its rows.
        DiskReadError: the engine cannot be had.
    """

    def __init__(
        self,
        slices: Sequence[DiskSlice],
        *,
        cache_bytes: int,
        engine: Engine = "auto",
        depth: int | None = None,
        most_waiting: int = MOST_WAITING,
        name: str = "this shard",
    ) -> None:
        self.name, self._slices = name, tuple(slices)
        self.shape = ShardTables([part.table for part in slices], name)
        self.tables, self.width = self.shape.tables, self.shape.width
        self.has_weights = self.shape.has_weights
        self.row_bytes = max(part.precision.row_bytes(part.table.dim) for part in slices)
        self.cache_bytes = cache_bytes
        files = [_open(part) for part in slices]
        self.direct = all(direct for _, direct in files)
        arguments = [
            _arguments(part, descriptor)
            for part, (descriptor, _) in zip(slices, files, strict=True)
        ]
        most = depth or DEPTH
        try:
            try:
                pooler = _kernels.DiskPooler(
                    tuple(arguments), _ENGINES[engine], most, cache_bytes, most_waiting
                )
            except OSError as error:
                why = _REFUSALS.get(error.errno or 0) or os.strerror(error.errno or 0)
                raise DiskReadError(f"{name}: its disk cannot be read: {why}", "engine") from error
        finally:
            for descriptor, _ in files:
                os.close(descriptor)
        self._pooler = pooler
        self._patches = tuple(SlicePatch.none(part.table.rows) for part in slices)
        self._changes: _kernels.DiskChanges | None = None
        kind, refusal = pooler.engine()
        self.engine = "io_uring" if kind == _kernels.ENGINE_URING else "pread"
        self.refusal = _REFUSALS.get(refusal, os.strerror(refusal))

    def changed(self, changes: Mapping[str, RowChanges]) -> Self:
        """This shard with changed rows, by table, which lie in memory; it reads the same disk.

        Raises:
            ArtifactError: an id is not this shard's, or rows have another shape or dtype.
        """
        self.shape.check_holds(changes)
        patches, tables = list(self._patches), list(self.tables)
        for number, part in enumerate(self._slices):
            given = changes.get(part.table.name)
            if given is None:
                continue
            try:
                check_stored(given, part.precision, part.table.dim)
                patches[number] = patches[number].changed(part.index, given)
            except ArtifactError as error:
                raise ArtifactError(f"table {part.table.name}: {error}") from error
            tables[number] = tables[number].model_copy(update={"rows": given.table_rows})
        other = copy(self)
        other._patches = tuple(patches)
        other.shape = ShardTables(tables, self.name)
        other.tables = other.shape.tables
        other._changes = self._pooler.changed(
            tuple(
                (
                    patch.kernel(part.precision.row_bytes(part.table.dim), part.index.stored),
                    patch.table_rows,
                )
                for patch, part in zip(patches, self._slices, strict=True)
            )
        )
        return other

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """All that lies in memory: what generations changed."""
        return tuple(array for patch in self._patches for array in patch.arrays)

    @property
    def event(self) -> int:
        """A file descriptor that becomes readable when a lookup is done; `clear_event` resets."""
        return self._pooler.event()

    def clear_event(self) -> None:
        """Reset `event`."""
        with suppress(BlockingIOError):
            os.read(self.event, 8)

    def counts(self) -> DiskCounts:
        """What was counted so far."""
        return DiskCounts(*self._pooler.counts())

    def pool(self, values: Ids, lengths: Lengths, weights: Floats | None = None) -> Floats:
        """As `EmbeddingShard.pool`, waiting for the disk.

        Raises:
            QueryError: naming table, sample and value of what does not fit.
            DiskReadError: a row could not be read.
            DiskBusyError: too many reads wait.
        """
        return self._wait(self.shape.dense(values, lengths, weights))

    def pool_packed(
        self,
        values: Ids,
        lengths: Lengths,
        weights: Floats | None = None,
        bags: NDArray[np.int32] | None = None,
    ) -> Floats:
        """As `EmbeddingShard.pool_packed`, waiting for the disk. Errors as `pool`."""
        return self._wait(self.shape.packed(values, lengths, weights, bags))

    def _wait(self, call: PoolCall) -> Floats:
        begun = self.begin(call)
        return begun.finish() if isinstance(begun, DiskLookup) else begun

    def begin(self, call: PoolCall) -> Floats | DiskLookup:
        """Begin with a query: the answer, where the cache has all rows, or what will have it.

        Raises:
            QueryError, DiskBusyError: as `pool`.
        """
        begun = self._pooler.begin(*call.arguments, self._changes)
        if begun is None:
            raise DiskBusyError(f"{self.name}: too many reads wait for the disk already")
        if isinstance(begun, _kernels.DiskQuery):
            return DiskLookup(self, begun, call)
        return self.shape.answer(call, begun)

    def fault(self, kind: int, number: int, at: int, error: int) -> DiskReadError:
        """What the kernels say that could not be read, as an error."""
        part = self._slices[number]
        where = f"table {part.table.name}: {part.path} at byte {at:,}"
        if kind == _kernels.READ_SHORT:
            return DiskReadError(f"{where}: the file was cut short while it was served", "short")
        if kind == _kernels.READ_ALTERED:
            return DiskReadError(
                f"{where}: the rows were changed while they were served", "altered"
            )
        return DiskReadError(f"{where}: cannot read: {os.strerror(error)}", "failed")


class DiskLookup:
    """A query that waits for rows of a disk."""

    __slots__ = ("_call", "_query", "_shard")

    def __init__(self, shard: DiskShard, query: _kernels.DiskQuery, call: PoolCall) -> None:
        self._shard, self._query, self._call = shard, query, call

    def done(self) -> bool:
        """Whether `finish` need not wait."""
        return self._query.done()

    def finish(self) -> Floats:
        """The answer, once; waits for it.

        Raises:
            QueryError: a weight where none is used.
            DiskReadError: a row could not be read, or is not the one that was packed.
        """
        result = self._query.finish()
        if isinstance(result, tuple) and len(result) == 4:
            raise self._shard.fault(*result)
        return self._shard.shape.answer(self._call, result)


class _Opened(NamedTuple):
    descriptor: int
    direct: bool


def _open(part: DiskSlice) -> _Opened:
    """The slice's file, around the page cache where the file system can.

    Raises:
        ArtifactError: it is not there, or too short.
    """
    try:
        try:
            opened = _Opened(os.open(part.path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT), True)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            opened = _Opened(os.open(part.path, os.O_RDONLY | os.O_CLOEXEC), False)
            os.posix_fadvise(opened.descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        size = os.fstat(opened.descriptor).st_size
    except OSError as error:
        raise ArtifactError(f"cannot read {part.path}: {error.strerror}") from error
    needed = part.begin + part.index.stored * part.precision.row_bytes(part.table.dim)
    if size < needed:
        os.close(opened.descriptor)
        raise ArtifactError(f"{part.path}: truncated: {size:,} bytes, its rows end at {needed:,}")
    return opened


def _arguments(part: DiskSlice, descriptor: int) -> tuple[object, ...]:
    return (
        descriptor,
        part.begin,
        part.index.blocks,
        part.checksums if part.begin % BLOCK_BYTES == 0 else None,
        part.index.stored,
        part.table.rows,
        part.table.dim,
        PRECISION_CODES[part.precision],
        POOLING_CODES[part.table.pooling],
    )
