"""Write a model bundle: tables stream in chunk by chunk, nothing is visible before all is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.errors import CheckpointError, ModelError
from erless.progress import Progress, Silent
from erless.specs.artifact import FileEntry
from erless.specs.bundle import MANIFEST, TABLE_TENSOR, BundleManifest
from erless.specs.model import DlrmTower, ModelSpec, TableSpec
from erless.storage.atomic import staged_directory
from erless.storage.digests import FileDigest, digest_file
from erless.storage.tensors import TensorWriter, check_room, write_tensors

__all__ = ["CHUNK_BYTES", "BundleWriter", "new_bundle", "row_chunks"]

CHUNK_BYTES = 32 << 20


def row_chunks(array: Any, row_bytes: int) -> Iterator[Any]:
    """Slices of the first axis of `array` (numpy or torch) of about `CHUNK_BYTES` each."""
    step = max(1, CHUNK_BYTES // max(1, row_bytes))
    return (array[begin : begin + step] for begin in range(0, len(array), step))


class BundleWriter:
    """Writes the files of a bundle into `folder`, and then its manifest; `new_bundle` makes one."""

    def __init__(self, folder: Path, model: ModelSpec, progress: Progress | None = None) -> None:
        self.folder, self.model = folder, model
        self._progress = progress or Silent()
        self._files: dict[str, FileEntry] = {}
        (folder / "tables").mkdir()

    def add_table(self, table: TableSpec, chunks: Iterable[NDArray[np.float32]]) -> None:
        """Write the rows of `table`: float32 arrays (n, dim) that add up to its rows.

        Raises:
            ModelError: a chunk's dim or the number of rows does not match.
            CheckpointError: a row holds a value that is not finite.
        """
        path = self.folder / "tables" / f"{table.name}.safetensors"
        written = 0
        declared = {TABLE_TENSOR: (np.dtype("<f4"), (table.rows, table.dim))}
        with (
            TensorWriter(path, declared) as writer,
            self._progress.step(f"table {table.name}", table.table_bytes, "bytes") as step,
        ):
            for chunk in chunks:
                if chunk.ndim != 2 or chunk.shape[1] != table.dim:
                    raise ModelError(
                        f"table {table.name}: rows have shape {chunk.shape[1:]}, dim is {table.dim}"
                    )
                if written + len(chunk) > table.rows:
                    raise ModelError(f"table {table.name}: more than its {table.rows:,} rows")
                _check_finite(table.name, chunk, written)
                writer.write(TABLE_TENSOR, chunk)
                written += len(chunk)
                step.advance(chunk.nbytes)
            if written != table.rows:
                raise ModelError(f"table {table.name}: {written:,} of {table.rows:,} rows")
            self._add(f"tables/{path.name}", writer.close())

    def add_tower(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Write the built-in tower's tensors (names: `erless.dlrm.tower.tower_layers`)."""
        self._add("tower.safetensors", write_tensors(self.folder / "tower.safetensors", tensors))

    def add_exported_tower(self, archive: bytes) -> None:
        """Write the bytes of a `torch.export` archive as the tower."""
        path = self.folder / "tower.pt2"
        path.write_bytes(archive)
        self._add("tower.pt2", digest_file(path))

    def add_archive(self, name: str) -> None:
        """Add an archive that is in the folder already: `tower.pt2`, `front.pt2` and so on."""
        self._add(name, digest_file(self.folder / name))

    def _add(self, name: str, digest: FileDigest) -> None:
        self._files[name] = FileEntry(path=name, size_bytes=digest.size_bytes, sha256=digest.sha256)

    def finish(self) -> BundleManifest:
        """Write `model.json`.

        Raises:
            ModelError: a table or the tower is missing.
        """
        tower = "tower.safetensors" if isinstance(self.model.tower, DlrmTower) else "tower.pt2"
        names = [f"tables/{table.name}.safetensors" for table in self.model.tables]
        for name in (*names, tower):
            if name not in self._files:
                raise ModelError(f"the bundle has no {name}")
        manifest = BundleManifest.create(
            model=self.model,
            tables=tuple(self._files[name] for name in names),
            tower=self._files[tower],
            front=self._files.get("front.pt2"),
            request_front=self._files.get("request_front.pt2"),
        )
        manifest.save(self.folder / MANIFEST)
        return manifest


@contextmanager
def new_bundle(
    target: Path, model: ModelSpec, *, overwrite: bool = False, progress: Progress | None = None
) -> Iterator[BundleWriter]:
    """Yield a writer whose bundle becomes `target` when the block ends without an error.

    Raises:
        ArtifactError: `target` exists and may not be replaced.
        StorageError: the disk refused.
    """
    with staged_directory(target, marker=MANIFEST, overwrite=overwrite) as stage:
        check_room(stage, model.embedding_bytes)
        yield BundleWriter(stage, model, progress)


def _check_finite(table: str, chunk: NDArray[np.float32], first_row: int) -> None:
    finite = np.isfinite(chunk)
    if not finite.all():
        row, column = (int(index) for index in np.argwhere(~finite)[0])
        raise CheckpointError(
            f"table {table}, row {first_row + row}, column {column}: {chunk[row, column]} is not "
            "a finite number"
        )
