"""Queries that come together are joined, and each gets the answer that it would have got alone."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from erless.errors import QueryError, ServeError
from erless.serve.metrics import Metrics
from erless.serve.protocol.coalescing import (
    APART_S,
    MOST_IDS,
    ApartError,
    Coalescer,
    join,
    spans,
)
from erless.serve.protocol.infer import InferRequest
from erless.serve.protocol.served import InferAnswer, InferCall

Inputs = dict[str, NDArray[Any]]
SOON_S = 30.0
UNSAMPLED = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
SAMPLED = UNSAMPLED[:-1] + b"1"


def inputs_of(bags: list[list[list[int]]], dense: float = 0.0, *, weights: bool = False) -> Inputs:
    """A query of `bags[lookup][sample]`."""
    ids = [row for lookup in bags for bag in lookup for row in bag]
    samples = len(bags[0])
    made: Inputs = {
        "values": np.array(ids, np.int64),
        "lengths": np.array([[len(bag) for bag in lookup] for lookup in bags], np.int32),
        "dense": np.full((samples, 2), dense, np.float32),
    }
    if weights:
        made["weights"] = np.array(ids, np.float32) / 2
    return made


def bags_of(inputs: Inputs, name: str = "values") -> list[list[list[float]]]:
    """The other way round."""
    at, found = 0, []
    for lookup in inputs["lengths"]:
        bags = []
        for size in lookup:
            bags.append(inputs[name][at : at + size].tolist())
            at += size
        found.append(bags)
    assert at == len(inputs[name])
    return found


@st.composite
def several(draw: st.DrawFn) -> list[list[list[list[int]]]]:
    """Queries as bags, of the same lookups."""
    lookups = draw(st.integers(1, 4))
    bag = st.lists(st.integers(0, 1 << 40), max_size=4)
    query = st.integers(0, 3).flatmap(
        lambda samples: st.lists(
            st.lists(bag, min_size=samples, max_size=samples), min_size=lookups, max_size=lookups
        )
    )
    return draw(st.lists(query, min_size=1, max_size=5))


@given(several(), st.booleans())
def test_all_samples_in_order(queries: list[list[list[list[int]]]], weights: bool) -> None:
    each = [inputs_of(bags, float(n), weights=weights) for n, bags in enumerate(queries)]
    with_spans = []
    for inputs in each:
        own = spans(inputs)
        assert own is not None
        with_spans.append((inputs, own))
    joined = join(with_spans)
    expected = [
        [bag for bags in queries for bag in bags[lookup]] for lookup in range(len(queries[0]))
    ]
    assert bags_of(joined) == expected
    if weights:
        halves = [[[row / 2 for row in bag] for bag in lookup] for lookup in expected]
        assert bags_of(joined, "weights") == [
            [[float(np.float32(half)) for half in bag] for bag in lookup] for lookup in halves
        ]
    dense = [float(n) for n, bags in enumerate(queries) for _ in bags[0]]
    assert joined["dense"][:, 1].tolist() == dense


@pytest.mark.parametrize(
    ("lengths", "ids"), [([[1, 2]], 2), ([[1, 2]], 4), ([[3], [-1]], 2), ([[]], 1)]
)
def test_lengths_that_do_not_fit_are_not_joined(lengths: list[list[int]], ids: int) -> None:
    inputs: Inputs = {"lengths": np.array(lengths, np.int32), "values": np.zeros(ids, np.int64)}
    assert spans(inputs) is None


class Model:
    """Predicts the sum of a sample's ids and dense numbers, later; no id may be negative."""

    def __init__(self, most: int = 8, samples: int = 4096) -> None:
        self.metrics = Metrics("gateway", "", "", "0", time.monotonic)
        self.metrics.in_flight = 8
        self.coalescer = Coalescer(self.start, most, samples, self.metrics)
        self.asked: list[int] = []  # queries of each call
        self.deadlines: list[float] = []
        self.cancelled = 0
        self.go = asyncio.Event()
        self.go.set()
        self.error: Exception | None = None
        self.apart = False

    def start(self, call: InferCall, queries: int) -> Awaitable[InferAnswer]:
        inputs = call.request.inputs
        if inputs["values"].min(initial=0) < 0:
            raise QueryError("an id is negative")
        if self.apart and queries > 1:
            raise ApartError
        self.asked.append(queries)
        self.deadlines.append(call.deadline)
        if self.error is not None:
            raise self.error
        sums = inputs["dense"].sum(axis=1)
        for lookup in bags_of(inputs):
            sums += np.array([sum(bag) for bag in lookup], np.float32)
        return self.later(sums, queries)

    def cancels(self) -> int:
        """Calls that nobody waited for any more."""
        return self.cancelled

    async def later(self, sums: NDArray[np.float32], queries: int) -> InferAnswer:
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        fault = None if np.isfinite(sums).all() else QueryError("not finite")
        if fault is not None and queries == 1:
            raise fault
        return InferAnswer({"prediction": sums}, {"asked": queries}, fault)

    def ask(
        self,
        ids: list[int],
        dense: float = 0.0,
        deadline: float = 1e9,
        trace: bytes | None = None,
        *,
        weights: bool = False,
    ) -> asyncio.Task[InferAnswer]:
        """A query whose every sample has one id."""
        inputs = inputs_of([[[row] for row in ids]], dense, weights=weights)
        call = InferCall(InferRequest(inputs), 0.0, deadline, trace)

        async def answered() -> InferAnswer:
            answer = self.coalescer.answer(call)
            return answer if isinstance(answer, InferAnswer) else await answer

        return asyncio.get_running_loop().create_task(answered())


