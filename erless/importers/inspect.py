"""What is in a foreign checkpoint, and which command would bring it in. Nothing is unpickled."""

from __future__ import annotations

import re
import shlex
import zipfile
from dataclasses import dataclass
from pathlib import Path

from erless.dlrm.archive.container import StoredZip
from erless.errors import ArtifactError, CheckpointError
from erless.importers.checkpoint import open_checkpoint
from erless.storage.atomic import os_errors
from erless.storage.ranged import LazyBytes, open_ranges

__all__ = ["Inspected", "Listed", "inspect_checkpoint"]

EXPORTED = re.compile(r"(.*/)?(models/\w+\.json|serialized_exported_program\.json)")


@dataclass(frozen=True, slots=True)
class Listed:
    """One tensor: `table`: two dimensions, many rows, and a name as embedding tables have."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    table: bool


@dataclass(frozen=True, slots=True)
class Inspected:
    """A checkpoint's tensors in the file's order, what made it, and the command to try."""

    tensors: tuple[Listed, ...]
    made_by: str
    command: str


def inspect_checkpoint(path: Path | str, endpoint_url: str | None = None) -> Inspected:
    """Look into a file of torch.save or safetensors, a distributed checkpoint, or an archive.

    Raises:
        CheckpointError: it is none of them, or damaged.
        StorageError: it cannot be read.
    """
    file = shlex.quote(str(path))
    in_bucket = str(path).startswith("s3://")
    exported = _exported_to(str(path), endpoint_url) if in_bucket else _exported(Path(path))
    if exported:
        return Inspected((), "torch.export.save", f"erless import torch {file} --out model")
    checkpoint = open_checkpoint(path, endpoint_url)
    listed = tuple(
        Listed(
            name,
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            len(tensor.shape) == 2 and "emb" in name.lower() and tensor.shape[0] > tensor.shape[1],
        )
        for name, tensor in checkpoint.tensors.items()
    )
    if not listed:
        raise CheckpointError(f"{path}: holds no tensors")
    names = [tensor.name for tensor in listed]
    if any(re.fullmatch(r"emb_l\.\d+\.weight", name) for name in names):
        return Inspected(listed, "facebookresearch/dlrm", f"erless import dlrm {file} --out model")
    collections = [re.search(r"embedding_bags\.([^.]+)\.weight$", name) for name in names]
    tables = [match[1] for match in collections if match]
    if tables:
        order = "" if checkpoint.ordered else f" --tables {','.join(tables)}"
        command = f"erless import torchrec {file} --pooling sum{order} --out model"
        return Inspected(listed, "torchrec", command)
    command = f'in Python: erless.export(model, example_inputs, "model/", weights={str(path)!r})'
    return Inspected(listed, "a training script", command)


def _exported_to(url: str, endpoint_url: str | None) -> bool:
    """Whether the object is an archive of torch.export.save."""
    try:
        records = StoredZip(LazyBytes(open_ranges(url, endpoint_url)), url).records
    except ArtifactError:  # no file, or no zip: what reads checkpoints says which
        return False
    return any(EXPORTED.fullmatch(name) for name in records)


def _exported(path: Path) -> bool:
    """Whether the file is an archive of torch.export.save."""
    if path.is_dir():
        return False
    with os_errors(path, "read"):
        if not zipfile.is_zipfile(path):
            return False
        try:
            with zipfile.ZipFile(path) as archive:
                return any(EXPORTED.fullmatch(name) for name in archive.namelist())
        except zipfile.BadZipFile:
            return False
