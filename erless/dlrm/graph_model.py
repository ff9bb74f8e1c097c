"""A model cut at its lookups: front, lookups, tower, each by itself and all in one process.

Values have names (see `GraphTower`): the model's inputs, the results of its front, the vectors of
its features. The front's archive takes the inputs in the order of `front_takes` and gives
`front_gives`; the tower's takes the values in the order of `takes` and gives the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

from erless.dlrm.archive import build_module, read_archive
from erless.dlrm.graph_lookup import graph_tower
from erless.specs.artifact import FileEntry
from erless.specs.bundle import TABLE_TENSOR, BundleManifest
from erless.specs.features import FeatureSpec, Pooling
from erless.specs.model import ModelSpec
from erless.storage.tensors import TensorFile

__all__ = ["GraphModel", "GraphParts", "look_up"]

Values = dict[str, Tensor]
_MODES = {Pooling.SUM: "sum", Pooling.WEIGHTED_SUM: "sum", Pooling.MEAN: "mean", Pooling.MAX: "max"}


class GraphParts:
    """Front and tower of a model, without its tables.

    Args:
        tower: values in the order of `takes` → outputs in the model's order.
        front: inputs in the order of `front_takes` → `front_gives`; None where nothing is computed.
        request_front: likewise of what comes once per request.
    """

    def __init__(
        self,
        model: ModelSpec,
        tower: GraphModule,
        front: GraphModule | None = None,
        request_front: GraphModule | None = None,
    ) -> None:
        self.model, self.spec = model, graph_tower(model)
        self._tower, self._front, self._request_front = tower, front, request_front

    @classmethod
    def load(cls, folder: Path, manifest: BundleManifest) -> GraphParts:
        """The parts of the bundle at `folder`.

        Raises:
            ArtifactError: an archive is damaged, or holds what is not on erless' lists.
        """

        def module(entry: FileEntry) -> GraphModule:
            return build_module(read_archive(folder / entry.path))

        front, request_front = manifest.front, manifest.request_front
        return cls(
            manifest.model,
            module(manifest.tower),
            module(front) if front else None,
            module(request_front) if request_front else None,
        )

    def front(self, inputs: Mapping[str, Tensor]) -> Values:
        """The inputs and all that is computed before the lookups, by name.

        Inputs that come once per request, and what is computed of them, have a first size of 1 (or
        are one block); `repeated` makes them as long as the samples.
        """
        values = dict(inputs)
        spec = self.spec
        if self._request_front is not None:
            results = self._request_front(*(values[name] for name in spec.request_front_takes))
            values |= zip(spec.request_front_gives, results, strict=True)
        if self._front is not None:
            results = self._front(*(values[name] for name in spec.front_takes))
            values |= zip(spec.front_gives, results, strict=True)
        return values

    def tower(self, values: Mapping[str, Tensor]) -> Values:
        """The outputs, by name."""
        results = self._tower(*(values[name] for name in self.spec.takes))
        return {
            output.name: result for output, result in zip(self.model.outputs, results, strict=True)
        }


class GraphModel:
    """The reference implementation: the whole model in one process.

    Args:
        tables: (rows, dim) float32, in the model's order.
    """

    def __init__(self, parts: GraphParts, tables: Sequence[Tensor]) -> None:
        self.parts, self.model = parts, parts.model
        names = [table.name for table in self.model.tables]
        self.tables = dict(zip(names, tables, strict=True))

    @classmethod
    def load(cls, folder: Path, *, mapped: bool = True, verify: bool = True) -> GraphModel:
        """The model in the bundle at `folder`; arguments as of `Monolith.load`.

        Raises:
            ArtifactError: the bundle is missing, damaged, or (with `verify`) altered.
            ModelError: it is no model that was cut.
        """
        manifest = BundleManifest.open(folder)
        if verify:
            manifest.verify(folder)
        files = [TensorFile(manifest.table_file(folder, table)) for table in manifest.model.tables]
        rows = [file.map(TABLE_TENSOR) if mapped else file.read(TABLE_TENSOR) for file in files]
        tables = [torch.from_numpy(array) for array in rows]
        return cls(GraphParts.load(folder, manifest), tables)

    def predict(self, inputs: Mapping[str, Tensor]) -> Values:
        """The outputs for `inputs`, by name."""
        with torch.inference_mode():
            values = self.parts.front(inputs)
            for feature in self.model.features:
                values[feature.name] = look_up(self.tables[feature.table], feature, values)
            return self.parts.tower(values)


def look_up(table: Tensor, feature: FeatureSpec, values: Mapping[str, Tensor]) -> Tensor:
    """The vectors of `feature` among `table`, (rows, dim): see `FeatureSpec`."""
    ids = values[feature.ids or feature.name]
    if feature.pooling is Pooling.NONE:
        return torch.nn.functional.embedding(ids, table)
    weights = None if feature.weights is None else values[feature.weights]
    offsets = None if feature.offsets is None else values[feature.offsets]
    return torch.nn.functional.embedding_bag(
        ids,
        table,
        offsets,
        mode=_MODES[feature.pooling],
        per_sample_weights=weights,
        include_last_offset=offsets is not None,
        padding_idx=feature.padding_idx,
    )
