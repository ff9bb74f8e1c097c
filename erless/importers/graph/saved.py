"""`erless import torch`: a whole model that `torch.export.save` wrote, read as data and cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from erless.dlrm.archive import Archive, build_module, read_archive
from erless.dlrm.archive.expressions import Constant
from erless.dlrm.archive.operators import LOOKUPS, OPERATORS
from erless.dlrm.archive.signature import TensorValue
from erless.errors import ModelError, first_line
from erless.importers.graph.export import SMALL_ROWS, write_bundle
from erless.importers.graph.program import Example, Program, export_program, readable
from erless.progress import Progress
from erless.specs.bundle import BundleManifest

__all__ = ["import_archive"]

_SIZE = 3  # of the made-up example, wherever sizes may differ


def import_archive(
    path: Path,
    out: Path,
    *,
    small_rows: int = SMALL_ROWS,
    name: str = "model",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BundleManifest:
    """Cut the model in the archive at `path`, and write it as a bundle.

    Nothing of the archive is executed but operators of erless' list, on a made-up example: zeros
    and ones for whole numbers, normal numbers for others.

    Raises:
        ArtifactError: the archive is none, or holds what is not on erless' lists.
        ModelError: the model cannot be cut, or does not take the example.
    """
    archive = read_archive(path, copy_weights=False)
    module = build_module(archive, OPERATORS | LOOKUPS)
    inputs = archive.signature.inputs
    example = Example(tuple(_example_tensor(value) for value in inputs), {})
    try:
        with torch.inference_mode():
            module(*example.args)
    except (RuntimeError, IndexError) as error:
        raise ModelError(
            f"{path}: the model does not take a made-up example: {first_line(error)}"
        ) from error
    dynamic: Mapping[str, list[int]] = {
        f"input_{place}": _free(value) for place, value in enumerate(inputs)
    }
    program = _renamed(export_program(module, example, dynamic), archive)
    return write_bundle(
        program,
        module,
        example,
        out,
        small_rows=small_rows,
        name=name,
        overwrite=overwrite,
        progress=progress,
    )


def _free(value: TensorValue) -> list[int]:
    """The dimensions whose size differs from call to call."""
    return [place for place, size in enumerate(value.shape) if not isinstance(size, Constant)]


def _example_tensor(value: TensorValue) -> Tensor:
    """A made-up value of an input."""
    shape = [int(size.value) if isinstance(size, Constant) else _SIZE for size in value.shape]
    generator = torch.Generator().manual_seed(0)
    if value.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(value.dtype)
    return torch.randint(0, 2, shape, generator=generator).to(value.dtype)


def _renamed(program: Program, archive: Archive) -> Program:
    """The rebuilt module numbers inputs, weights and outputs; the archive knows their names."""
    signature = archive.signature
    stored = list(signature.tensors.values())
    numbers = {f"weight_{place}": name for place, name in enumerate(stored)}
    input_names = [readable(value.name) for value in signature.inputs]
    output_names = [readable(value.name) for value in signature.outputs]
    return replace(
        program,
        inputs=dict(zip(input_names, program.inputs.values(), strict=True)),
        outputs=dict(zip(output_names, program.outputs.values(), strict=True)),
        original_names={node: numbers.get(name, name) for node, name in program.weights.items()},
    )
