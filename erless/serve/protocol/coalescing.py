"""Queries that come together are answered as one: dynamic batching that waits for nothing.

What has come by the end of the event loop's next turn becomes one query with all their samples. Its
ids are sorted in one pass, each shard is called once and the tower runs once; every client gets the
rows of its own samples. A query that is alone in flight is answered at once.

A query that is joined waits for all shards that the others need. So where one of these sleeps, or
is slow (on a disk), the queries are answered one by one, and so are those of the next second.

Only KeyedJaggedTensors are joined, whose samples do not depend on each other. Predictions then are
the same up to the last bits, which depend on how many samples a matrix product has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.bfloat16 import all_finite
from erless.errors import QueryError
from erless.serve.metrics import Metrics
from erless.serve.protocol.forms import QueryForm
from erless.serve.protocol.infer import InferRequest
from erless.serve.protocol.served import InferAnswer, InferCall
from erless.serve.settings import Settings

__all__ = ["ApartError", "Coalescer", "join", "open_coalescer", "spans"]

Inputs = dict[str, NDArray[Any]]
# Begins to answer a call that stands for so many queries. Raises QueryError as `Served.infer`, and
# ApartError where these queries shall not wait for each other.
Start = Callable[[InferCall, int], InferAnswer | Awaitable[InferAnswer]]

MOST_IDS = 1 << 18  # of a joined query: they are copied while the queries' own bytes are still held
MOST_SAMPLES = 1024
DEADLINE_S = 0.1  # deadlines that differ by less are taken for the earliest of them
APART_S = 1.0  # nothing is joined after queries that should not wait for each other


class ApartError(Exception):
    """Queries that shall not wait for each other: one needs what is slow, and others may not."""


def spans(inputs: Inputs) -> list[slice] | None:
    """Where each lookup's ids lie in a KeyedJaggedTensor; None: its lengths do not fit its ids."""
    sizes = np.add.reduce(inputs["lengths"], axis=1, dtype=np.int64).tolist()
    ends = list(accumulate(sizes, initial=0))
    if ends[-1] != len(inputs["values"]) or min(sizes, default=0) < 0:
        return None
    return list(map(slice, ends[:-1], ends[1:]))


def join(queries: Sequence[tuple[Inputs, list[slice]]]) -> Inputs:
    """One KeyedJaggedTensor with the samples of all `queries`, in order, of the same inputs."""
    every = [inputs for inputs, _ in queries]
    pieces = [
        (inputs, own[lookup]) for lookup in range(len(queries[0][1])) for inputs, own in queries
    ]
    joined: Inputs = {
        "lengths": np.concatenate([inputs["lengths"] for inputs in every], axis=1),
        "dense": np.concatenate([inputs["dense"] for inputs in every]),
    }
    for name in every[0].keys() - joined.keys():  # values, and weights where there are any
        joined[name] = np.concatenate([inputs[name][span] for inputs, span in pieces])
    return joined


@dataclass(slots=True, eq=False)
class _Waiting:
    """A query that waits for others, then for its answer."""

    call: InferCall
    spans: list[slice]
    answer: asyncio.Future[InferAnswer]
    samples: int
    ids: int
    group: _Group | None = None

    def give(self, answer: InferAnswer) -> None:
        """The answer has come."""
        if not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: Exception) -> None:
        """The query has failed with `error`."""
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass(slots=True, eq=False)
class _Group:
    """Queries that are answered together, by `task` where that takes more than a turn."""

    queries: list[_Waiting]
    task: asyncio.Task[None] | None = None

    def left(self) -> None:
        """A client has left: where all have, nobody waits for the answer."""
        if self.task is not None and all(each.answer.done() for each in self.queries):
            self.task.cancel()


