"""The sparse function: one shard's rows, gathered and pooled."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from erless.dlrm import _kernels
from erless.dlrm._kernels import FastPath
from erless.dlrm.embedding import EmbeddingShard
from erless.dlrm.pool_call import PoolCall, ShardTables
from erless.errors import QueryError
from erless.serve.files import MappedFile, OpenShard, Source, open_shard
from erless.serve.logs import Log
from erless.serve.low_priority import LowPriority
from erless.serve.memory import rewritten_bytes
from erless.serve.metrics import Metrics
from erless.serve.protocol.fast_lane import LONGEST_MS, answer_forms, head_forms, request_forms
from erless.serve.protocol.infer import InferRequest
from erless.serve.protocol.request_json import flag
from erless.serve.protocol.served import InferAnswer, InferCall
from erless.serve.protocol.tensors import TensorSpec
from erless.serve.secrets import open_secret
from erless.serve.settings import Settings
from erless.serve.states import Rewriter, ShardStates

__all__ = ["ShardFunction", "SparseFunction", "load_sparse"]


class ShardFunction:
    """What sparse functions share, wherever their rows are: inputs, outputs, checks.

    Args:
        shape: the shard's tables.
        settings: of the function.
        metrics: counted here.
    """

    model = "shard"
    version_path = "shard"
    request_parameters = frozenset({"packed", "half"})
    decoy = False

    def __init__(self, shape: ShardTables, settings: Settings, metrics: Metrics) -> None:
        self._shape, self._metrics = shape, metrics
        self._max_batch = settings.max_batch
        self.digest = settings.digest
        self._parameters = {"digest": self.digest}
        tables = len(shape.tables)
        self._dims = np.array([table.dim for table in shape.tables], np.int64)
        self.inputs: tuple[TensorSpec, ...] = (
            TensorSpec("values", ("INT64", "INT32"), (-1,)),
            TensorSpec("lengths", ("INT32",), (tables, -1), optional=True),
            TensorSpec("weights", ("FP32",), (-1,), optional=not shape.has_weights),
            # where tables differ in bags: how many each has, and the lengths of all
            TensorSpec("bags", ("INT32",), (tables,), optional=True),
            TensorSpec("bag_lengths", ("INT32",), (-1,), optional=True),
        )
        self.outputs: tuple[TensorSpec, ...] = (
            TensorSpec("partial", ("FP32", "FP16"), (-1, shape.width)),
        )

    def memory_bytes(self, request: InferRequest) -> int:
        """Of the partials, and once more in float16 or as text."""
        lengths, bags = request.inputs.get("lengths"), request.inputs.get("bags")
        if lengths is not None:
            return int(2 * 4 * lengths.shape[1] * self._shape.width)
        return 0 if bags is None else 2 * 4 * int(np.abs(bags.astype(np.int64)) @ self._dims)

    def pool_call(self, request: InferRequest) -> PoolCall:
        """What the kernels are asked.

        Raises:
            QueryError: the request does not fit the shard.
        """
        values, lengths = request.inputs["values"], request.inputs.get("lengths")
        weights = request.inputs.get("weights")
        if lengths is not None and lengths.shape[1] > self._max_batch:
            raise QueryError(f"{lengths.shape[1]:,} samples, at most {self._max_batch:,} are taken")
        if weights is not None and not np.isfinite(weights).all():
            raise QueryError("a weight is not a finite number")
        packed = flag(request.parameters, "packed")
        if lengths is None:
            return self._ragged_call(request, values, weights, packed)
        if packed:
            return self._shape.packed(values, lengths, weights, None)
        return self._shape.dense(values, lengths, weights)

    def _ragged_call(
        self,
        request: InferRequest,
        values: NDArray[Any],
        weights: NDArray[np.float32] | None,
        packed: bool,
    ) -> PoolCall:
        """Of tables that differ in bags: their lengths come as one vector."""
        bags, lengths = (request.inputs.get(name) for name in ("bags", "bag_lengths"))
        if bags is None or lengths is None:
            raise QueryError("input lengths is missing, or bags and bag_lengths are")
        if not packed:
            raise QueryError("tables that differ in bags are answered with the parameter packed")
        return self._shape.packed(values, lengths, weights, bags)

    def answer(self, request: InferRequest, partial: NDArray[np.float32]) -> InferAnswer:
        """`partial` as it was asked for."""
        self._metrics.gathers += len(request.inputs["values"])
        if flag(request.parameters, "half"):
            return InferAnswer({"partial": to_float16(partial)}, self._parameters)
        return InferAnswer({"partial": partial}, self._parameters)


class SparseFunction(ShardFunction):
    """Answers `partial` for `values` and `lengths`, of rows in memory."""

    answers_synchronously = True

    mapped: tuple[MappedFile, ...] = ()
    open_version: Callable[[str], SparseFunction] | None = None

    def __init__(
        self,
        shard: EmbeddingShard,
        settings: Settings,
        metrics: Metrics,
        state: str | None = None,
    ) -> None:
        super().__init__(shard.shape, settings, metrics)
        self._settings = settings
        if state is not None:
            self.digest, self.version_path = state, f"shard/versions/{state}"
            self._parameters = {"digest": state}
        self.facts: dict[str, object] = {}
        self.use(shard)

    def use(self, shard: EmbeddingShard) -> None:
        """Look rows up in `shard` from now on, which has the same ones elsewhere in memory."""
        settings = self._settings
        secret = open_secret(settings, time.monotonic)
        heads, json32, json16 = answer_forms(self.digest.encode())
        self.fast_path: FastPath | None = shard.fast_path(
            head_forms(self.version_path.encode(), secret=secret.shown if secret else None),
            request_forms(),
            (*heads, json32, json16),
            settings.max_batch,
            settings.max_body_bytes,
            LONGEST_MS,
        )
        self._shard = shard

    def infer(self, call: InferCall) -> InferAnswer:
        """Gather and pool."""
        return self.answer(call.request, self._shard.begin(self.pool_call(call.request)))

    def close(self) -> None:
        """A state has nothing of its own to give back."""


class _State(NamedTuple):
    """A state of the shard, and its changed rows beside the release's."""

    function: SparseFunction
    shard: EmbeddingShard


