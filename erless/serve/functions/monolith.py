"""What the monolith's server serves: all tables and the tower of a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from erless.dlrm.embedding import Combiner, EmbeddingShard, StoredSlice
from erless.dlrm.rows import INDEX_WORDS, RowIndex
from erless.serve.files import MappedFile
from erless.serve.metrics import Metrics
from erless.serve.protocol.metadata import model_facts
from erless.serve.protocol.queries import check_query, not_finite, query_bytes, query_inputs
from erless.serve.protocol.served import InferAnswer, InferCall
from erless.serve.protocol.tensors import InferRequest, TensorSpec
from erless.serve.settings import Settings
from erless.serve.towers import Predict, open_predict
from erless.specs.bundle import TABLE_TENSOR, BundleManifest
from erless.specs.model import Pooling
from erless.specs.plan import Precision
from erless.storage.tensors import TensorFile

__all__ = ["MonolithFunction", "load_monolith"]


def load_monolith(settings: Settings, metrics: Metrics) -> MonolithFunction:
    """The model of the bundle at `settings.store`, verified and in memory.

    Raises:
        ArtifactError: it is missing, damaged or altered.
    """
    folder = Path(settings.store)
    bundle = BundleManifest.open(folder)
    bundle.verify(folder)
    slices = [
        StoredSlice(
            table,
            Precision.FP32,
            TensorFile(bundle.table_file(folder, table)).map(TABLE_TENSOR, populate=True),
            RowIndex(table.rows, np.empty((0, INDEX_WORDS), np.uint64)),
        )
        for table in bundle.model.tables
    ]
    tower = open_predict(folder / bundle.tower.path, bundle.model, threads=settings.threads)
    return MonolithFunction(bundle, EmbeddingShard(slices), tower, settings, metrics)


class MonolithFunction:
    """Answers `prediction` for a whole query."""

    fast_path = None
    request_parameters: frozenset[str] = frozenset()
    answers_synchronously = True

    def __init__(
        self,
        bundle: BundleManifest,
        shard: EmbeddingShard,
        predict: Predict,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        model = self._model = bundle.model
        self.model, self.digest, self.facts = model.name, bundle.digest, model_facts(model)
        self.mapped: tuple[MappedFile, ...] = ()
        self.inputs = query_inputs(model)
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec("prediction", ("FP32",), (-1,)),)
        self._shard, self._predict = shard, predict
        self._metrics = metrics
        self._max_batch = model.largest_batch(settings.max_batch)
        self._parameters = {"digest": bundle.digest}
        dims = {table.dim for table in model.tables}
        # pooled vectors of one width that need no division are the tower's input as they come
        plain = all(table.pooling is not Pooling.MEAN for table in model.tables) and len(dims) == 1
        self._shape = (len(model.tables), dims.pop()) if plain else None
        self._combiner = Combiner(model.tables, [range(len(model.tables))])

    def memory_bytes(self, request: InferRequest) -> int:
        """As `query_bytes`."""
        return query_bytes(self._model, request.inputs)

    def infer(self, call: InferCall) -> InferAnswer:
        """Predict."""
        inputs = call.request.inputs
        check_query(inputs, self._max_batch)
        values, lengths = inputs["values"], inputs["lengths"]
        pooled = self._shard.pool(values, lengths, inputs.get("weights"))
        if self._shape is not None:
            pooled = pooled.reshape(len(pooled), *self._shape)
        else:
            out = self._combiner.begin(len(pooled))
            self._combiner.add(out, 0, pooled, lengths)
            pooled = self._combiner.finish(out, lengths)
        self._metrics.gathers += len(values)
        prediction = self._predict(inputs["dense"], pooled)
        if not np.isfinite(prediction).all():
            raise not_finite(pooled, inputs.get("weights"))
        return InferAnswer({"prediction": prediction}, self._parameters)

    def close(self) -> None:
        """Nothing is held open."""