class Coalescer:
    """Joins the queries that come within two turns of the event loop.

    Args:
        start: begins to answer a call. The answer to one that stands for several queries tells of
            outputs that are not finite by its `fault`.
        most_queries: that are joined.
        most_samples: of a query.
        metrics: of this process.
    """

    def __init__(
        self, start: Start, most_queries: int, most_samples: int, metrics: Metrics
    ) -> None:
        self._start, self._metrics = start, metrics
        self._most_queries = most_queries
        self._most_samples = min(most_samples, MOST_SAMPLES)
        self._waiting: list[_Waiting] = []
        self._apart_until = 0.0  # in the loop's time
        self._groups: set[_Group] = set()

    def answer(self, call: InferCall) -> InferAnswer | Awaitable[InferAnswer]:
        """Answer `call`, together with others that come now. Raises QueryError as `start`."""
        loop, inputs = asyncio.get_running_loop(), call.request.inputs
        alone = loop.time() < self._apart_until or self._is_alone(call)
        own = None if alone else spans(inputs)
        if own is None:
            return self._start(call, 1)
        samples, ids = inputs["lengths"].shape[1], len(inputs["values"])
        query = _Waiting(call, own, loop.create_future(), samples, ids)
        if self._waiting and not self._fits(query):
            self._close()
        if not self._waiting:
            # behind one more look at the sockets: more has come while others were computed
            loop.call_soon(loop.call_soon, self._close)
        self._waiting.append(query)
        if len(self._waiting) == self._most_queries:
            self._close()
        return self._wait(query)

    def _is_alone(self, call: InferCall) -> bool:
        """Whether nobody else is in flight, or the query's own way is recorded in a trace."""
        trace = call.traceparent
        recorded = trace is not None and int(trace[-1:], 16) & 1 == 1
        return self._metrics.in_flight < 2 or call.span is not None or recorded

    def _fits(self, query: _Waiting) -> bool:
        """Whether `query` may be joined with those that wait."""
        first = self._waiting[0].call
        return (
            sum(each.samples for each in self._waiting) + query.samples <= self._most_samples
            and sum(each.ids for each in self._waiting) + query.ids <= MOST_IDS
            and first.request.inputs.keys() == query.call.request.inputs.keys()
            and abs(first.deadline - query.call.deadline) < DEADLINE_S
        )

    async def _wait(self, query: _Waiting) -> InferAnswer:
        try:
            return await query.answer
        except asyncio.CancelledError:
            if query.group is not None:
                query.group.left()
            raise

    # -- all have come

    def _close(self) -> None:
        """Begin to answer the queries that wait."""
        waiting, self._waiting = self._waiting, []
        queries = [each for each in waiting if not each.answer.done()]
        if len(queries) > 1:
            try:
                answer = self._start(self._joined(queries), len(queries))
            except QueryError:  # one of them does not fit the model: it is told so, no other
                pass
            except ApartError:
                self._apart_until = asyncio.get_running_loop().time() + APART_S
            except Exception as error:  # the queries answer for it
                for each in queries:
                    each.fail(error)
                return
            else:
                self._metrics.coalesced += len(queries)
                self._follow(answer, queries)
                return
        for each in queries:
            try:
                answer = self._start(each.call, 1)
            except Exception as error:  # as above
                each.fail(error)
            else:
                self._follow(answer, [each])

    def _joined(self, queries: list[_Waiting]) -> InferCall:
        inputs = join([(each.call.request.inputs, each.spans) for each in queries])
        began = min(each.call.began for each in queries)
        deadline = min(each.call.deadline for each in queries)
        return InferCall(InferRequest(inputs), began, deadline)

    def _follow(
        self, answer: InferAnswer | Awaitable[InferAnswer], queries: list[_Waiting]
    ) -> None:
        """Hand `answer` out once it is there. From here on nobody needs the queries' bytes."""
        if isinstance(answer, InferAnswer):
            _hand_out(answer, queries)
            return
        group = _Group(queries)
        for each in queries:
            each.group = group
            each.call.request.inputs, each.call.origin = {}, None
        group.task = asyncio.get_running_loop().create_task(self._finish(answer, group))
        self._groups.add(group)

    async def _finish(self, answer: Awaitable[InferAnswer], group: _Group) -> None:
        try:
            _hand_out(await answer, group.queries)
        except Exception as error:  # as above
            for each in group.queries:
                each.fail(error)
        finally:
            self._groups.discard(group)


def open_coalescer(
    form: QueryForm, settings: Settings, start: Start, metrics: Metrics
) -> Coalescer | None:
    """What joins the queries of `form`; None where each is answered by itself."""
    most = settings.coalesced_queries
    return Coalescer(start, most, form.max_batch, metrics) if form.joins and most > 1 else None


def _hand_out(answer: InferAnswer, queries: Sequence[_Waiting]) -> None:
    """Give each of `queries` the part of `answer` that is its own."""
    if len(queries) == 1:
        queries[0].give(answer)
        return
    end = 0
    for each in queries:
        begin, end = end, end + each.samples
        outputs = {name: array[begin:end] for name, array in answer.outputs.items()}
        if answer.fault is None or all(all_finite(array) for array in outputs.values()):
            each.give(InferAnswer(outputs, answer.parameters))
        else:
            each.fail(answer.fault)
