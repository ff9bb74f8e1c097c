"""The gateway: bucketize, fan out, combine, predict.

    query → bucketize → resident rows, here ────────┐
                      → one call per touched shard ─┴→ combine → tower → prediction

All calls of a query start within one turn of the event loop; what is resident is pooled while
they are on their way; each partial is added when it comes. The first failure fails the query.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.embedding import default_partial
from erless.dlrm.rows import Bucket, Buckets
from erless.errors import ArtifactError, QueryError, ServeError
from erless.serve.app import Answer, Call
from erless.serve.client import Endpoint, Reply
from erless.serve.facts import model_facts
from erless.serve.fanout import Fan, Leg
from erless.serve.load import OpenGateway, open_gateway, open_tower
from erless.serve.metrics import Metrics
from erless.serve.remote import RemoteDense, RemoteShard
from erless.serve.settings import Settings
from erless.serve.sparse import source_of
from erless.serve.towers import Predict, open_predict
from erless.serve.wire import TensorSpec
from erless.specs.model import ModelSpec
from erless.specs.plan import Tier

__all__ = ["Gateway", "check_query", "load_gateway", "query_inputs"]

Floats = NDArray[np.float32]
IDLE_S = 5.0  # no query for so long: the next one touches every function
SWEEP_S = 1.0
NARROW = np.iinfo(np.int32).max


def query_inputs(model: ModelSpec) -> tuple[TensorSpec, ...]:
    """The tensors of a whole query to `model`."""
    return (
        TensorSpec("values", ("INT64", "INT32"), (-1,)),
        TensorSpec("lengths", ("INT32",), (len(model.tables), -1)),
        TensorSpec("dense", ("FP32",), (-1, model.dense_features)),
        TensorSpec("weights", ("FP32",), (-1,), optional=not model.has_weights),
    )


def check_query(inputs: dict[str, NDArray[Any]], max_batch: int) -> None:
    """What bucketize and the kernels do not check.

    Raises:
        QueryError: saying what does not fit.
    """
    dense, lengths, weights = inputs["dense"], inputs["lengths"], inputs.get("weights")
    batch = lengths.shape[1]
    if batch > max_batch:
        raise QueryError(f"{batch:,} samples, at most {max_batch:,} are taken")
    if len(dense) != batch:
        raise QueryError(f"dense has {len(dense):,} samples, lengths {batch:,}")
    for name, array in (("dense", dense), ("weights", weights)):
        if array is not None and not np.isfinite(array).all():
            position = [int(each) for each in np.argwhere(~np.isfinite(array))[0]]
            raise QueryError(f"{name}{position} is {array[tuple(position)]}: not a finite number")


def load_gateway(settings: Settings, metrics: Metrics) -> tuple[OpenGateway, Predict]:
    """Everything that the gateway holds: may run in any thread.

    Raises:
        ArtifactError: something is missing or altered, or a remote shard has no URL.
    """
    source = source_of(settings)
    opened = open_gateway(source, settings.digest)
    urls = settings.shard_urls or {}
    for shard in opened.release.remote:
        if shard.digest not in urls:
            raise ArtifactError(
                f"ERLESS_SHARD_URLS has no URL for shard {shard.name} ({shard.digest})"
            )
    if settings.dense_url:
        return opened, _elsewhere
    tower = open_tower(source, settings.digest)
    predict = open_predict(tower.path, tower.model, threads=settings.threads)
    tower.close()
    return opened, predict


def _elsewhere(dense: Floats, pooled: Floats) -> Floats:
    raise ServeError("the tower is a function of its own")


class Gateway:
    """Answers `prediction` for a whole query. Create it on the event loop.

    Args:
        opened: the release's gateway files.
        predict: the tower; not called where it is a function of its own.
        settings, metrics: of this process.
    """

    lane = None
    prompt = False

    def __init__(
        self, opened: OpenGateway, predict: Predict, settings: Settings, metrics: Metrics
    ) -> None:
        self._opened, self._predict = opened, predict
        self._settings, self._metrics = settings, metrics
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        release = opened.release
        self.model = release.model.name
        self.inputs = query_inputs(release.model)
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec("prediction", ("FP32",), (-1,)),)
        self.facts = model_facts(release.model)
        self.digest = release.digest
        urls = settings.shard_urls or {}
        self._remote = {
            number: RemoteShard(
                number,
                shard.name,
                shard.digest,
                self._endpoint(urls[shard.digest]),
                halves=settings.half_partials,
                keen=shard.tier is not Tier.FROZEN,
            )
            for number, shard in enumerate(release.shards)
            if number not in opened.resident
        }
        self._dense = None
        if settings.dense_url:
            self._dense = RemoteDense(release.tower.sha256, self._endpoint(settings.dense_url))
        self._dims = np.array([table.dim for table in release.model.tables], np.int64)
        self._held = [self._dims[list(each)] for each in opened.holdings]
        self._one_dim = int(self._dims[0]) if len(set(self._dims.tolist())) == 1 else 0
        self._narrow = max(table.rows for table in release.model.tables) <= NARROW
        self._last_query = -IDLE_S
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _endpoint(self, url: str) -> Endpoint:
        return Endpoint(url, self._settings.connection_age_s, self._retried)

    def _retried(self) -> None:
        self._metrics.retries += 1

    # -- a query

    def infer(self, call: Call) -> Awaitable[Answer]:
        """Predict."""
        inputs = call.request.inputs
        check_query(inputs, self._settings.max_batch)
        values = inputs["values"]
        if values.dtype == np.int64 and self._narrow:
            values = self._narrowed(values)
        weights = inputs.get("weights")
        buckets = self._opened.routing.bucketize(values, inputs["lengths"], weights)
        return self._answer(call, buckets)

    def _narrowed(self, values: NDArray[np.int64]) -> NDArray[Any]:
        """Ids as int32, half the bytes to shards; ids that do not fit stay, to be refused."""
        narrow = values.astype(np.int32)
        return narrow if np.array_equal(narrow, values) else values

    async def _answer(self, call: Call, buckets: Buckets) -> Answer:
        inputs = call.request.inputs
        now = self._now()
        idle, self._last_query = now - self._last_query > IDLE_S, now
        here = self._opened.resident
        touched = buckets.touched()
        remote = [number for number in touched if number not in here]
        out = self._opened.combiner.begin(buckets.batch)
        fan = Fan(self._loop, call.deadline)
        try:
            for number in remote:
                self._call_shard(fan, self._remote[number], buckets[number], out, call)
            self._metrics.fan_out += len(remote)
            if idle:
                self._prewarm(remote)
            if remote:
                await asyncio.sleep(0)  # the requests leave now
            self._opened.combiner.keep(out, buckets.split)
            self._metrics.gathers += buckets.split.kept
            for number in touched:
                if number in here:
                    self._pool_here(number, buckets[number], out)
            if remote:
                await fan.done
        finally:
            fan.settle()
        pooled = self._opened.combiner.finish(out, inputs["lengths"])
        prediction = await self._tower(fan, inputs["dense"], pooled, call)
        if not np.isfinite(prediction).all():
            raise QueryError("the prediction is not finite: a dense feature or weight is too large")
        return self._told(fan, prediction, len(remote) + (self._dense is not None))

    def _told(self, fan: Fan, prediction: Floats, fan_out: int) -> Answer:
        self._metrics.degraded += fan.degraded
        self._metrics.cold_starts += fan.cold
        return Answer(
            {"prediction": prediction},
            {
                "release": self.digest,
                "degraded": fan.degraded,
                "cold_start": fan.cold,
                "fan_out": fan_out,
            },
        )

    def _pool_here(self, number: int, bucket: Bucket, out: Floats) -> None:
        shard = self._opened.resident[number]
        partials = shard.pool_packed(bucket.values, bucket.lengths, bucket.weights)
        self._opened.combiner.add(out, number, partials, bucket.lengths, packed=True)
        self._metrics.gathers += len(bucket.values)

    def _left_ms(self, call: Call) -> int:
        return max(1, int((call.deadline - self._now()) * 1e3))

    def _call_shard(
        self, fan: Fan, remote: RemoteShard, bucket: Bucket, out: Floats, call: Call
    ) -> None:
        combine = self._opened.combiner.add

        def take(reply: Reply) -> None:
            partials = remote.read(reply, self._elements(remote, bucket), remote.halves)
            combine(out, remote.number, partials, bucket.lengths, packed=True)

        def stand_in() -> None:
            held = self._opened.holdings[remote.number]
            tables = [self._opened.release.model.tables[index] for index in held]
            vectors = self._opened.defaults[remote.number]
            partials = default_partial(tables, vectors, bucket.lengths, bucket.weights)
            combine(out, remote.number, partials, bucket.lengths)

        buffers = remote.request(bucket, self._left_ms(call), call.traceparent)
        Leg(
            self._loop, fan, remote, buffers, take,
            stand_in=stand_in if self._settings.cold_miss == "default" else None,
            hedge=self._hedged if self._settings.hedge else None,
        ).start()  # fmt: skip

    def _hedged(self) -> None:
        self._metrics.hedges += 1

    def _elements(self, remote: RemoteShard, bucket: Bucket) -> int:
        """Floats of the packed partial for `bucket`."""
        if self._one_dim:
            return int(np.count_nonzero(bucket.lengths)) * self._one_dim
        return int(np.count_nonzero(bucket.lengths, axis=1) @ self._held[remote.number])

    async def _tower(self, fan: Fan, dense: Floats, pooled: Floats, call: Call) -> Floats:
        remote = self._dense
        if remote is None:
            return self._predict(dense, pooled)
        answers: list[Floats] = []

        def take(reply: Reply) -> None:
            answers.append(np.array(remote.read(reply, len(dense)), np.float32))

        last = Fan(self._loop, call.deadline)
        buffers = remote.request(dense, pooled, self._left_ms(call), call.traceparent)
        Leg(self._loop, last, remote, buffers, take).start()
        self._metrics.fan_out += 1
        try:
            await last.done
        finally:
            last.settle()
        fan.cold = fan.cold or last.cold
        return answers[0]

    # -- waking

    def _prewarm(self, called: list[int]) -> None:
        """The first query after idle wakes all functions at once, frozen ones excepted."""
        for number, remote in self._remote.items():
            if number not in called and remote.keen and not remote.endpoint.connected:
                remote.touch()
        if self._dense is not None and not self._dense.endpoint.connected:
            self._dense.touch()

    def _sweep(self) -> None:
        for each in self._everything():
            each.endpoint.sweep()
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _everything(self) -> list[RemoteShard | RemoteDense]:
        return [*self._remote.values(), *([self._dense] if self._dense else [])]

    def close(self) -> None:
        """Close all connections and give back what was opened."""
        self._sweeper.cancel()
        for each in self._everything():
            each.endpoint.close()
        self._opened.close()