def predictions(answers: list[InferAnswer]) -> list[list[float]]:
    return [answer.outputs["prediction"].tolist() for answer in answers]


async def both(*tasks: asyncio.Task[InferAnswer]) -> list[Any]:
    """What each came to, an error included."""
    async with asyncio.timeout(SOON_S):
        return await asyncio.gather(*tasks, return_exceptions=True)


def test_one_call_and_own_answers() -> None:
    async def scenario() -> None:
        model = Model()
        tasks = [model.ask([n] * n, dense=n / 2) for n in (1, 3, 2)]
        answers = await both(*tasks)
        assert predictions(answers) == [[2.0], [6.0] * 3, [4.0] * 2]
        assert model.asked == [3]
        assert model.metrics.coalesced == 3
        assert [answer.parameters for answer in answers] == [{"asked": 3}] * 3

    asyncio.run(scenario())


def test_who_is_alone_is_not_made_to_wait() -> None:
    async def scenario() -> None:
        model = Model()
        model.metrics.in_flight = 1
        assert predictions(await both(model.ask([5]), model.ask([6]))) == [[5.0], [6.0]]
        assert model.asked == [1, 1]
        assert model.metrics.coalesced == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(("most", "samples", "asked"), [(2, 99, [2, 2, 1]), (8, 4, [2, 2, 1])])
def test_no_more_than_allowed(most: int, samples: int, asked: list[int]) -> None:
    async def scenario() -> None:
        model = Model(most, samples)
        answers = await both(*(model.ask([n, n]) for n in range(5)))
        assert predictions(answers) == [[float(n)] * 2 for n in range(5)]
        assert model.asked == asked

    asyncio.run(scenario())


def test_many_ids_are_not_joined_with_others() -> None:
    async def scenario() -> None:
        model = Model()
        await both(model.ask([1]), model.ask([0] * (MOST_IDS // 4)), model.ask([0] * MOST_IDS))
        assert model.asked == [1, 1, 1]  # more samples, or more ids, than are joined

    asyncio.run(scenario())


def test_what_differs_is_not_joined() -> None:
    async def scenario() -> None:
        model = Model()
        await both(
            model.ask([1], deadline=10.0),
            model.ask([1], deadline=10.01),
            model.ask([1], deadline=20.0),
            model.ask([1], deadline=20.0, weights=True),
            model.ask([1], deadline=20.0, weights=True, trace=SAMPLED),
            model.ask([1], deadline=20.0, weights=True, trace=UNSAMPLED),
        )
        assert sorted(model.asked) == [1, 1, 2, 2]
        assert min(model.deadlines) == 10.0
        assert sorted(model.deadlines) == [10.0, 20.0, 20.0, 20.0]

    asyncio.run(scenario())


def test_one_that_does_not_fit_harms_no_other() -> None:
    async def scenario() -> None:
        model = Model()
        first, bad, last = await both(model.ask([1]), model.ask([-1]), model.ask([3]))
        assert predictions([first, last]) == [[1.0], [3.0]]
        assert isinstance(bad, QueryError)
        assert model.asked == [1, 1]

    asyncio.run(scenario())


def test_queries_that_shall_not_wait_for_each_other() -> None:
    """They are answered one by one, and the next without being joined first."""

    async def scenario() -> None:
        model = Model()
        model.apart = True
        assert predictions(await both(model.ask([1]), model.ask([2]))) == [[1.0], [2.0]]
        model.apart = False
        assert predictions(await both(model.ask([3]), model.ask([4]))) == [[3.0], [4.0]]
        assert model.asked == [1] * 4
        await asyncio.sleep(APART_S + 0.05)
        await both(model.ask([5]), model.ask([6]))
        assert model.asked == [1] * 4 + [2]

    asyncio.run(scenario())


def test_outputs_that_are_not_finite_are_their_own_querys() -> None:
    async def scenario() -> None:
        model = Model()
        first, bad, last = await both(model.ask([1]), model.ask([2], math.inf), model.ask([3]))
        assert predictions([first, last]) == [[1.0], [3.0]]
        assert isinstance(bad, QueryError)
        assert model.asked == [3]

    asyncio.run(scenario())


def test_a_shards_failure_is_all_queries() -> None:
    async def scenario() -> None:
        model = Model()
        model.error = ServeError("shard cold is overloaded", 503, "overload")
        errors = await both(model.ask([1]), model.ask([2]))
        assert [type(error) for error in errors] == [ServeError] * 2
        assert model.asked == [2]

    asyncio.run(scenario())


def test_the_call_goes_on_as_long_as_one_client_waits() -> None:
    async def scenario() -> None:
        model = Model()
        model.go.clear()
        tasks = [model.ask([n]) for n in range(3)]
        while not model.asked:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        for task in tasks[:2]:
            task.cancel()
        await asyncio.sleep(0.01)
        assert model.cancels() == 0
        model.go.set()
        assert predictions(await both(tasks[2])) == [[2.0]]
        model.go.clear()
        tasks = [model.ask([n]) for n in range(3)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0.01)
        assert model.cancels() == 1

    asyncio.run(scenario())


def test_who_left_before_the_turn_ended_is_not_asked_for() -> None:
    async def scenario() -> None:
        model = Model()
        calls = [InferCall(InferRequest(inputs_of([[[n]]])), 0.0, 1e9) for n in (1, 2)]
        awaited = [asyncio.ensure_future(model.coalescer.answer(call)) for call in calls]  # type: ignore[arg-type]
        model.coalescer._waiting[0].answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaited[0]
        assert predictions([await awaited[1]]) == [[2.0]]
        assert model.asked == [1]

    asyncio.run(scenario())
