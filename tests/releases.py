"""Small packed releases for tests: a model, a profile and a hand-written plan, in a store.

    made = make_release(tmp_path)                       # four shards, < 1 s
    made.store, made.release, made.bundle               # a URL, a manifest, a folder

`tiers` says how the ranks of every table are cut, hottest first:

    make_release(tmp_path, tiers=[Cut("hot", Tier.HOT, 0.3), Cut("rest", Tier.COLD, 1.0)])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from erless.dlrm.queries import Query, write_queries
from erless.pack.inputs import PackInputs
from erless.pack.packer import Packer
from erless.specs.artifact import FileEntry
from erless.specs.bundle import BundleManifest
from erless.specs.model import DlrmTower, ModelSpec, Pooling, TableSpec
from erless.specs.plan import DiskPlan, Plan, Precision, RankRange, Scaling, ShardPlan, Tier
from erless.specs.profile import MANIFEST as PROFILE_MANIFEST
from erless.specs.profile import Profile, TableAccess
from erless.specs.release import ReleaseManifest
from erless.storage.stores import open_store
from erless.storage.tensors import write_tensors
from tests.bundles import write_bundle

__all__ = [
    "TIERS",
    "Cut",
    "Made",
    "default_model",
    "make_inputs",
    "make_plan",
    "make_release",
    "pack_bundle_of",
    "random_query",
]


class Cut(NamedTuple):
    """A shard over the ranks of every table from the last cut to the fraction `to` of its rows.

    `tables`: only these, by name; the next cut takes up where each table was left.
    `cache_bytes`: its rows lie on a disk, under a cache of so much memory.
    """

    name: str
    tier: Tier
    to: float
    precision: Precision = Precision.FP32
    tables: tuple[str, ...] = ()
    cache_bytes: int | None = None


TIERS = (
    Cut("resident", Tier.RESIDENT, 0.02),
    Cut("hot", Tier.HOT, 0.2),
    Cut("cold", Tier.COLD, 0.6),
    Cut("frozen", Tier.FROZEN, 1.0),
)


class Made(NamedTuple):
    """A packed release and all it was made from."""

    store: str
    release: ReleaseManifest
    bundle: Path
    profile: Path
    plan: Path
    queries: Path
    model: ModelSpec


def default_model(rows: int = 3000, dim: int = 8) -> ModelSpec:
    """Three tables, a pooling each (no weights), and a small dot-interaction tower."""
    return ModelSpec(
        name="small",
        dense_features=5,
        tables=(
            TableSpec(name="user", rows=rows, dim=dim),
            TableSpec(name="item", rows=rows // 2 + 1, dim=dim, pooling=Pooling.MEAN),
            TableSpec(name="shop", rows=rows // 10 + 1, dim=dim, pooling=Pooling.MAX),
        ),
        tower=DlrmTower(bottom_mlp=(16, dim), top_mlp=(16, 1)),
    )


def make_release(
    folder: Path,
    *,
    model: ModelSpec | None = None,
    tiers: Sequence[Cut] = TIERS,
    seed: int = 0,
    store: str | None = None,
    endpoint_url: str | None = None,
) -> Made:
    """Make a bundle, a profile, a plan and queries in `folder`, and pack them into `store`."""
    model = model or default_model()
    bundle, profile = make_inputs(folder, model, seed)
    plan = folder / "plan.json"
    make_plan(bundle, profile, tiers).save(plan)
    queries = folder / "queries.safetensors"
    write_queries(queries, random_query(model, seed, 64), [t.name for t in model.tables], 16)
    location = store or str(folder / "store")
    opened = open_store(location, endpoint_url=endpoint_url, create=True)
    release = Packer(PackInputs(bundle, profile, plan), opened).pack().release
    assert release is not None
    return Made(location, release, bundle, profile, plan, queries, model)


def pack_bundle_of(folder: Path, spec: ModelSpec, tiers: Sequence[Cut]) -> Made:
    """The release of the bundle `model` in `folder`, made where it is absent; without queries."""
    bundle, profile = make_inputs(folder, spec)
    plan = folder / "plan.json"
    make_plan(bundle, profile, tiers).save(plan)
    store = open_store(str(folder / "store"), create=True)
    release = Packer(PackInputs(bundle, profile, plan), store).pack().release
    assert release is not None
    return Made(str(folder / "store"), release, bundle, profile, plan, plan, spec)


def make_inputs(folder: Path, model: ModelSpec, seed: int = 0) -> tuple[Path, Path]:
    """A bundle with random weights and a profile with power-law counts; their folders."""
    bundle, profile = folder / "model", folder / "profile"
    if not bundle.exists():
        write_bundle(bundle, model, seed)
    generator = np.random.default_rng(seed)
    (profile / "counts").mkdir(parents=True, exist_ok=True)
    accesses = []
    for table in model.tables:
        touched = table.rows - table.rows // 4  # a quarter of the rows is in no log
        ids = generator.permutation(table.rows)[:touched]
        counts = np.maximum(1, 10_000 / np.arange(1, touched + 1)).astype(np.int64)
        order = np.lexsort((ids, -counts))
        path = f"counts/{table.name}.safetensors"
        entry = None
        if touched:
            digest = write_tensors(profile / path, {"ids": ids[order], "counts": counts[order]})
            entry = FileEntry(path=path, **digest._asdict())
        accesses.append(
            TableAccess(
                table=table.name,
                rows=table.rows,
                samples=10_000,
                accesses=int(counts.sum()),
                touched=touched,
                counts=entry,
            )
        )
    model_digest = BundleManifest.open(bundle).digest
    document = Profile.create(
        model_digest=model_digest, sources=("made up",), tables=tuple(accesses)
    )
    document.save(profile / PROFILE_MANIFEST)
    return bundle, profile


def make_plan(bundle: Path, profile: Path, tiers: Sequence[Cut]) -> Plan:
    """The plan that cuts each table at the given fractions."""
    manifest = BundleManifest.open(bundle)
    reached = {table.name: 0 for table in manifest.model.tables}
    shards = []
    for cut in tiers:
        slices = []
        for table in manifest.model.tables:
            stop = max(reached[table.name], round(cut.to * table.rows))
            if stop > reached[table.name] and (not cut.tables or table.name in cut.tables):
                slices.append(RankRange(table=table.name, start=reached[table.name], stop=stop))
                reached[table.name] = stop
        if slices:
            frozen = cut.tier is Tier.FROZEN
            shards.append(
                ShardPlan(
                    name=cut.name,
                    tier=cut.tier,
                    slices=tuple(slices),
                    precision=cut.precision,
                    min_replicas=0 if frozen else 1,
                    replicas=0 if frozen else 1,
                    scaling=Scaling(min_scale=0, initial_scale=0) if frozen else Scaling(),
                    disk=None if cut.cache_bytes is None else DiskPlan(cache_bytes=cut.cache_bytes),
                )
            )
    return Plan.create(
        model_digest=manifest.digest,
        profile_digest=Profile.load(profile / PROFILE_MANIFEST).digest,
        policy="joint",
        shards=tuple(shards),
    )


def random_query(model: ModelSpec, seed: int, batch: int, longest: int = 8) -> Query:
    """`batch` samples with bags of 0 … longest ids, half of them skewed to few rows."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, longest + 1, (len(model.tables), batch)).astype(np.int32)
    values = []
    for table, row in zip(model.tables, lengths, strict=True):
        ids = generator.integers(0, table.rows, int(row.sum()))
        skewed = (generator.pareto(1.0, len(ids)) * 3).astype(np.int64) % table.rows
        values.append(np.where(generator.random(len(ids)) < 0.5, ids, skewed))
    ids = np.concatenate(values).astype(np.int64)
    weights = None
    if model.has_weights:
        weights = generator.standard_normal(len(ids)).astype(np.float32)
        unused = [table.pooling is not Pooling.WEIGHTED_SUM for table in model.tables]
        weights[np.repeat(unused, lengths.sum(axis=1))] = 1
    return Query(
        dense=generator.standard_normal((batch, model.dense_features)).astype(np.float32),
        values=ids,
        lengths=lengths,
        weights=weights,
        labels=generator.integers(0, 2, batch).astype(np.float32),
    )
