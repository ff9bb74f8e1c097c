"""Named tables (`.npy`, safetensors) and an exported tower: any architecture at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.errors import CheckpointError
from erless.importers.bundle import row_chunks
from erless.importers.checkpoint import float_rows, open_checkpoint
from erless.importers.confined.tower import try_tower
from erless.importers.options import ImportOptions, order_tables
from erless.importers.samples import checked_bundle
from erless.importers.specs import make_model, table_spec
from erless.specs.bundle import BundleManifest
from erless.specs.model import ExportedTower
from erless.storage.atomic import os_errors
from erless.storage.tensors import TensorFile

__all__ = ["import_tables"]

_NOT_READ = {".npz", ".pt", ".pth", ".bin", ".ckpt", ".csv", ".parquet", ".gz", ".h5"}


@dataclass(frozen=True, slots=True)
class _Table:
    """A table, mapped from a file; `rows` yields float32 chunks (n, dim)."""

    name: str
    shape: tuple[int, ...]
    rows: Callable[[], Iterator[NDArray[np.float32]]]


def import_tables(
    sources: Sequence[str],
    tower: Path,
    dense_features: int,
    target: Path,
    options: ImportOptions | None = None,
) -> BundleManifest:
    """Import tables and a `torch.export` archive of the tower.

    Args:
        sources: each a folder, `PATH` or `NAME=PATH`; PATH is a `.npy` file (rows, dim) or a
            safetensors file, whose two-dimensional tensors are the tables; one in a bucket
            (`s3://bucket/key`) is read by ranges. Their order here is
            the order of the tower's `pooled` and of queries; a folder and a file of several
            tensors have none, so the options must say it.
        tower: an archive with inputs `dense (B,F)` and `pooled (B,T,D)`.
        dense_features: F.

    Raises:
        CheckpointError: a file is no table, or the bundle does not predict the given samples as
            the original did.
        ArtifactError: the archive is none, or holds what is not on erless' lists.
        ModelError: the tower does not take these tables.
        OptionError: the order or the pooling of tables is not given.
    """
    options = options or ImportOptions()
    opened = [_open(source, options.endpoint_url) for source in sources]
    by_name = {table.name: table for group in opened for table in group}
    if not by_name:
        raise CheckpointError("no tables given")
    names = [table.name for group in opened for table in group]
    ordered = all(len(group) == 1 for group in opened)
    tables = [by_name[name] for name in order_tables(names, options.tables, ordered, sources[0])]
    options.poolings.check(names)
    specs = [
        table_spec(table.name, table.shape, options.poolings.of(table.name)) for table in tables
    ]
    tried = try_tower(tower, make_model(dense_features, specs, ExportedTower()))
    batch = ExportedTower(batch_min=tried.batch_min, batch_max=tried.batch_max)
    model = make_model(dense_features, specs, batch)
    with checked_bundle(target, model, options) as bundle:
        for table, source in zip(model.tables, tables, strict=True):
            bundle.add_table(table, source.rows())
        bundle.add_exported_tower(tower.read_bytes())
        return bundle.finish()


def _open(source: str, endpoint_url: str | None = None) -> list[_Table]:
    """The tables of one source; a file's content decides what it is."""
    name, equals, value = source.partition("=")
    location = value if equals else source
    if location.startswith("s3://"):
        return _open_in_bucket(location, name if equals else None, endpoint_url)
    path = Path(location)
    if path.is_dir():
        return _open_folder(path)
    with os_errors(path, "read"), path.open("rb") as stream:
        head = stream.read(9)
    if head.startswith(b"\x93NUMPY") or path.suffix == ".npy":
        return [_open_npy(path, name if equals else path.stem)]
    if head[8:] != b"{" and path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: tables are read from .npy and .safetensors files")
    file = TensorFile(path)
    if len(file.tensors) == 1:
        tensor = next(iter(file.tensors))
        return [_open_tensor(file, tensor, name if equals else path.stem)]
    if equals:
        raise CheckpointError(f"{path} holds {len(file.tensors)} tensors: give it without NAME=")
    return [_open_tensor(file, tensor, tensor) for tensor in file.tensors]


def _open_in_bucket(url: str, name: str | None, endpoint_url: str | None) -> list[_Table]:
    """The tables of a safetensors file in a bucket."""
    if not url.endswith(".safetensors"):
        raise CheckpointError(f"{url}: tables are read from .safetensors files in a bucket")
    tensors = open_checkpoint(url, endpoint_url).tensors
    if name is not None and len(tensors) > 1:
        raise CheckpointError(f"{url} holds {len(tensors)} tensors: give it without NAME=")
    alone = (name or Path(url).stem) if len(tensors) == 1 else None
    return [
        _Table(alone or tensor, tuple(rows.shape), partial(float_rows, tensor, rows))
        for tensor, rows in tensors.items()
    ]


def _open_folder(path: Path) -> list[_Table]:
    """The tables of the files in a folder; one that may hold tables and is not read is refused."""
    files = sorted(file for file in path.iterdir() if file.suffix in (".npy", ".safetensors"))
    if not files:
        raise CheckpointError(f"{path} holds no .npy or .safetensors file")
    other = next((file for file in sorted(path.iterdir()) if file.suffix in _NOT_READ), None)
    if other is not None:
        raise CheckpointError(f"{other} may hold a table, which only .npy and .safetensors do here")
    return [table for file in files for table in _open(str(file))]


def _open_npy(path: Path, name: str) -> _Table:
    try:
        with os_errors(path, "read"):
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OverflowError, SyntaxError, RecursionError) as error:
        raise CheckpointError(f"{path}: truncated or not a .npy array: {error}") from error
    _check_floats(path, array.dtype)
    return _Table(name, array.shape, lambda: _chunks(array))


def _open_tensor(file: TensorFile, tensor: str, name: str) -> _Table:
    info = file.info(tensor)
    if info.dtype_name == "BF16":  # the upper half of a float32's bits
        bits = file.map(tensor)
        return _Table(
            name,
            info.shape,
            lambda: (
                (chunk.astype(np.uint32) << 16).view(np.float32)
                for chunk in row_chunks(bits, bits.strides[0])
            ),
        )
    _check_floats(file.path, info.dtype)
    return _Table(name, info.shape, lambda: _chunks(file.map(tensor)))


def _check_floats(path: Path, dtype: np.dtype[Any]) -> None:
    if dtype.kind != "f":
        raise CheckpointError(f"{path} holds {dtype}, not floats")


def _chunks(array: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    return (chunk.astype(np.float32) for chunk in row_chunks(array, array.strides[0]))
