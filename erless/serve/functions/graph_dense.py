"""The dense function of a model cut from a graph: its tower, one query after the other.

Queries are not joined: what they have along other dimensions than the samples' may differ.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

from numpy.typing import NDArray

from erless.errors import ServeError
from erless.serve.files import MappedFile, OpenTower
from erless.serve.protocol.infer import InferRequest
from erless.serve.protocol.served import InferAnswer, InferCall, Served
from erless.serve.protocol.tensors import TensorSpec
from erless.serve.towers import PredictTensors
from erless.specs.features import Datatype
from erless.specs.model import GraphTower

__all__ = ["GraphDenseFunction"]

NUMBERS = tuple(name for name in get_args(Datatype) if name != "BYTES")


class GraphDenseFunction:
    """Answers the model's outputs for what its tower takes. Create it on the event loop."""

    model = "tower"
    fast_path = None
    request_parameters: frozenset[str] = frozenset()
    answers_synchronously = False
    decoy = False

    def __init__(self, opened: OpenTower, tower: GraphTower, predict: PredictTensors) -> None:
        self._opened, self._predict = opened, predict
        self._loop = asyncio.get_running_loop()
        self.digest, self.version_path = opened.digest, self.model
        self.open_version: Callable[[str], Served] | None = None
        self.mapped: tuple[MappedFile, ...] = ()
        self.facts: dict[str, object] = {}
        self.inputs = tuple(TensorSpec(name, NUMBERS, None) for name in tower.takes)
        self.outputs = tuple(
            TensorSpec(output.name, (output.datatype,), output.shape)
            for output in opened.model.outputs
        )
        # one thread: the loop goes on receiving while the tower runs without the interpreter's lock
        self._worker = ThreadPoolExecutor(1, "tower")

    def memory_bytes(self, request: InferRequest) -> int:
        """Of the inputs, as they came and as the tower's."""
        return 2 * sum(array.nbytes for array in request.inputs.values())

    def infer(self, call: InferCall) -> Awaitable[InferAnswer]:
        """Predict."""
        inputs = {name: array.copy() for name, array in call.request.inputs.items()}
        return self._predict_later(call, inputs)

    async def _predict_later(self, call: InferCall, inputs: dict[str, NDArray[Any]]) -> InferAnswer:
        try:
            async with asyncio.timeout_at(call.deadline):
                outputs = await self._loop.run_in_executor(self._worker, self._predict, inputs)
        except TimeoutError:
            raise ServeError(
                "the deadline passed before the tower's turn", 504, "deadline"
            ) from None
        return InferAnswer(outputs, {"digest": self.digest})

    def close(self) -> None:
        """Stop; give back what was opened."""
        self._worker.shutdown(wait=False)
        self._opened.close()
