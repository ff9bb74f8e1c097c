"""Write a cut program as a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor
from torch.fx import Node

from erless.errors import ModelError
from erless.importers.bundle import BundleWriter, row_chunks
from erless.importers.checkpoint import float_rows
from erless.importers.graph.cut import GraphCut
from erless.importers.graph.parts import part_of, save_part
from erless.importers.graph.program import Program
from erless.specs.features import NamedTensor, Pooling
from erless.specs.model import GraphTower, ModelSpec, TableSpec

__all__ = ["describe", "with_batch_min", "write_parts"]

Per = Literal["sample", "request", "entry"]

_DATATYPES = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.bfloat16: "BF16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}


def describe(program: Program, cut: GraphCut, name: str) -> ModelSpec:
    """The model that `cut` makes of `program`."""
    try:
        return ModelSpec(
            name=name,
            dense_features=0,
            tables=tuple(_table(cut, table, node) for table, node in cut.tables.items()),
            tower=GraphTower(
                takes=cut.takes,
                front_takes=cut.front_takes,
                front_gives=cut.front_gives,
                request_front_takes=cut.request_front_takes,
                request_front_gives=cut.request_front_gives,
            ),
            features=tuple(feature for feature, _ in cut.features),
            inputs=tuple(
                _tensor(name, node, _per(program, cut, name, node))
                for name, node in program.inputs.items()
            ),
            outputs=tuple(_tensor(name, node, "sample") for name, node in program.outputs.items()),
        )
    except ValidationError as error:
        raise ModelError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from error


def with_batch_min(model: ModelSpec, batch_min: int) -> ModelSpec:
    """`model`, but for batches of at least `batch_min`."""
    tower = model.tower.model_copy(update={"batch_min": batch_min})
    return model.model_copy(update={"tower": tower})


def write_parts(bundle: BundleWriter, program: Program, cut: GraphCut) -> None:
    """Write front, tables and tower into `bundle`."""
    values = cut.values
    fronts = {
        "front.pt2": (cut.front_takes, cut.front_gives),
        "request_front.pt2": (cut.request_front_takes, cut.request_front_gives),
    }
    for file, (takes, gives) in fronts.items():
        if gives:
            front = part_of(program, [values[n] for n in takes], [values[n] for n in gives])
            save_part(front, bundle.folder / file)
            bundle.add_archive(file)
    for table in bundle.model.tables:
        node = cut.tables[table.name]
        rows = program.elsewhere.get(node)
        chunks = _chunks(program.weight(node)) if rows is None else float_rows(table.name, rows)
        bundle.add_table(table, chunks)
    tower = part_of(
        program,
        [values[name] for name in cut.takes],
        list(program.outputs.values()),
        cut.sizes,
    )
    save_part(tower, bundle.folder / "tower.pt2")
    bundle.add_archive("tower.pt2")


def _table(cut: GraphCut, name: str, node: Node) -> TableSpec:
    poolings = {feature.pooling for feature, lookup in cut.features if lookup.table is node}
    pooling = next(
        (of for of in (Pooling.MAX, Pooling.WEIGHTED_SUM) if of in poolings), Pooling.SUM
    )
    rows, dim = node.meta["val"].shape
    return TableSpec(name=name, rows=rows, dim=dim, pooling=pooling)


def _per(program: Program, cut: GraphCut, name: str, node: Node) -> Per:
    """Whether an input has a first size that is the samples, one, or its own."""
    if name in program.request:
        return "request"
    size = str(node.meta["val"].shape[:1])
    for _, lookup in cut.features:
        if lookup.offsets is None and lookup.lengths is None:
            continue
        bags = str((lookup.lengths or lookup.node).meta["val"].shape[:1])
        sizes = {str(each.meta["val"].shape[:1]) for each in (lookup.ids, lookup.offsets) if each}
        if size != bags and size in sizes:
            return "entry"
    return "entry" if f"{name.removesuffix('.weights')}.lengths" in program.inputs else "sample"


def _tensor(name: str, node: Node, per: Per) -> NamedTensor:
    value = node.meta["val"]
    if value.dtype not in _DATATYPES:
        raise ModelError(f"{name} is {value.dtype}, which no query carries")
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return NamedTensor.model_validate(
        {"name": name, "datatype": _DATATYPES[value.dtype], "shape": shape, "per": per}
    )


def _chunks(rows: Tensor) -> Iterator[NDArray[np.float32]]:
    chunks: Iterator[Any] = row_chunks(rows.detach(), rows.stride(0) * rows.element_size())
    return (chunk.to("cpu", torch.float32).contiguous().numpy() for chunk in chunks)
