"""The gateway: bucketize, fan out, combine, predict.

    query → bucketize → rows in the gateway ────────┐
                      → one call per touched shard ─┴→ combine → tower → prediction

All calls of a query start within one turn of the event loop; what is resident is pooled while
they are on their way; each partial is added when it comes. The first failure fails the query.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.bfloat16 import all_finite
from erless.dlrm.embedding import Combiner
from erless.dlrm.graph_archives import open_lookup
from erless.dlrm.lanes import LaneSums
from erless.dlrm.rows import Buckets
from erless.errors import ArtifactError, ErlessError, ServeError
from erless.http.client.endpoint import Endpoint
from erless.http.messages import Request
from erless.serve.files import OpenGateway, open_gateway, open_tower, source_of
from erless.serve.gateway.error_budget import ErrorBudget
from erless.serve.gateway.fan_out import FanOut, ShardCall, ShardWork
from erless.serve.gateway.first_start import release_answers, wait_for_functions
from erless.serve.gateway.follower import GenerationFollower
from erless.serve.gateway.ids_in_order import IdsInOrder
from erless.serve.gateway.live_heat import HeatSampler
from erless.serve.gateway.remote import RemoteDense, RemoteShard
from erless.serve.gateway.silence import Resends
from erless.serve.gateway.traced_call import TracedCall
from erless.serve.gateway.view import GatewayGenerations, GatewayParts, GatewayView
from erless.serve.gateway.work import DenseWork, SparseWork
from erless.serve.identity import peers
from erless.serve.logs import Log
from erless.serve.malloc import HeapTrimmer
from erless.serve.metrics import Metrics
from erless.serve.protocol.coalescing import ApartError, open_coalescer
from erless.serve.protocol.forms import KjtForm, OpenQuery, QueryForm, SharedKjtForm
from erless.serve.protocol.graph import GraphForm
from erless.serve.protocol.infer import InferRequest
from erless.serve.protocol.metadata import model_facts
from erless.serve.protocol.served import InferAnswer, InferCall
from erless.serve.secrets import open_secret
from erless.serve.settings import Settings
from erless.serve.towers import PredictTensors, open_named_tower
from erless.specs.model import GraphTower
from erless.specs.plan import Tier

if TYPE_CHECKING:
    from erless.serve.spans import QuerySpan

__all__ = ["Gateway", "LoadedGateway", "load_gateway"]

Floats = NDArray[np.float32]
Array = NDArray[Any]
IDLE_S = 5.0  # no query for so long: the next one touches every function
SWEEP_S = 1.0
FAR_S, FAR = 0.02, 4.0  # who takes longer, and so many times another's p95, is not waited for
SHARED_WRITE = 8  # calls to a shard, of queries that came at once


@dataclass(frozen=True, slots=True)
class LoadedGateway:
    """Everything that a gateway holds.

    Args:
        form: of the model's queries.
        parts: rows, routing and tower of the newest generation.
        generations: where further ones come from.
        released: the release's own files, to be closed at the end.
    """

    form: QueryForm
    parts: GatewayParts
    generations: GatewayGenerations
    released: OpenGateway


def load_gateway(settings: Settings) -> LoadedGateway:
    """Open the release and its newest generation: may run in any thread.

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
    model, elsewhere = opened.release.model, settings.dense_url is not None
    with open_tower(source, settings.digest) as tower:
        form: QueryForm
        if isinstance(model.tower, GraphTower):
            form = GraphForm(
                open_lookup(model, tower.files, threads=settings.threads), settings.max_batch
            )
        else:
            form = (KjtForm if model.plain else SharedKjtForm)(model, settings.max_batch)
        predict: PredictTensors = _no_tower
        if not elsewhere:
            predict = open_named_tower(tower.path, model, threads=settings.threads)
    generations = GatewayGenerations(settings, source, GatewayParts(None, opened, predict))
    return LoadedGateway(form, generations.newest(), generations, opened)


def _no_tower(tensors: Mapping[str, Array]) -> dict[str, Array]:
    raise ServeError("the tower is a function of its own")


def _part_of(
    call: InferCall, remote: RemoteShard | RemoteDense
) -> tuple[InferCall, QuerySpan | None]:
    """The part of a query that a function is asked, and its span where the query is traced."""
    if call.span is None:
        return call, None
    span = call.span.child(remote.label, "client", **{"erless.digest": remote.digest})
    return replace(call, traceparent=span.traceparent), span


