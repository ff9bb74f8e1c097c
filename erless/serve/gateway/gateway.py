"""The gateway: bucketize, fan out, combine, predict.

    query → bucketize → resident rows, here ────────┐
                      → one call per touched shard ─┴→ combine → tower → prediction

All calls of a query start within one turn of the event loop; what is resident is pooled while
they are on their way; each partial is added when it comes. The first failure fails the query.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.rows import Buckets
from erless.errors import ArtifactError, ServeError
from erless.http.client.endpoint import Endpoint
from erless.serve.files import OpenGateway, open_gateway, open_tower, source_of
from erless.serve.gateway.error_budget import ErrorBudget
from erless.serve.gateway.fan_out import FanOut, ShardCall, ShardWork
from erless.serve.gateway.remote import RemoteDense, RemoteShard
from erless.serve.gateway.work import DenseWork, SparseWork
from erless.serve.malloc import HeapTrimmer
from erless.serve.metrics import Metrics
from erless.serve.protocol.metadata import model_facts
from erless.serve.protocol.queries import check_query, not_finite, query_bytes, query_inputs
from erless.serve.protocol.served import InferAnswer, InferCall
from erless.serve.protocol.tensors import InferRequest, TensorSpec
from erless.serve.secrets import open_secret
from erless.serve.settings import Settings
from erless.serve.towers import Predict, open_predict
from erless.specs.plan import Tier

__all__ = ["Gateway", "load_gateway"]

Floats = NDArray[np.float32]
IDLE_S = 5.0  # no query for so long: the next one touches every function
SWEEP_S = 1.0
REPEATED_SHARE = 0.1  # of queries whose silent calls are sent again, in the long run
SHARED_WRITE = 8  # calls to a shard, of queries that came at once


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


@dataclass(slots=True)
class _FannedOut:
    """A query of which `calls` shards have been asked; partials arrive in `out` (B, T, D).

    `here`: further resident shards, with rows of the same tables.
    """

    fan_out: FanOut
    buckets: Buckets
    out: Floats
    calls: int
    here: list[int]


class Gateway:
    """Answers `prediction` for a whole query. Create it on the event loop.

    Args:
        opened: the release's gateway files.
        predict: the tower; not called where it is a function of its own.
        settings, metrics: of this process.
    """

    fast_path = None
    request_parameters: frozenset[str] = frozenset()
    answers_synchronously = False

    def __init__(
        self, opened: OpenGateway, predict: Predict, settings: Settings, metrics: Metrics
    ) -> None:
        self._opened, self._predict = opened, predict
        self._settings, self._metrics = settings, metrics
        self._loop = asyncio.get_running_loop()
        self._now = time.monotonic  # the loop's clock, but finer
        release = opened.release
        self.model = release.model.name
        self.inputs = query_inputs(release.model)
        self._max_batch = release.model.largest_batch(settings.max_batch)
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec("prediction", ("FP32",), (-1,)),)
        self.facts = model_facts(release.model)
        self.digest, self.mapped = release.digest, opened.mapped
        urls = settings.shard_urls or {}
        secret = open_secret(settings, self._now)
        shown = secret.shown if secret else None
        self._remote = {
            number: RemoteShard(
                number,
                shard.name,
                shard.digest,
                self._endpoint(urls[shard.digest], SHARED_WRITE),
                places=opened.combiner.places(number),
                float16_partials=settings.float16_partials,
                prewarm=shard.tier is not Tier.FROZEN,
                secret=shown,
            )
            for number, shard in enumerate(release.shards)
            if number not in opened.resident
        }
        self._dense = None
        if settings.dense_url:
            self._dense = RemoteDense(
                release.tower.sha256, self._endpoint(settings.dense_url), shown
            )
        self._error_budget = (
            ErrorBudget(settings.degraded_share) if settings.cold_miss == "default" else None
        )
        self._repeats = ErrorBudget(REPEATED_SHARE)
        self._trimmer = HeapTrimmer()
        self._last_query = -IDLE_S
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _endpoint(self, url: str, batch: int = 1) -> Endpoint:
        return Endpoint(url, self._settings.connection_age_s, self._retried, batch)

    def _retried(self) -> None:
        self._metrics.retries += 1

    # -- a query

    def memory_bytes(self, request: InferRequest) -> int:
        """As `query_bytes`."""
        return query_bytes(self._opened.release.model, request.inputs)

    def infer(self, call: InferCall) -> Awaitable[InferAnswer]:
        """Predict."""
        inputs = call.request.inputs
        self._trimmer.observe(self._metrics.in_flight)
        check_query(inputs, self._max_batch)
        buckets = self._opened.routing.bucketize(
            inputs["values"], inputs["lengths"], inputs.get("weights")
        )
        # what is still needed is copied, so that a query that waits does not hold its whole body
        call.request.inputs = {
            name: inputs[name].copy() for name in ("dense", "lengths", "weights") if name in inputs
        }
        return self._answer(call, self._fan_out(call, buckets))

    def _fan_out(self, call: InferCall, buckets: Buckets) -> _FannedOut:
        """Ask the shards, before any other query of this turn is computed with."""
        opened, now = self._opened, self._now()
        idle, self._last_query = now - self._last_query > IDLE_S, now
        if self._error_budget is not None:
            self._error_budget.earn()
        remote: list[int] = []
        here: list[int] = []
        for number in buckets.touched():
            (here if number in opened.resident else remote).append(number)
        out = opened.combiner.begin(buckets.batch)
        self._repeats.earn()
        fan_out = FanOut(self._loop, call.deadline, self._repeats)
        try:
            for number in remote:
                self._call(
                    fan_out, SparseWork(opened, self._remote[number], buckets, out, call, now)
                )
        except BaseException:
            fan_out.settle()
            raise
        self._metrics.fan_out += len(remote)
        if idle:
            self._prewarm(remote)
        return _FannedOut(fan_out, buckets, out, len(remote), here)

    async def _answer(self, call: InferCall, fanned: _FannedOut) -> InferAnswer:
        inputs, opened = call.request.inputs, self._opened
        fan_out, buckets, out = fanned.fan_out, fanned.buckets, fanned.out
        try:
            opened.combiner.keep(out, buckets.split)
            self._metrics.gathers += buckets.kept
            self._pool_here(fanned)
            if fanned.calls:
                await fan_out.done
        except asyncio.CancelledError:
            fan_out.give_up()
            raise
        finally:
            fan_out.settle()
        pooled = opened.combiner.finish(out, inputs["lengths"])
        prediction = await self._tower(fan_out, inputs["dense"], pooled, call)
        if not np.isfinite(prediction).all():
            raise not_finite(pooled, call.request.inputs.get("weights"))
        return self._build_answer(fan_out, prediction, fanned.calls + (self._dense is not None))

    def _call(self, fan_out: FanOut, work: ShardWork) -> None:
        ShardCall(
            self._loop,
            fan_out,
            work,
            error_budget=self._error_budget,
            hedge=self._hedged if self._settings.hedge else None,
        ).start()

    def _pool_here(self, fanned: _FannedOut) -> None:
        """Rows of a second resident shard that holds rows of the same table."""
        for number in fanned.here:
            values, lengths, weights = fanned.buckets[number]
            partials = self._opened.resident[number].pool_packed(values, lengths, weights)
            self._opened.combiner.add(fanned.out, number, partials, lengths, packed=True)
            self._metrics.gathers += len(values)

    def _build_answer(self, fan_out: FanOut, prediction: Floats, calls: int) -> InferAnswer:
        self._metrics.degraded += fan_out.degraded
        self._metrics.cold_starts += fan_out.cold
        return InferAnswer(
            {"prediction": prediction},
            {
                "release": self.digest,
                "degraded": fan_out.degraded,
                "cold_start": fan_out.cold,
                "fan_out": calls,
            },
        )

    def _hedged(self) -> None:
        self._metrics.hedges += 1

    async def _tower(
        self, fan_out: FanOut, dense: Floats, pooled: Floats, call: InferCall
    ) -> Floats:
        if self._dense is None:
            return self._predict(dense, pooled)
        last = FanOut(self._loop, call.deadline, self._repeats)
        work = DenseWork(self._dense, dense, pooled, call, self._now())
        self._metrics.fan_out += 1
        ShardCall(self._loop, last, work).start()
        try:
            await last.done
        except asyncio.CancelledError:
            last.give_up()
            raise
        finally:
            last.settle()
        fan_out.cold = fan_out.cold or last.cold
        return work.prediction

    # -- waking

    def _prewarm(self, called: list[int]) -> None:
        """The first query after idle wakes all functions at once, frozen ones excepted."""
        for number, remote in self._remote.items():
            if number not in called and remote.prewarm and not remote.endpoint.connected:
                remote.touch()
        if self._dense is not None and not self._dense.endpoint.connected:
            self._dense.touch()

    def _sweep(self) -> None:
        for remote in self._everything():
            remote.endpoint.sweep()
        self._trimmer.sweep(self._metrics.in_flight, self._now())
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _everything(self) -> list[RemoteShard | RemoteDense]:
        return [*self._remote.values(), *([self._dense] if self._dense else [])]

    def close(self) -> None:
        """Close all connections and give back what was opened."""
        self._sweeper.cancel()
        for remote in self._everything():
            remote.endpoint.close()
        self._opened.close()
