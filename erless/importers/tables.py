"""Named tables (`.npy`, safetensors) and an exported tower: any architecture at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.errors import CheckpointError
from erless.importers.bundle import new_bundle, row_chunks
from erless.importers.confined.tower import try_tower
from erless.importers.poolings import Poolings
from erless.importers.specs import make_model, table_spec
from erless.progress import Progress
from erless.specs.bundle import BundleManifest
from erless.specs.model import ExportedTower
from erless.storage.atomic import os_errors
from erless.storage.tensors import TensorFile

__all__ = ["import_tables"]


@dataclass(frozen=True, slots=True)
class _Source:
    """A table that lies mapped on disk; `rows` yields float32 chunks."""

    name: str
    shape: tuple[int, ...]
    rows: Callable[[], Iterator[NDArray[np.float32]]]


def import_tables(
    sources: Sequence[str],
    tower: Path,
    dense_features: int,
    target: Path,
    *,
    poolings: Poolings | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BundleManifest:
    """Import tables and a `torch.export` archive of the tower.

    Args:
        sources: each a folder, `PATH` or `NAME=PATH`; PATH is a `.npy` file (rows, dim) or a
            safetensors file, whose two-dimensional tensors are the tables. Their order here is
            the order of the tower's `pooled` and of queries.
        tower: an archive with inputs `dense (B,F)` and `pooled (B,T,D)`.
        dense_features: F.

    Raises:
        CheckpointError: a file is no table, or the archive brings code along.
        ModelError: the tower does not take these tables.
    """
    found = [table for source in sources for table in _open(source)]
    if not found:
        raise CheckpointError("no tables given")
    poolings = poolings or Poolings()
    poolings.check([table.name for table in found])
    tables = [table_spec(each.name, each.shape, poolings.of(each.name)) for each in found]
    tried = try_tower(tower, make_model(dense_features, tables, ExportedTower()))
    batch = ExportedTower(batch_min=tried.batch_min, batch_max=tried.batch_max)
    model = make_model(dense_features, tables, batch)
    with new_bundle(target, model, overwrite=overwrite, progress=progress) as bundle:
        for table, source in zip(model.tables, found, strict=True):
            bundle.add_table(table, source.rows())
        bundle.add_exported_tower(tower.read_bytes())
        return bundle.finish()


def _open(source: str) -> list[_Source]:
    """The tables behind one argument."""
    name, equals, rest = source.partition("=")
    path = Path(rest if equals else source)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in (".npy", ".safetensors"))
        if not files:
            raise CheckpointError(f"{path} holds no .npy or .safetensors file")
        return [table for file in files for table in _open(str(file))]
    if path.suffix == ".npy":
        return [_open_npy(path, name if equals else path.stem)]
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: tables are read from .npy and .safetensors files")
    file = TensorFile(path)
    if len(file.tensors) == 1:
        tensor = next(iter(file.tensors))
        return [_open_tensor(file, tensor, name if equals else path.stem)]
    if equals:
        raise CheckpointError(f"{path} holds {len(file.tensors)} tensors: give it without NAME=")
    return [_open_tensor(file, tensor, tensor) for tensor in file.tensors]


def _open_npy(path: Path, name: str) -> _Source:
    try:
        with os_errors(path, "read"):
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise CheckpointError(f"{path}: truncated or not a .npy array: {error}") from error
    _check_floats(path, array.dtype)
    return _Source(name, array.shape, lambda: _chunks(array))


def _open_tensor(file: TensorFile, tensor: str, name: str) -> _Source:
    info = file.info(tensor)
    if info.dtype_name == "BF16":  # the upper half of a float32's bits
        bits = file.map(tensor)
        return _Source(
            name,
            info.shape,
            lambda: (
                (chunk.astype(np.uint32) << 16).view(np.float32)
                for chunk in row_chunks(bits, bits.strides[0])
            ),
        )
    _check_floats(file.path, info.dtype)
    return _Source(name, info.shape, lambda: _chunks(file.map(tensor)))


def _check_floats(path: Path, dtype: np.dtype[Any]) -> None:
    if dtype.kind != "f":
        raise CheckpointError(f"{path} holds {dtype}, not floats")


def _chunks(array: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    return (chunk.astype(np.float32) for chunk in row_chunks(array, array.strides[0]))