def _are_alike(endpoints: Sequence[Endpoint]) -> bool:
    """Whether a query that needs some of these functions loses little by waiting for all."""
    known = [endpoint.p95_s for endpoint in endpoints if endpoint.p95_s < math.inf]
    usual = max(FAR_S, FAR * min(known, default=0.0))
    return all(endpoint.awake and endpoint.waited_s < usual for endpoint in endpoints) and (
        max(known, default=0.0) < usual
    )


@dataclass(slots=True)
class _FannedOut:
    """A query of which `calls` shards have been asked; `sums` adds their partials to `out`.

    All of it is answered with `view`. Of a plain model `out` is (B, T, D).

    `resident`: numbers of further resident shards, with rows of the same tables.
    """

    view: GatewayView
    fan_out: FanOut
    query: OpenQuery
    buckets: Buckets
    lanes: LaneSums | None
    sums: Combiner | LaneSums
    out: Floats
    calls: int
    resident: list[int]


class Gateway:
    """Answers a whole query with the model's outputs. Create it on the event loop.

    Args:
        loaded: what it holds.
        settings, metrics: of this process.
    """

    open_version = None
    fast_path = None
    request_parameters: frozenset[str] = frozenset()
    answers_synchronously = False
    decoy = False

    def __init__(
        self,
        loaded: LoadedGateway,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        opened, form, generations = loaded.released, loaded.form, loaded.generations
        self._released = opened
        self._settings, self._metrics = settings, metrics
        self._loop = asyncio.get_running_loop()
        self._now = time.monotonic  # the loop's clock, but finer
        release = opened.release
        self.model = self.version_path = release.model.name
        self._form = form
        self.inputs, self.outputs = form.inputs, form.outputs
        self.digest, self.mapped = release.digest, opened.mapped
        urls = settings.shard_urls or {}
        secret = open_secret(settings, self._now)
        self._shown = secret.shown if secret else None
        self._log = log = Log(settings.log, function=settings.kind, digest=settings.digest[:12])
        self._peer = peers(settings, log.warning)
        self._endpoints = {
            number: self._endpoint(urls[shard.digest], "sparse", shard.digest, SHARED_WRITE)
            for number, shard in enumerate(release.shards)
            if number not in opened.resident
        }
        self._dense_endpoint = None
        if settings.dense_url:
            tower = release.tower.sha256
            self._dense_endpoint = self._endpoint(settings.dense_url, "dense", tower)
        self._view = self._view_of(loaded.parts, None)
        metrics.gauge(
            "changed_bytes",
            "rows that generations changed",
            lambda: generations.size_bytes,
        )
        self._follower: GenerationFollower | None = None
        if settings.follow_s:
            self._follower = GenerationFollower(
                generations,
                lambda: self._view,
                lambda parts: self._view_of(parts, self._view),
                self._adopt,
                settings.follow_s,
                metrics,
                log,
            )
        self._sampler: HeatSampler | None = None
        if settings.sample:
            self._sampler = HeatSampler(opened, source_of(settings), settings, metrics, log)
        self._coalescer = open_coalescer(form, settings, self._start, metrics)
        self._in_order: IdsInOrder | None = None
        self._error_budget = (
            ErrorBudget(settings.degraded_share) if settings.cold_miss == "default" else None
        )
        self._resends = Resends(metrics)
        self._trimmer = HeapTrimmer()
        self._last_query = -IDLE_S
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _view_of(self, parts: GatewayParts, before: GatewayView | None) -> GatewayView:
        """The view of a generation. Functions that it does not change are those from `before`."""
        states = parts.generation.states if parts.generation else {}
        remote = {}
        for number, endpoint in self._endpoints.items():
            shard = self._released.release.shards[number]
            state = states.get(shard.digest)
            known = before.remote.get(number) if before else None
            if known is not None and known.digest == (state or shard.digest):
                remote[number] = known
                continue
            remote[number] = RemoteShard(
                number,
                shard.name,
                state or shard.digest,
                endpoint,
                places=self._released.combiner.places(number),
                float16_partials=self._settings.float16_partials,
                secret=self._shown,
                path=f"shard/versions/{state}" if state else "shard",
            )
        return GatewayView(parts, remote, self._dense_of(parts, before))

    def _dense_of(self, parts: GatewayParts, before: GatewayView | None) -> RemoteDense | None:
        """The dense function as a generation has it; None: the tower is inside the gateway."""
        if self._dense_endpoint is None:
            return None
        release = self._released.release
        changed = parts.generation.tower if parts.generation else None
        sha256 = (changed or release.tower).sha256
        known = before.dense if before else None
        if known is not None and known.digest == sha256:
            return known
        return RemoteDense(
            sha256,
            self._dense_endpoint,
            self._shown,
            self._form.outputs if isinstance(release.model.tower, GraphTower) else None,
            f"tower/versions/{sha256}" if sha256 != release.tower.sha256 else "tower",
        )

    def _adopt(self, view: GatewayView) -> None:
        """Answer all queries that come from now on with `view`."""
        self._view = view

    @property
    def facts(self) -> dict[str, Any]:
        """Of the model, and the generation that answers."""
        facts = model_facts(self._released.release.model)
        facts["generation"] = self._view.parts.number
        manifest = self._view.parts.generation
        if manifest is not None:
            facts["generation_age_s"] = round(max(0.0, time.time() - manifest.made_at_s), 1)
        if self._follower is not None and self._follower.reason:
            facts["generation_waits_for"] = self._follower.reason
        return facts

    def _endpoint(self, url: str, kind: str, digest: str, batch: int = 1) -> Endpoint:
        tls = self._peer(url, kind, digest)
        age_s = self._settings.connection_age_s
        return Endpoint(url, age_s, self._retried, batch, self._distrusted, tls)

    def _retried(self) -> None:
        self._metrics.retries += 1

    def _distrusted(self) -> None:
        self._metrics.silent_connections += 1

    def watch_ids(self, tell: Callable[[Request, str], None]) -> None:
        """As `WatchesIds.watch_ids`."""
        self._in_order = IdsInOrder(self._released.release.model, self._now, tell)

    # -- a query

    def memory_bytes(self, request: InferRequest) -> int:
        """As `QueryForm.memory_bytes`."""
        return self._form.memory_bytes(request.inputs)

    def infer(self, call: InferCall) -> InferAnswer | Awaitable[InferAnswer]:
        """Predict."""
        self._trimmer.observe(self._metrics.in_flight)
        self._form.check(call.request.inputs)
        if self._sampler is not None and self._sampler.is_sampled():
            return self._start(call, sampler=self._sampler)
        if self._coalescer is None or self._in_order is not None:
            return self._start(call)
        return self._coalescer.answer(call)

    def _start(
        self, call: InferCall, queries: int = 1, *, sampler: HeatSampler | None = None
    ) -> Awaitable[InferAnswer]:
        """Sort the ids of `call`, which stands for so many queries, and ask the shards."""
        view = self._view
        query = self._form.open(call.request.inputs)
        buckets = query.lookup.bucketize(view.opened.routing)
        if sampler is not None:
            sampler.take(query.lookup, buckets, query.batch)
        if self._in_order is not None and call.origin is not None:
            self._in_order.observe(call.origin, query.lookup)
        query.lookup.forget_ids()
        if query.graph is not None:
            self._metrics.unknown_ids(query.graph.unknown)
        call.request.inputs, call.origin = {}, None  # a query that waits does not hold its body
        return self._answer(call, self._fan_out(call, queries, view, query, buckets))

    def _fan_out(
        self, call: InferCall, queries: int, view: GatewayView, query: OpenQuery, buckets: Buckets
    ) -> _FannedOut:
        """Ask the shards, before any other query of this turn is computed with."""
        opened = view.opened
        remote: list[int] = []
        resident: list[int] = []
        for number in buckets.touched():
            (resident if number in opened.resident else remote).append(number)
        if queries > 1 and not _are_alike([view.remote[number].endpoint for number in remote]):
            raise ApartError
        now = self._now()
        idle, self._last_query = now - self._last_query > IDLE_S, now
        if self._error_budget is not None:
            self._error_budget.earn(queries)
        lanes = self._form.sums(query, opened.lane_holdings)
        sums = opened.combiner if lanes is None else lanes
        out = opened.combiner.begin(buckets.batch) if lanes is None else lanes.out
        self._resends.earn(len(remote))
        fan_out = FanOut(self._loop, call.deadline, self._resends, queries)
        hedge = self._hedged if self._settings.hedge else None
        try:
            for number in remote:
                remote_shard = view.remote[number]
                part, span = _part_of(call, remote_shard)
                work = SparseWork(opened, remote_shard, buckets, sums, out, part, now)
                self._call(fan_out, work, span, self._error_budget, hedge)
        except BaseException:
            fan_out.settle()
            raise
        self._metrics.fan_out += len(remote)
        if idle:
            self._prewarm(remote)
        return _FannedOut(view, fan_out, query, buckets, lanes, sums, out, len(remote), resident)

    async def _answer(self, call: InferCall, fanned: _FannedOut) -> InferAnswer:
        fan_out, buckets, sums = fanned.fan_out, fanned.buckets, fanned.sums
        query, form = fanned.query, self._form
        try:
            sums.keep(fanned.out, buckets.split)
            self._metrics.gathers += buckets.kept
            self._pool_resident(fanned)
            if fanned.calls:
                await fan_out.done
        except asyncio.CancelledError:
            fan_out.give_up()
            raise
        finally:
            fan_out.settle()
        pooled = sums.finish(fanned.out, query.lookup.finishing)
        tensors = form.tower_inputs(query, fanned.lanes, pooled)
        outputs = form.finish(query, await self._tower(fanned, tensors, call))
        fault = None
        if not all(map(all_finite, outputs.values())):
            fault = form.not_finite(query, pooled)
            if fan_out.queries == 1:
                raise fault
        return self._build_answer(fanned, outputs, fault)

    def _call(
        self,
        fan_out: FanOut,
        work: ShardWork,
        span: QuerySpan | None,
        error_budget: ErrorBudget | None = None,
        hedge: Callable[[], None] | None = None,
    ) -> None:
        """Call a function, and record that where the query is traced. As `ShardCall`."""
        loop = self._loop
        if span is None:
            call = ShardCall(loop, fan_out, work, error_budget=error_budget, hedge=hedge)
        else:
            call = TracedCall(span, loop, fan_out, work, error_budget=error_budget, hedge=hedge)
        call.start()

    def _pool_resident(self, fanned: _FannedOut) -> None:
        """Rows of a second resident shard that holds rows of the same table."""
        for number in fanned.resident:
            values, lengths, weights = fanned.buckets[number]
            bags = fanned.buckets.bags(number)
            partials = fanned.view.opened.resident[number].pool_packed(
                values, lengths, weights, bags
            )
            fanned.sums.add(fanned.out, number, partials, lengths, packed=True)
            self._metrics.gathers += len(values)

    def _build_answer(
        self, fanned: _FannedOut, outputs: dict[str, Array], fault: ErlessError | None
    ) -> InferAnswer:
        fan_out = fanned.fan_out
        self._metrics.degraded += fan_out.degraded * fan_out.queries
        self._metrics.cold_starts += fan_out.cold * fan_out.queries
        return InferAnswer(
            outputs,
            {
                "release": self.digest,
                "generation": fanned.view.parts.number,
                "degraded": fan_out.degraded,
                "cold_start": fan_out.cold,
                "fan_out": fanned.calls + (fanned.view.dense is not None),
                **fanned.query.parameters,
            },
            fault,
        )

    def _hedged(self) -> None:
        self._metrics.hedges += 1

    async def _tower(
        self, fanned: _FannedOut, tensors: dict[str, Array], call: InferCall
    ) -> Mapping[str, Array]:
        fan_out, dense = fanned.fan_out, fanned.view.dense
        if dense is None:
            span = call.span.child("tower", "internal") if call.span else None
            predicted = fanned.view.parts.predict(tensors)
            if span is not None:
                span.end()
            return predicted
        self._resends.earn(1)
        last = FanOut(self._loop, call.deadline, self._resends)
        part, span = _part_of(call, dense)
        work = DenseWork(dense, tensors, part, self._now())
        self._metrics.fan_out += 1
        self._call(last, work, span)
        try:
            await last.done
        except asyncio.CancelledError:
            last.give_up()
            raise
        finally:
            last.settle()
        fan_out.cold = fan_out.cold or last.cold
        return work.outputs

    # -- waking

    async def wait_for_functions(self) -> None:
        """As `first_start`, where the settings name the deployment's gateway."""
        settings = self._settings
        if not settings.gateway_url:
            return
        if not await release_answers(settings.gateway_url, self.model, self.digest):
            await wait_for_functions(
                tuple(self._view.functions), settings.functions_wait_s, self._log
            )

    def _prewarm(self, called: list[int]) -> None:
        """The first query after idle wakes all functions at once, frozen ones excepted."""
        for number, remote in self._view.remote.items():
            frozen = self._released.release.shards[number].tier is Tier.FROZEN
            if number not in called and not frozen and not remote.endpoint.connected:
                remote.touch()
        dense = self._view.dense
        if dense is not None and not dense.endpoint.connected:
            dense.touch()

    def _sweep(self) -> None:
        for remote in self._view.functions:
            remote.endpoint.sweep()
        self._trimmer.sweep(self._metrics.in_flight, self._now())
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def close(self) -> None:
        """Close all connections, and let the cache evict the files."""
        self._sweeper.cancel()
        if self._follower is not None:
            self._follower.close()
        if self._sampler is not None:
            self._sampler.close()
        for remote in self._view.functions:
            remote.endpoint.close()
        self._released.close()
