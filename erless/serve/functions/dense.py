"""The dense function: the tower behind dynamic batching.

Queries that come while a forward pass runs are joined into the next one, up to `max_coalesce`
samples; the first of them waits at most `max_delay_ms` for others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.graph_archives import open_tower_graph
from erless.errors import QueryError, ServeError
from erless.serve.files import MappedFile, OpenTower, open_changed_tower, open_tower, source_of
from erless.serve.functions.graph_dense import GraphDenseFunction
from erless.serve.metrics import Metrics
from erless.serve.protocol.infer import InferRequest
from erless.serve.protocol.served import InferAnswer, InferCall, Served
from erless.serve.protocol.tensors import TensorSpec
from erless.serve.settings import Settings
from erless.serve.towers import Predict, open_predict
from erless.specs.model import GraphTower, ModelSpec

__all__ = ["DenseFunction", "load_dense"]

Floats = NDArray[np.float32]
WARM_UPS = 3


def load_dense(settings: Settings, metrics: Metrics) -> Callable[[], Served]:
    """The tower, ready to be served; may run in any thread.

    Errors as `open_tower` and `open_predict`.
    """
    source = source_of(settings)
    opened = open_tower(source, settings.digest)
    prepared = _prepare(opened, settings, metrics)

    def serve() -> Served:
        served, loop = prepared(), asyncio.get_running_loop()

        def open_version(sha256: str) -> Served:
            """In a thread: the tower is loaded here, and served from the event loop."""
            changed = _prepare(open_changed_tower(source, opened, sha256), settings, metrics)

            async def serve_changed() -> Served:
                version = changed()
                version.version_path = f"{version.model}/versions/{sha256}"
                return version

            return asyncio.run_coroutine_threadsafe(serve_changed(), loop).result()

        served.open_version = open_version
        return served

    return serve


def _prepare(
    opened: OpenTower, settings: Settings, metrics: Metrics
) -> Callable[[], DenseFunction | GraphDenseFunction]:
    """Load a tower; what is returned makes its function, on the event loop."""
    tower = opened.model.tower
    if isinstance(tower, GraphTower):
        graph = open_tower_graph(
            opened.model, opened.path, device=settings.device, threads=settings.threads, apart=True
        )
        return lambda: GraphDenseFunction(opened, tower, graph)
    predict = _warm_tower(opened, settings)
    return lambda: DenseFunction(opened, predict, settings, metrics)


def _warm_tower(opened: OpenTower, settings: Settings) -> Predict:
    """The tower after its first passes, which are slow."""
    predict = open_predict(
        opened.path,
        opened.model,
        device=settings.device,
        precision=settings.precision,
        threads=settings.threads,
    )
    for batch in (1, min(32, settings.max_coalesce), settings.max_coalesce):
        dense, pooled = _zeros(opened.model, batch)
        for _ in range(WARM_UPS):
            predict(dense, pooled)
    return predict


def _zeros(model: ModelSpec, batch: int) -> tuple[Floats, Floats]:
    widest = max(table.dim for table in model.tables)
    return (
        np.zeros((batch, model.dense_features), np.float32),
        np.zeros((batch, len(model.tables), widest), np.float32),
    )


class _Waiting:
    """One query that waits for its forward pass."""

    __slots__ = ("answer", "came", "dense", "pooled")

    def __init__(
        self, dense: Floats, pooled: Floats, came: float, answer: asyncio.Future[Floats]
    ) -> None:
        self.dense, self.pooled, self.came, self.answer = dense, pooled, came, answer


class DenseFunction:
    """Answers `prediction` for `dense` and `pooled`. Create it on the event loop."""

    model = "tower"
    fast_path = None
    request_parameters: frozenset[str] = frozenset()
    answers_synchronously = False
    decoy = False

    def __init__(
        self, opened: OpenTower, predict: Predict, settings: Settings, metrics: Metrics
    ) -> None:
        self._opened, self._predict, self._settings = opened, predict, settings
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self.digest, self.version_path = opened.digest, self.model
        self.open_version: Callable[[str], Served] | None = None
        self.mapped: tuple[MappedFile, ...] = ()
        self.facts: dict[str, object] = {}
        self._parameters = {"digest": self.digest}
        spec = opened.model
        widest = max(table.dim for table in spec.tables)
        self.inputs: tuple[TensorSpec, ...] = (
            TensorSpec("dense", ("FP32",), (-1, spec.dense_features)),
            TensorSpec("pooled", ("FP32",), (-1, len(spec.tables), widest)),
        )
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec("prediction", ("FP32",), (-1,)),)
        self._queue: deque[_Waiting] = deque()
        self._samples = 0
        self._wake = asyncio.Event()
        # one thread: the loop goes on receiving while a pass runs without the interpreter's lock
        self._worker = ThreadPoolExecutor(1, "tower")
        self._task = self._loop.create_task(self._run())

    def memory_bytes(self, request: InferRequest) -> int:
        """Of the inputs, as they came and joined with those of other queries."""
        return 2 * sum(array.nbytes for array in request.inputs.values())

    def infer(self, call: InferCall) -> Awaitable[InferAnswer]:
        """Predict, in one pass with other queries that wait."""
        dense, pooled = (call.request.inputs[name] for name in ("dense", "pooled"))
        if len(dense) != len(pooled):
            raise QueryError(f"dense has {len(dense):,} samples, pooled {len(pooled):,}")
        if len(dense) > self._settings.max_batch:
            raise QueryError(
                f"{len(dense):,} samples, at most {self._settings.max_batch:,} are taken"
            )
        for name, array in (("dense", dense), ("pooled", pooled)):
            if not np.isfinite(array).all():
                raise QueryError(f"{name} holds a number that is not finite")
        return self._enqueue(dense, pooled, call)

    async def _enqueue(self, dense: Floats, pooled: Floats, call: InferCall) -> InferAnswer:
        waiting = _Waiting(dense, pooled, self._loop.time(), self._loop.create_future())
        self._queue.append(waiting)
        self._samples += len(dense)
        self._wake.set()
        try:
            async with asyncio.timeout_at(call.deadline):
                prediction = await waiting.answer
        except TimeoutError:
            raise ServeError(
                "the deadline passed before the tower's turn", 504, "deadline"
            ) from None
        if not np.isfinite(prediction).all():
            raise QueryError("the prediction is not finite: an input is too large")
        return InferAnswer({"prediction": prediction}, self._parameters)

    async def _run(self) -> None:
        """Forward passes, one after the other."""
        while True:
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
            await self._gather()
            batch = self._take()
            if batch:
                await self._forward(batch)

    async def _gather(self) -> None:
        """Wait for more queries, not beyond the first one's delay."""
        until = self._queue[0].came + self._settings.max_delay_ms / 1e3
        while self._samples < self._settings.max_coalesce and self._loop.time() < until:
            self._wake.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._wake.wait()
            except TimeoutError:
                break

    def _take(self) -> list[_Waiting]:
        """The queries of the next pass: at least one, together at most `max_coalesce` samples."""
        batch: list[_Waiting] = []
        size = 0
        while self._queue:
            size += len(self._queue[0].dense)
            if batch and size > self._settings.max_coalesce:
                break
            first = self._queue.popleft()
            self._samples -= len(first.dense)
            if not first.answer.done():  # it may have given up
                batch.append(first)
        return batch

    async def _forward(self, batch: list[_Waiting]) -> None:
        dense = np.concatenate([call.dense for call in batch])
        pooled = np.concatenate([call.pooled for call in batch])
        try:
            predictions = await self._loop.run_in_executor(
                self._worker, self._predict, dense, pooled
            )
        except Exception as error:  # each query that was in the pass fails with it
            for call in batch:
                if not call.answer.done():
                    call.answer.set_exception(error)
            return
        begin = 0
        for call in batch:
            end = begin + len(call.dense)
            if not call.answer.done():
                call.answer.set_result(predictions[begin:end])
            begin = end

    def close(self) -> None:
        """Stop; give back what was opened."""
        self._task.cancel()
        self._worker.shutdown(wait=False)
        self._opened.close()
