"""One table, read once, becomes the slices of all shards that hold rows of it.

A large table is cut in ranges of rows that different processes read (`erless.pack.pieces`): the
same rows become the same bytes either way. What depends on the order of additions, the mean of a
slice, is added up by windows of rows, and these in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from erless.dlrm import _kernels
from erless.dlrm.disk import BLOCK_BYTES, BlockChecksums
from erless.dlrm.quantize import decode, encode, stored_dtype, stored_width
from erless.dlrm.rows import INDEX_ROWS, INDEX_WORDS, index_blocks
from erless.errors import ArtifactError
from erless.pack.inputs import PackInputs, PackSlice
from erless.pack.ranks import Window
from erless.pack.stream import CHUNK_BYTES, Pipeline, StreamWriter
from erless.progress import Progress, Step
from erless.specs.artifact import FileEntry
from erless.specs.plan import Precision
from erless.storage.atomic import os_errors
from erless.storage.tensors import ALIGNMENT_BYTES

__all__ = [
    "PackedSlice",
    "SliceFile",
    "SliceRows",
    "WindowSum",
    "chunk_rows",
    "pack_table",
    "split",
]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

INDEX_CHUNK_BYTES = 4 << 20


class PackedSlice:
    """A slice that was made: its staged file, what it holds, and what was measured on the way.

    Args:
        slice: what it is.
        path: the staged file.
        file: its name in a store, size and sha256.
        default: (dim,) float32, the mean of its rows, each weighted by its accesses + 1.
        error: largest |stored - fp32| over all elements.
    """

    def __init__(
        self, slice_: PackSlice, path: Path, file: FileEntry, default: Floats, error: float
    ) -> None:
        self.slice, self.path, self.file = slice_, path, file
        self.default, self.error = default, error


def chunk_rows(row_bytes: int) -> int:
    """Rows that are read at once."""
    return max(64, CHUNK_BYTES // row_bytes)


def pack_table(
    inputs: PackInputs,
    slices: Sequence[PackSlice],
    windows: Iterator[Window],
    stage: Path,
    progress: Progress,
    done: Callable[[PackedSlice], None],
) -> None:
    """Read the table of `slices` once and write each of them to `stage`.

    Memory: a few chunks, and a window of routing, whatever the table's size.

    Args:
        inputs: what is packed.
        slices: of one table.
        windows: of the table's rows.
        stage: folder for the files.
        progress: counts the table's bytes.
        done: called with each slice when its file is complete.

    Raises:
        ArtifactError: the table or its counts are damaged.
        ModelError: a row that its precision cannot hold.
        StorageError: the disk refused.
    """
    table, number = slices[0].table, slices[0].table_number
    with (
        inputs.source(number, chunk_rows(table.row_bytes)) as source,
        ExitStack() as files,
        Pipeline() as pipeline,
        progress.step(f"pack {table.name}", table.table_bytes, "bytes") as step,
    ):
        outputs = [files.enter_context(_WholeSlice(part, stage, pipeline)) for part in slices]
        split(source.chunks(range(table.rows)), windows, outputs, step)
        for output in outputs:
            done(output.finish())


class WindowSum(NamedTuple):
    """Of a slice's rows in one window: the sum of their weights, and of weight × row (dim,)."""

    weight: float
    rows: Doubles


class SliceRows:
    """Picks a slice's rows out of chunks, stores them at its precision, measures the error.

    `sums` is what the slice's mean is made of, one for each window begun. `error` is the largest
    |stored - fp32| so far.
    """

    def __init__(self, slice_: PackSlice) -> None:
        self.slice = slice_
        self.error = 0.0
        self.sums: list[WindowSum] = []

    def begin(self) -> None:
        """The rows that come now are of the next window."""
        self.sums.append(WindowSum(0.0, np.zeros(self.slice.table.dim)))

    def pick(self, chunk: Floats, routes: NDArray[np.uint8], counts: Floats) -> NDArray[Any] | None:
        """The rows of `chunk` that belong to the slice, as they are stored; None where none do."""
        stored_rows = np.count_nonzero(routes == self.slice.shard)
        if not stored_rows:
            return None
        whole = stored_rows == len(chunk)
        rows = chunk if whole else np.empty((stored_rows, chunk.shape[1]), np.float32)
        before = self.sums[-1]
        _, weight = _kernels.pick_rows(
            chunk, routes, counts, None if whole else rows, before.rows, self.slice.shard
        )
        self.sums[-1] = before._replace(weight=before.weight + weight)
        stored = encode(rows, self.slice.precision)
        if self.slice.precision is not Precision.FP32:
            values = decode(stored, self.slice.precision, rows.shape[1])
            values -= rows
            self.error = max(self.error, float(np.abs(values, out=values).max()))
        return stored


