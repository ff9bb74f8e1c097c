"""An archive that is a tower: `dense (B,F)` and `pooled (B,T,D)` → one prediction per sample."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch.fx import GraphModule

from erless.dlrm.archive.graph import Archive, build_module, read_archive
from erless.dlrm.archive.signature import Range, TensorValue
from erless.errors import ArtifactError

__all__ = ["TowerShape", "load_exported", "tower_module", "tower_shape"]

INPUTS = ("dense", "pooled")


class TowerShape(NamedTuple):
    """What a tower takes: a batch within `batch`, and sizes that are None where any will do."""

    batch: Range
    dense_features: int | None
    tables: int | None
    dim: int | None


def load_exported(path: Path) -> GraphModule:
    """The tower of the archive at `path`: a module (dense, pooled) → (predictions,).

    Nothing of the archive is executed on the way: see `erless.dlrm.archive`.

    Raises:
        ArtifactError: not such an archive, damaged, or holding what is not on erless' lists.
        StorageError: the file cannot be read.
    """
    return tower_module(read_archive(path))


def tower_module(archive: Archive) -> GraphModule:
    """The program of `archive` as a tower.

    Inputs called `dense` and `pooled` are taken by name whatever their order, others by order.

    Raises:
        ArtifactError: it takes other inputs than two float tensors, or gives several outputs.
    """
    outputs = archive.signature.outputs
    if len(outputs) != 1:
        names = ", ".join(value.name for value in outputs) or "none"
        raise ArtifactError(
            f"{archive.where}: gives {len(outputs)} outputs ({names}); a tower gives one "
            "prediction per sample"
        )
    dense, _ = _inputs(archive)
    module = build_module(archive)
    if dense is not archive.signature.inputs[0]:
        _swap_inputs(module)
    return module


def tower_shape(archive: Archive) -> TowerShape:
    """The sizes that the tower in `archive` was exported for.

    Raises:
        ArtifactError: it takes other inputs than two float tensors of rank 2 and 3 whose batches
            agree.
    """
    dense, pooled = _inputs(archive)
    if (len(dense.shape), len(pooled.shape)) != (2, 3):
        raise ArtifactError(
            f"{archive.where}: its inputs have {len(dense.shape)} and {len(pooled.shape)} "
            "dimensions; a tower takes dense (B,F) and pooled (B,T,D)"
        )
    ranges = [archive.signature.range_of(size) for size in (*dense.shape, *pooled.shape)]
    first, second = ranges[0], ranges[2]
    if first is None or second is None:
        raise ArtifactError(f"{archive.where}: its batch is computed from another size")
    return TowerShape(
        Range(
            max(first.minimum, second.minimum),
            min(
                (limit for limit in (first.maximum, second.maximum) if limit is not None),
                default=None,
            ),
        ),
        *(_only(size) for size in (ranges[1], ranges[3], ranges[4])),
    )


def _inputs(archive: Archive) -> tuple[TensorValue, TensorValue]:
    """Its inputs as (dense, pooled)."""
    inputs = archive.signature.inputs
    if len(inputs) != 2:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ArtifactError(
            f"{archive.where}: has {len(inputs)} inputs ({names}); a tower takes two, "
            "dense (B,F) and pooled (B,T,D)"
        )
    for value in inputs:
        if not value.dtype.is_floating_point:
            raise ArtifactError(f"{archive.where}: input {value.name} is {value.dtype}, not float")
    first, second = inputs
    return (second, first) if (second.name, first.name) == INPUTS else (first, second)


def _only(size: Range | None) -> int | None:
    """The value of a size that is the same in every call."""
    return size.minimum if size is not None and size.minimum == size.maximum else None


def _swap_inputs(module: GraphModule) -> None:
    """Let `module` take its two inputs in the other order."""
    first, second = (node for node in module.graph.nodes if node.op == "placeholder")
    first.prepend(second)
    module.recompile()
