"""Sharded equals whole: for any model, plan and query, at any precision, within its error."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erless.dlrm.quantize import decode, encode
from erless.dlrm.queries import Query
from erless.dlrm.reference import Monolith
from erless.pack.inputs import PackInputs
from erless.pack.packer import Packer
from erless.serve.files import Source
from erless.specs.features import POOLED
from erless.specs.model import DlrmTower, Interaction, ModelSpec, TableSpec
from erless.specs.plan import Plan, Precision, RankRange, ShardPlan, Tier
from erless.specs.profile import MANIFEST, Profile
from erless.storage.stores import open_store
from erless.storage.tensors import TensorFile
from tests.releases import make_inputs, random_query
from tests.sharded import sharded_pool


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    dims = draw(st.lists(st.sampled_from([1, 3, 8, 17, 32]), min_size=1, max_size=4))
    return ModelSpec(
        dense_features=2,
        tables=tuple(
            TableSpec(
                name=f"t{i}",
                rows=draw(st.one_of(st.integers(1, 40), st.integers(41, 700))),
                dim=dim,
                pooling=draw(st.sampled_from(POOLED)),
            )
            for i, dim in enumerate(dims)
        ),
        tower=DlrmTower(bottom_mlp=(4,), top_mlp=(1,), interaction=Interaction.CAT),
    )


@st.composite
def layouts(draw: st.DrawFn, model: ModelSpec) -> tuple[ShardPlan, ...]:
    """Cut each table anywhere, into any shard; a shard may hold several ranges of one table."""
    shards = draw(st.integers(1, 5))
    ranges: dict[int, list[RankRange]] = {}
    for table in model.tables:
        cuts = draw(st.lists(st.integers(1, max(1, table.rows - 1)), max_size=5, unique=True))
        edges = sorted({0, table.rows, *(cut for cut in cuts if cut < table.rows)})
        for start, stop in itertools.pairwise(edges):
            shard = draw(st.integers(0, shards - 1))
            ranges.setdefault(shard, []).append(RankRange(table=table.name, start=start, stop=stop))
    return tuple(
        ShardPlan(
            name=f"s{shard}",
            tier=draw(st.sampled_from(list(Tier))),
            slices=tuple(each),
            precision=draw(st.sampled_from(list(Precision))),
        )
        for shard, each in sorted(ranges.items())
    )


def stored_tables(bundle: Path, plan: Plan, profile: Profile, model: ModelSpec) -> list[np.ndarray]:
    """The tables as the plan's precisions leave them, worked out on whole arrays."""
    tables = []
    for table in model.tables:
        rows = TensorFile(bundle / "tables" / f"{table.name}.safetensors").read("rows")
        entry = next(each for each in profile.tables if each.table == table.name)
        ids = np.empty(0, np.int64)
        if entry.counts:
            ids = TensorFile(bundle.parent / "profile" / entry.counts.path).read("ids")
        order = np.concatenate([ids, np.setdiff1d(np.arange(table.rows), ids)])
        for shard in plan.shards:
            for each in shard.slices:
                if each.table == table.name:
                    where = order[each.start : each.stop]
                    stored = encode(rows[where], shard.precision)
                    rows[where] = decode(stored, shard.precision, table.dim)
        tables.append(rows)
    return tables


def pooled(model: ModelSpec, tables: list[np.ndarray], query: Query) -> list[np.ndarray]:
    """Monolith's pooling over `tables`."""
    import torch

    tensors = [torch.from_numpy(table) for table in tables]
    whole = Monolith(model, tensors, None)  # type: ignore[arg-type]  # pooling needs no tower
    return [each.numpy() for each in whole.pool(query)]


@settings(max_examples=40)
@given(
    data=st.data(), seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 6), packed=st.booleans()
)
def test_sharded_equals_whole(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    seed: int,
    batch: int,
    packed: bool,
) -> None:
    model = data.draw(models())
    folder = tmp_path_factory.mktemp("pack")
    bundle, profile_folder = make_inputs(folder, model, seed)
    profile = Profile.load(profile_folder / MANIFEST)
    plan = Plan.create(
        model_digest=profile.model_digest,
        profile_digest=profile.digest,
        policy="joint",
        shards=data.draw(layouts(model)),
    )
    plan.save(folder / "plan.json")
    store = open_store(str(folder / "store"), create=True)
    release = Packer(PackInputs(bundle, profile_folder, folder / "plan.json"), store).pack().release
    assert release is not None
    query = random_query(model, seed, batch)
    found = sharded_pool(Source(store.url), release, query, packed=packed)
    tables = stored_tables(bundle, plan, profile, model)
    for index, (table, expected) in enumerate(
        zip(model.tables, pooled(model, tables, query), strict=True)
    ):
        np.testing.assert_allclose(
            found[:, index, : table.dim], expected, rtol=1e-4, atol=1e-4, err_msg=table.name
        )
        assert not found[:, index, table.dim :].any()
    # and what the manifest says of the error is the largest there is
    for shard in release.shards:
        worst = 0.0
        for table, rows in zip(model.tables, tables, strict=True):
            exact = TensorFile(bundle / "tables" / f"{table.name}.safetensors").read("rows")
            if table.name in shard.tables:
                worst = max(worst, float(np.abs(exact - rows).max()))
        assert shard.largest_error <= worst + 1e-7
