"""`erless import torch`: a whole model that `torch.export.save` wrote, read as data and cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch.fx import Node

from erless.dlrm.archive import Archive
from erless.dlrm.archive.expressions import Constant
from erless.dlrm.archive.signature import TensorValue
from erless.errors import ModelError
from erless.importers.archives.streamed import archive_here
from erless.importers.confined.graph import TriedModel
from erless.importers.graph.export import SMALL_ROWS, write_bundle
from erless.importers.graph.made_up import build, made_up
from erless.importers.graph.program import Program, export_program, readable
from erless.importers.lazy import LazyTensor
from erless.progress import Progress
from erless.specs.bundle import BundleManifest

__all__ = ["import_archive"]


def import_archive(
    location: Path | str,
    out: Path,
    *,
    small_rows: int = SMALL_ROWS,
    name: str = "model",
    overwrite: bool = False,
    endpoint_url: str | None = None,
    progress: Progress | None = None,
) -> BundleManifest:
    """Cut the model in the archive at `location`, a path or `s3://bucket/key`, and write a bundle.

    Of an archive in a bucket the rows of large tables are read by ranges, once, into the bundle.

    Nothing of the archive is executed but operators of erless' list, on a made-up example, and that
    in a process of its own, which can do nothing else (`erless.importers.confined.graph`). Here its
    graph is traced, which computes shapes alone.

    Raises:
        ArtifactError: the archive is none, or holds what is not on erless' lists.
        ModelError: the model cannot be cut, or does not take the example.
    """
    with (
        archive_here(location, out, small_rows, endpoint_url) as here,
        TriedModel(here.path) as model,
    ):
        archive, module = build(here.path)
        dynamic: Mapping[str, list[int]] = {
            f"input_{place}": _free(value) for place, value in enumerate(archive.signature.inputs)
        }
        program = _renamed(export_program(module, made_up(archive), dynamic), archive, here.tables)

        def compare(bundle: Path, tables: Mapping[str, Node]) -> int:
            read = {node: table for table, node in tables.items() if node in program.elsewhere}
            for node in program.elsewhere:
                if node.users and node not in read:
                    raise ModelError(
                        f"{location}: {program.name_of(node)} is no table of the bundle, and was "
                        "not read: import the archive from a disk"
                    )
            return model.smallest_batch(
                bundle, {program.weights[node]: table for node, table in read.items()}
            )

        return write_bundle(
            program,
            out,
            compare,
            small_rows=small_rows,
            name=name,
            overwrite=overwrite,
            progress=progress,
        )


def _free(value: TensorValue) -> list[int]:
    """The dimensions whose size differs from call to call."""
    return [place for place, size in enumerate(value.shape) if not isinstance(size, Constant)]


def _renamed(program: Program, archive: Archive, elsewhere: Mapping[str, LazyTensor]) -> Program:
    """The rebuilt module numbers inputs, weights and outputs; the archive knows their names."""
    signature = archive.signature
    stored = list(signature.tensors.values())
    numbers = {f"weight_{place}": name for place, name in enumerate(stored)}
    input_names = [readable(value.name) for value in signature.inputs]
    output_names = [readable(value.name) for value in signature.outputs]
    original_names = {node: numbers.get(name, name) for node, name in program.weights.items()}
    return replace(
        program,
        inputs=dict(zip(input_names, program.inputs.values(), strict=True)),
        outputs=dict(zip(output_names, program.outputs.values(), strict=True)),
        original_names=original_names,
        elsewhere={
            node: elsewhere[name] for node, name in original_names.items() if name in elsewhere
        },
    )
