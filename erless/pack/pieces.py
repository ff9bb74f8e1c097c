"""Ranges of a table, each read by a process of its own, become pieces of slices; then slices.

A piece holds the stored rows that one range has of one slice, without a header. Its record in the
store's `keys/` has what the slice needs of it besides: the sums of its windows, its error. Joining
writes the slice's file, byte for byte as one reading of the table would have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.quantize import stored_dtype, stored_width
from erless.errors import ArtifactError
from erless.pack.inputs import PackInputs, PackSlice
from erless.pack.keys import Keys
from erless.pack.ranks import Window
from erless.pack.stream import CHUNK_BYTES, Pipeline, RawWriter
from erless.pack.table import PackedSlice, SliceFile, SliceRows, WindowSum, chunk_rows, split
from erless.progress import Progress
from erless.specs.artifact import FileEntry
from erless.storage.digests import digest_json
from erless.storage.ranged import LocalRanges
from erless.storage.store import Blob, Ignore, Store

__all__ = ["Piece", "cut_range", "join_pieces", "piece_key"]

Floats = NDArray[np.float32]


class Piece(NamedTuple):
    """What a range has of a slice: its staged file, its sums by window, its largest error."""

    slice: PackSlice
    path: Path
    file: FileEntry
    sums: list[WindowSum]
    error: float

    @property
    def record(self) -> dict[str, Any]:
        """What joining needs besides the file, as JSON types, which keep a float64 exactly."""
        sums = [[window.weight, window.rows.tolist()] for window in self.sums]
        return {"error": self.error, "sums": sums}


def piece_key(part: PackSlice, rows: range) -> str:
    """A digest of all that the piece of `part` in `rows` depends on."""
    return digest_json({"what": "piece", "of": part.key, "rows": [rows.start, rows.stop]})


def cut_range(
    inputs: PackInputs,
    slices: Sequence[PackSlice],
    rows: range,
    stage: Path,
    progress: Progress,
    done: Callable[[Piece], None],
) -> None:
    """Read `rows` of the table of `slices` once, and write what each slice has of them.

    Args:
        inputs: what is packed.
        slices: of one table.
        rows: a range that begins and ends with windows.
        stage: folder for the files.
        progress: counts the table's bytes.
        done: called with each piece when its file is complete.

    Raises as `erless.pack.table.pack_table`.
    """
    table, number = slices[0].table, slices[0].table_number
    with (
        inputs.source(number, chunk_rows(table.row_bytes)) as source,
        ExitStack() as files,
        Pipeline() as pipeline,
        progress.step(f"cut {table.name}", len(rows) * table.row_bytes, "bytes") as step,
    ):
        outputs = [files.enter_context(_PieceOutput(part, stage, pipeline)) for part in slices]
        split(source.chunks(rows), inputs.windows(table, stage, rows), outputs, step)
        for output in outputs:
            done(output.finish())


class _PieceOutput:
    """A piece while it is written."""

    def __init__(self, slice_: PackSlice, stage: Path, pipeline: Pipeline) -> None:
        self._rows = SliceRows(slice_)
        self._file = RawWriter(stage / f"{slice_.key}.piece", pipeline)

    def begin(self, window: Window) -> None:
        self._rows.begin()

    def take(self, chunk: Floats, routes: NDArray[np.uint8], counts: Floats) -> None:
        stored = self._rows.pick(chunk, routes, counts)
        if stored is not None:
            self._file.write(stored)

    def finish(self) -> Piece:
        size, sha256 = self._file.close()
        entry = FileEntry(path=f"pieces/{sha256}.rows", size_bytes=size, sha256=sha256)
        return Piece(self._rows.slice, self._file.path, entry, self._rows.sums, self._rows.error)

    def __enter__(self) -> _PieceOutput:
        return self

    def __exit__(self, *details: object) -> None:
        self._file.__exit__(None, None, None)


def join_pieces(
    inputs: PackInputs,
    part: PackSlice,
    keys: Keys,
    pieces: Sequence[str],
    store: Store,
    stage: Path,
    progress: Progress,
) -> PackedSlice:
    """Make one slice of its pieces.

    Args:
        inputs: what is packed.
        part: the slice.
        keys: knows the pieces.
        pieces: their keys, in the order of rows.
        store: where they are.
        stage: folder for the slice's file, and for a piece out of a bucket.
        progress: counts their bytes.

    Raises:
        ArtifactError: a piece is damaged, or they do not make up the slice.
        StorageError: the disk or bucket refused.
    """
    sums: list[WindowSum] = []
    error = 0.0
    total = sum(keys.file(key).size_bytes for key in pieces)
    with (
        Pipeline() as pipeline,
        closing(SliceFile(part, stage, pipeline)) as output,
        progress.step(f"join {part.table.name}", total, "bytes") as step,
    ):
        for window in inputs.windows(part.table, stage):
            output.index(window)
        for key in pieces:
            record = keys[key]
            sums += [WindowSum(weight, np.array(rows)) for weight, rows in record["sums"]]
            error = max(error, record["error"])
            for stored in _stored_rows(part, keys.file(key), store, stage):
                output.write(stored)
                step.advance(stored.nbytes)
        return output.finish(sums, error)


def _stored_rows(
    part: PackSlice, entry: FileEntry, store: Store, stage: Path
) -> Iterator[NDArray[Any]]:
    """The rows of one piece in chunks, compared with its sha256."""
    if not entry.size_bytes:
        return
    blob = Blob(entry.path, entry.size_bytes, entry.sha256)
    path = store.folder / entry.path if store.folder else stage / "piece"
    if store.folder is None:
        store.fetch(blob, path, Ignore())
    dtype, width = stored_dtype(part.precision), stored_width(part.precision, part.table.dim)
    size = max(1, CHUNK_BYTES // (dtype.itemsize * width)) * dtype.itemsize * width
    state = hashlib.sha256()
    with closing(LocalRanges(path)) as file:
        for begin in range(0, entry.size_bytes, size):
            data = np.empty(min(size, entry.size_bytes - begin), np.uint8)
            file.read_into(begin, data.data)
            state.update(data.data)
            yield data.view(dtype).reshape(-1, width)
    if state.hexdigest() != entry.sha256:
        raise ArtifactError(f"{path}: altered: sha256 does not match its record's")
    if store.folder is None:
        path.unlink()