class SliceFile:
    """The file of a slice while it is written: its rows, then an index, which waits in a file."""

    def __init__(self, slice_: PackSlice, stage: Path, pipeline: Pipeline) -> None:
        self.slice = slice_
        table = slice_.table
        shape = (slice_.rows, stored_width(slice_.precision, table.dim))
        tensors: dict[str, tuple[Any, tuple[int, ...]]] = {
            "rows": (stored_dtype(slice_.precision), shape)
        }
        self._index: Any = None
        if slice_.rows < table.rows:
            tensors["index"] = (np.uint64, (-(-table.rows // INDEX_ROWS), INDEX_WORDS))
            self._index_path = stage / f"{slice_.key}.index"
            with os_errors(self._index_path):
                self._index = self._index_path.open("w+b")
        self._checksums = BlockChecksums() if slice_.on_disk else None
        if slice_.on_disk:
            row_data = slice_.rows * slice_.precision.row_bytes(table.dim)
            tensors["checksums"] = (np.uint32, (-(-row_data // BLOCK_BYTES),))
        self._path = stage / f"{slice_.key}.safetensors"
        alignment = BLOCK_BYTES if slice_.on_disk else ALIGNMENT_BYTES
        self._writer = StreamWriter(self._path, tensors, pipeline, alignment_bytes=alignment)
        self._indexed = 0  # stored rows in the windows so far
        self._rows = 0

    def index(self, window: Window) -> None:
        """Append the window's part of the row index."""
        if self._index is None:
            return
        places = np.flatnonzero(window.routes == self.slice.shard)
        blocks = index_blocks(len(window.routes), places, self._indexed)
        self._indexed += len(places)
        with os_errors(self._index_path):
            self._index.write(blocks.data)

    def write(self, stored: NDArray[Any]) -> None:
        """Append rows as they are stored, (n, width)."""
        self._writer.write("rows", stored)
        if self._checksums is not None:
            self._checksums.add(stored)
        self._rows += len(stored)

    def finish(self, sums: Sequence[WindowSum], error: float) -> PackedSlice:
        """Put the index behind the rows, make the file durable, and say what it became.

        Args:
            sums: of all windows of the table, in their order.
            error: of all rows.
        """
        if self._rows != self.slice.rows:
            raise ArtifactError(
                f"table {self.slice.table.name}: {self._rows:,} rows for shard "
                f"{self.slice.shard}, expected {self.slice.rows:,}"
            )
        if self._index is not None:
            with os_errors(self._index_path):
                self._index.seek(0)
                while data := self._index.read(INDEX_CHUNK_BYTES):
                    self._writer.write("index", np.frombuffer(data, np.uint64))
            self._index.close()
            self._index_path.unlink()
        if self._checksums is not None:
            self._writer.write("checksums", self._checksums.finish())
        size, sha256 = self._writer.close()
        file = FileEntry(path=f"blobs/{sha256}.safetensors", size_bytes=size, sha256=sha256)
        weight, weighted = 0.0, np.zeros(self.slice.table.dim)
        for window in sums:
            weight += window.weight
            weighted += window.rows
        default = (weighted / weight).astype(np.float32)
        return PackedSlice(self.slice, self._path, file, default, error)

    def close(self) -> None:
        """Close what is open; an unfinished file is of no use."""
        self._writer.__exit__(None, None, None)
        if self._index is not None:
            with suppress(OSError):  # what it still holds back is of no use any more
                self._index.close()


class SliceOutput(Protocol):
    """What takes the rows of one slice, window by window."""

    def begin(self, window: Window) -> None:
        """The rows that come now are of `window`."""

    def take(self, chunk: Floats, routes: NDArray[np.uint8], counts: Floats) -> None:
        """Append the rows of `chunk` that belong to the slice."""


class _WholeSlice:
    """A slice that is written in one reading of its table."""

    def __init__(self, slice_: PackSlice, stage: Path, pipeline: Pipeline) -> None:
        self._rows = SliceRows(slice_)
        self._file = SliceFile(slice_, stage, pipeline)

    def begin(self, window: Window) -> None:
        self._file.index(window)
        self._rows.begin()

    def take(self, chunk: Floats, routes: NDArray[np.uint8], counts: Floats) -> None:
        stored = self._rows.pick(chunk, routes, counts)
        if stored is not None:
            self._file.write(stored)

    def finish(self) -> PackedSlice:
        return self._file.finish(self._rows.sums, self._rows.error)

    def __enter__(self) -> _WholeSlice:
        return self

    def __exit__(self, *details: object) -> None:
        self._file.close()


def split(
    chunks: Iterator[Floats],
    windows: Iterator[Window],
    outputs: Sequence[SliceOutput],
    step: Step,
) -> None:
    """Send each chunk's rows to the slices they belong to.

    Args:
        chunks: of rows, which begin where the first window does.
        windows: of the same rows.
        outputs: of the slices.
        step: counts the chunks' bytes.
    """

    def following() -> Window:
        window = next(windows)
        for output in outputs:
            output.begin(window)
        return window

    pending = following()
    begin = pending.begin
    for chunk in chunks:
        done = 0
        while done < len(chunk):
            if begin == pending.begin + len(pending.routes):
                pending = following()
            inside = begin - pending.begin
            size = min(len(chunk) - done, len(pending.routes) - inside)
            rows = chunk[done : done + size]
            part = slice(inside, inside + size)
            for output in outputs:
                output.take(rows, pending.routes[part], pending.counts[part])
            done, begin = done + size, begin + size
        step.advance(chunk.nbytes)
    for _ in windows:  # the last step of the iterator checks the profile's counts
        raise AssertionError("windows go beyond the rows")