class ReleasedShard(SparseFunction):
    """The shard as its release has it; opens the states that generations give it."""

    def __init__(
        self, source: Source, opened: OpenShard, settings: Settings, metrics: Metrics
    ) -> None:
        super().__init__(opened.shard, settings, metrics)
        self._opened = opened
        self.mapped = opened.mapped
        self._states = states = ShardStates(source, settings.digest, opened.shard)
        self._rewriter = rewriter = Rewriter(
            rewritten_bytes(settings.rewritten_bytes, settings.workers)
        )
        self._later = LowPriority("rewrite")
        # the state that was opened last, and the one whose rows are in the copy
        self._newest: _State | None = None
        self._in_place: _State | None = None

        log = Log(settings.log, function=settings.kind, digest=settings.digest[:12])

        def told(moved: Future[None]) -> None:
            if error := moved.exception():  # they stay beside the release's
                log.warning("changed rows are not put in place", reason=str(error))

        def open_state(digest: str) -> SparseFunction:
            shard = states.open(digest)
            function = SparseFunction(shard, settings, metrics, digest)
            self._newest = _State(function, shard)
            moved = self._later.submit(partial(self._rewrite, self._newest))
            moved.add_done_callback(told)
            return function

        self.open_version = open_state
        metrics.gauge(
            "changed_bytes",
            "rows that generations changed",
            lambda: states.size_bytes + rewriter.size_bytes,
        )

    @property
    def in_place(self) -> str | None:
        """Digest of the state whose changed rows lie in the places of the release's."""
        return self._in_place.function.digest if self._in_place else None

    def _rewrite(self, state: _State) -> None:
        """Have lookups in `state` cost what they do in the release, unless a newer one is here."""
        if state is not self._newest:
            return
        before, self._in_place = self._in_place, None
        if before is not None:  # asked until gateways have moved on, and seldom from then
            before.function.use(before.shard)
        rewritten = self._rewriter.rewrite(state.shard)
        if rewritten is not state.shard:
            state.function.use(rewritten)
            self._in_place = state

    def close(self) -> None:
        """Let the cache evict the shard."""
        self._opened.close()


def load_sparse(source: Source, settings: Settings, metrics: Metrics) -> ReleasedShard:
    """The function, its shard verified and in memory. Errors as `open_shard`."""
    return ReleasedShard(source, open_shard(source, settings.digest), settings, metrics)


def to_float16(partial: np.ndarray) -> np.ndarray:
    """`partial` in float16, unless a sum is beyond what float16 holds: then as it is."""
    in_float16 = np.empty(partial.shape, np.float16)
    _kernels.to_float16(partial, in_float16)
    return in_float16 if np.isfinite(in_float16).all() else partial
