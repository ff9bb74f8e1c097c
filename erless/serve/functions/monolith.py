"""What the monolith's server serves: all tables and the tower of a bundle."""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.bfloat16 import all_finite
from erless.dlrm.embedding import Combiner, EmbeddingShard
from erless.dlrm.graph_archives import graph_files, open_lookup, open_tower_graph
from erless.dlrm.lanes import Lanes, LaneSums
from erless.dlrm.whole_graph import whole_tables
from erless.serve.files import MappedFile
from erless.serve.metrics import Metrics
from erless.serve.protocol.coalescing import open_coalescer
from erless.serve.protocol.forms import KjtForm, Lookup, QueryForm, SharedKjtForm
from erless.serve.protocol.graph import GraphForm
from erless.serve.protocol.infer import InferRequest
from erless.serve.protocol.metadata import model_facts
from erless.serve.protocol.served import InferAnswer, InferCall
from erless.serve.settings import Settings
from erless.serve.towers import PredictTensors, named, open_predict
from erless.specs.bundle import BundleManifest
from erless.specs.model import GraphTower, Pooling

__all__ = ["MonolithFunction", "load_monolith"]


def load_monolith(settings: Settings, metrics: Metrics) -> MonolithFunction:
    """The model of the bundle at `settings.store`, verified and in memory.

    Raises:
        ArtifactError: it is missing, damaged or altered.
    """
    folder = Path(settings.store)
    bundle = BundleManifest.open(folder)
    bundle.verify(folder)
    form, predict = _model(folder, bundle, settings)
    return MonolithFunction(
        bundle, whole_tables(folder, bundle, populate=True), form, predict, settings, metrics
    )


def _model(
    folder: Path, bundle: BundleManifest, settings: Settings
) -> tuple[QueryForm, PredictTensors]:
    """How queries are read, and the tower."""
    model, path, threads = bundle.model, folder / bundle.tower.path, settings.threads
    if not isinstance(model.tower, GraphTower):
        form = (KjtForm if model.plain else SharedKjtForm)(model, settings.max_batch)
        return form, named(open_predict(path, model, threads=threads))
    lookup = open_lookup(model, graph_files(folder, bundle), threads=threads)
    return GraphForm(lookup, settings.max_batch), open_tower_graph(model, path, threads=threads)


class MonolithFunction:
    """Answers a whole query with the model's outputs."""

    open_version = None
    fast_path = None
    request_parameters: frozenset[str] = frozenset()
    decoy = False

    def __init__(
        self,
        bundle: BundleManifest,
        shard: EmbeddingShard,
        form: QueryForm,
        predict: PredictTensors,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        model = bundle.model
        self.model, self.digest, self.facts = model.name, bundle.digest, model_facts(model)
        self.version_path = self.model
        self.mapped: tuple[MappedFile, ...] = ()
        self.inputs, self.outputs = form.inputs, form.outputs
        self._shard, self._form, self._predict = shard, form, predict
        self._metrics = metrics
        self._coalescer = open_coalescer(form, settings, self._answer, metrics)
        self.answers_synchronously = self._coalescer is None
        self._parameters = {"digest": bundle.digest}
        dims = {table.dim for table in model.tables}
        # pooled vectors of one width that need no division are the tower's input as they come
        plain = all(table.pooling is not Pooling.MEAN for table in model.tables) and len(dims) == 1
        self._shape = (len(model.tables), dims.pop()) if plain else None
        self._combiner = Combiner(model.tables, [range(len(model.tables))])
        lanes = Lanes.of(model)
        self._holdings = [range(len(lanes))]
        self._groups = np.array(lanes.groups(range(len(lanes))), np.int64)

    def memory_bytes(self, request: InferRequest) -> int:
        """What the query's form says."""
        return self._form.memory_bytes(request.inputs)

    def infer(self, call: InferCall) -> InferAnswer | Awaitable[InferAnswer]:
        """Predict."""
        self._form.check(call.request.inputs)
        return self._answer(call) if self._coalescer is None else self._coalescer.answer(call)

    def _answer(self, call: InferCall, queries: int = 1) -> InferAnswer:
        """Predict at once; `call` stands for so many queries."""
        form = self._form
        query = form.open(call.request.inputs)
        sums = form.sums(query, self._holdings)
        out = self._pool(query.lookup) if sums is None else self._pool_lanes(query.lookup, sums)
        self._metrics.gathers += len(query.lookup.values)
        if query.graph is not None:
            self._metrics.unknown_ids(query.graph.unknown)
        outputs = form.finish(query, self._predict(form.tower_inputs(query, sums, out)))
        fault = None
        if not all(map(all_finite, outputs.values())):
            fault = form.not_finite(query, out)
            if queries == 1:
                raise fault
        return InferAnswer(outputs, {**self._parameters, **query.parameters}, fault)

    def _pool(self, lookup: Lookup) -> NDArray[np.float32]:
        """Vectors (B, T, D)."""
        pooled = self._shard.pool(lookup.values, lookup.lengths, lookup.weights)
        if self._shape is not None:
            return pooled.reshape(len(pooled), *self._shape)
        out = self._combiner.begin(len(pooled))
        self._combiner.add(out, 0, pooled, lookup.lengths)
        return self._combiner.finish(out, lookup.lengths)

    def _pool_lanes(self, lookup: Lookup, sums: LaneSums) -> NDArray[np.float32]:
        """Vectors of all lanes, in the sums' own order."""
        bags = np.add.reduceat(np.diff(lookup.bags), self._groups).astype(np.int32)
        partial = self._shard.pool_packed(lookup.values, lookup.lengths, lookup.weights, bags)
        sums.add(sums.out, 0, partial, lookup.lengths)
        return sums.finish(sums.out, lookup.finishing)

    def close(self) -> None:
        """Nothing is held open."""
