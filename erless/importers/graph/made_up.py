"""A model that an archive holds, and an example that it takes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

from erless.dlrm.archive import Archive, build_module, read_archive
from erless.dlrm.archive.expressions import Constant
from erless.dlrm.archive.operators import LOOKUPS, OPERATORS
from erless.dlrm.archive.signature import TensorValue
from erless.errors import ModelError, first_line
from erless.importers.graph.program import Example

__all__ = ["build", "made_up", "run_model"]

_SIZE = 3  # of the made-up example, wherever sizes may differ


def build(path: Path) -> tuple[Archive, GraphModule]:
    """The archive at `path`, mapped, and its program as a module, which is not run.

    Raises:
        ArtifactError: it is none, or holds what is not on erless' lists.
    """
    archive = read_archive(path, copy_weights=False)
    return archive, build_module(archive, OPERATORS | LOOKUPS)


def made_up(archive: Archive) -> Example:
    """Zeros and ones for whole numbers, normal numbers for others."""
    return Example(tuple(_tensor(value) for value in archive.signature.inputs), {})


def run_model(path: Path) -> tuple[GraphModule, Example]:
    """The model in the archive at `path`, and the example, which it was run on.

    Raises:
        ArtifactError: as `build`.
        ModelError: the model does not take the example.
    """
    archive, module = build(path)
    example = made_up(archive)
    try:
        with torch.inference_mode():
            module(*example.args)
    except (RuntimeError, IndexError) as error:
        raise ModelError(
            f"{path}: the model does not take a made-up example: {first_line(error)}"
        ) from error
    return module, example


def _tensor(value: TensorValue) -> Tensor:
    """A tensor that an input may be."""
    shape = [int(size.value) if isinstance(size, Constant) else _SIZE for size in value.shape]
    generator = torch.Generator().manual_seed(0)
    if value.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(value.dtype)
    return torch.randint(0, 2, shape, generator=generator).to(value.dtype)
