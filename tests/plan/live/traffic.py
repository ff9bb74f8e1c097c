"""Power-law traffic whose hot rows change, and a release that was planned for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.queries import Query
from erless.pack.inputs import PackInputs
from erless.pack.packer import Packer
from erless.plan.planner import Planner
from erless.plan.report.document import plan_document
from erless.plan.request import PlanRequest
from erless.plan.source import profile_source
from erless.serve.files import Source, open_gateway
from erless.serve.gateway.live_heat import LiveHeat, SampledQuery
from erless.specs.artifact import FileEntry
from erless.specs.bundle import BundleManifest
from erless.specs.model import DlrmTower, ModelSpec, TableSpec
from erless.specs.plan import Plan
from erless.specs.profile import MANIFEST, Profile, TableAccess
from erless.specs.release import ReleaseManifest
from erless.storage.stores import open_store
from erless.storage.tensors import write_tensors
from tests.bundles import write_bundle

QPS, BATCH, POOLING, SAMPLE = 200.0, 16, 30, 0.01
EVERY_S = 30.0
REQUEST = PlanRequest(qps=QPS, batch=BATCH, shards=2, resident_share=0.7)


def drifting_model(rows: int = 30_000) -> ModelSpec:
    return ModelSpec(
        name="drifting",
        dense_features=3,
        tables=(
            TableSpec(name="item", rows=rows, dim=8),
            TableSpec(name="user", rows=rows // 2, dim=8),
        ),
        tower=DlrmTower(bottom_mlp=(8,), top_mlp=(8, 1)),
    )


class Traffic:
    """Accesses of each table: its hottest tenth takes 90 %."""

    def __init__(self, model: ModelSpec, seed: int = 0) -> None:
        self.model, self.random = model, np.random.default_rng(seed)
        self.ranked = [self.random.permutation(table.rows) for table in model.tables]

    def rotate(self, share: float, hot: float = 0.02) -> None:
        """A share of the hottest rows changes places with rows from anywhere."""
        for ranked in self.ranked:
            most = int(hot * len(ranked))
            out = self.random.choice(most, int(share * most), replace=False)
            into = most + self.random.choice(len(ranked) - most, len(out), replace=False)
            ranked[out], ranked[into] = ranked[into].copy(), ranked[out].copy()

    def ids(self, table: int, number: int) -> NDArray[np.int64]:
        ranked = self.ranked[table]
        exponent = np.log(0.1) / np.log(0.9)
        ranks = (len(ranked) * self.random.random(number) ** exponent).astype(np.int64)
        drawn: NDArray[np.int64] = ranked[np.minimum(ranks, len(ranked) - 1)]
        return drawn

    def query(self, batch: int = BATCH) -> Query:
        lengths = np.full((len(self.model.tables), batch), POOLING, np.int32)
        values = [self.ids(table, batch * POOLING) for table in range(len(self.ranked))]
        dense = self.random.standard_normal((batch, self.model.dense_features))
        return Query(dense.astype(np.float32), np.concatenate(values), lengths, None)

    def profile(self, bundle: Path, folder: Path, queries: int = 6_000) -> Path:
        """The profile of a whole log of so many queries."""
        (folder / "counts").mkdir(parents=True)
        tables = []
        for number, table in enumerate(self.model.tables):
            counts = np.bincount(self.ids(number, queries * BATCH * POOLING), minlength=table.rows)
            ids = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
            path = f"counts/{table.name}.safetensors"
            digest = write_tensors(folder / path, {"ids": ids, "counts": counts[ids]})
            tables.append(
                TableAccess(
                    table=table.name,
                    rows=table.rows,
                    samples=queries * BATCH,
                    accesses=int(counts.sum()),
                    touched=len(ids),
                    counts=FileEntry(path=path, **digest._asdict()),
                )
            )
        digest_of = BundleManifest.open(bundle).digest
        Profile.create(model_digest=digest_of, sources=("a whole log",), tables=tuple(tables)).save(
            folder / MANIFEST
        )
        return folder


@dataclass
class Planned:
    """A release, planned and packed for the traffic of its time."""

    bundle: Path
    profile: Path
    plan_path: Path
    plan: Plan
    store: str
    release: ReleaseManifest


def planner_for(bundle: Path, profile: Path, request: PlanRequest = REQUEST) -> Planner:
    source = profile_source(bundle, profile, request.batch)
    return Planner(source.model, source.tables, request, measured=source.measured)


def plan_and_pack(folder: Path, traffic: Traffic, request: PlanRequest = REQUEST) -> Planned:
    """Bundle, profile of a whole log, plan and release."""
    bundle = folder / "model"
    if not bundle.exists():
        write_bundle(bundle, traffic.model, 0)
    profile = traffic.profile(bundle, folder / "profile")
    planner = planner_for(bundle, profile, request)
    source = profile_source(bundle, profile, request.batch)
    plan = plan_document(planner.outcome(), source.model_digest, source.profile_digest)
    plan.save(folder / "plan.json")
    return pack(bundle, profile, folder / "plan.json", str(folder / "store"))


def pack(bundle: Path, profile: Path, plan: Path, store: str) -> Planned:
    packed = Packer(PackInputs(bundle, profile, plan), open_store(store, create=True)).pack()
    assert packed.release is not None
    return Planned(bundle, profile, plan, Plan.load(plan), store, packed.release)


class Gateway:
    """A gateway replica that samples, in virtual time."""

    def __init__(self, planned: Planned, half_life_s: float = 300.0) -> None:
        with open_gateway(Source(planned.store), planned.release.digest) as opened:
            self.heat = LiveHeat(
                opened, sample=SAMPLE, half_life_s=half_life_s, memory_bytes=1 << 20
            )
            self.routes = [route.all_shards() for route in opened.routes]
        self._planned, self._shards = planned, len(planned.release.shards)

    def serve(self, traffic: Traffic, seconds: float, qps: float = QPS) -> None:
        """Sample for so long, and write to the store at each interval."""
        store = open_store(self._planned.store)
        for _ in range(round(seconds / EVERY_S)):
            number = round(EVERY_S * qps * SAMPLE)
            self.heat.add([self.sampled(traffic.query()) for _ in range(number)])
            self.heat.pass_time(EVERY_S)
            self.heat.spill(store)

    def sampled(self, query: Query) -> SampledQuery:
        ends = np.cumsum(query.lengths.sum(axis=1))
        parts = np.split(query.values, ends[:-1])
        counts = [
            np.bincount(route[part], minlength=self._shards)
            for route, part in zip(self.routes, parts, strict=True)
        ]
        return SampledQuery(query.values, ends, np.stack(counts, axis=1), BATCH)

    def resident_share(self, traffic: Traffic, queries: int = 300) -> float:
        """The share of the gathers of so many queries that the gateway answers."""
        gathers = np.sum([self.sampled(traffic.query()).gathers for _ in range(queries)], axis=0)
        return float(gathers[0].sum() / gathers.sum())
