"""Bucketize with homes: what lies in this process is pooled here, all else goes where it went."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erless.dlrm import _kernels
from erless.dlrm.embedding import Combiner, EmbeddingShard, StoredSlice
from erless.dlrm.quantize import encode
from erless.dlrm.rows import Buckets, Routing, RowIndex
from erless.errors import ArtifactError, QueryError
from erless.specs.features import POOLED
from erless.specs.model import Pooling, TableSpec
from erless.specs.plan import Precision
from erless.specs.routes import TableRoute

SHARDS = 4


class Setting:
    """Three tables in four shards; shard `home` is at home for tables 0 and 2."""

    def __init__(
        self,
        seed: int,
        home: int,
        *,
        whole: bool = False,
        pooling: Pooling = Pooling.SUM,
        precision: Precision = Precision.FP32,
        dim: int = 4,
    ) -> None:
        self.generator = generator = np.random.default_rng(seed)
        self.tables = [
            TableSpec(name=f"t{i}", rows=int(rows), dim=dim, pooling=pooling)
            for i, rows in enumerate(generator.integers(1, 700, 3))
        ]
        self.home = home
        self.routes = [
            generator.integers(0, SHARDS, table.rows).astype(np.uint8) for table in self.tables
        ]
        if whole:
            self.routes[2][:] = home
        held = [
            EmbeddingShard([self.slice(t, shard, precision) for t in range(3)])
            for shard in range(SHARDS)
        ]
        self.shards = dict(enumerate(held))
        holdings = [range(3)] * SHARDS
        homes = held[home].homes(home)
        self.plain = Routing(self.tables, self.packed(range(SHARDS)), holdings)
        away = [route.elsewhere(home) for route in self.packed(range(SHARDS))]
        self.routing = Routing(self.tables, away, holdings, [homes[0], None, homes[2]])
        self.combiner = Combiner(self.tables, holdings)

    def packed(self, holders: Sequence[int]) -> list[TableRoute]:
        return [TableRoute.of(route, holders) for route in self.routes]

    def slice(self, table: int, shard: int, precision: Precision) -> StoredSlice:
        spec = self.tables[table]
        index = RowIndex.build(spec.rows, np.flatnonzero(self.routes[table] == shard))
        rows = self.generator.standard_normal((index.stored, spec.dim)).astype(np.float32)
        return StoredSlice(spec, precision, encode(rows, precision), index)

    def query(
        self, batch: int, dtype: type[np.signedinteger]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lengths = self.generator.integers(0, 30, (3, batch)).astype(np.int32)
        values = np.concatenate(
            [
                self.generator.integers(0, table.rows, int(row.sum()))
                for table, row in zip(self.tables, lengths, strict=True)
            ]
        ).astype(dtype)
        return values, lengths, self.generator.standard_normal(len(values)).astype(np.float32)

    def pooled(self, buckets: Buckets, lengths: np.ndarray, *, kept_last: bool) -> np.ndarray:
        out = self.combiner.begin(buckets.batch)
        if not kept_last:
            self.combiner.keep(out, buckets.split)
        for number in buckets.touched():
            values, mine, weights = buckets[number]
            partial = self.shards[number].pool_packed(values, mine, weights)
            self.combiner.add(out, number, partial, mine, packed=True)
        if kept_last:
            self.combiner.keep(out, buckets.split)
        return self.combiner.finish(out, lengths)


@given(
    seed=st.integers(0, 2**32 - 1),
    home=st.integers(0, SHARDS - 1),
    batch=st.integers(0, 7),
    dtype=st.sampled_from([np.int32, np.int64]),
    whole=st.booleans(),
    pooling=st.sampled_from(POOLED),
    precision=st.sampled_from(list(Precision)),
    dim=st.sampled_from([1, 4, 17, 32]),
    kept_last=st.booleans(),
)
def test_the_result_is_the_same_with_a_home_and_without(
    seed: int,
    home: int,
    batch: int,
    dtype: type,
    whole: bool,
    pooling: Pooling,
    precision: Precision,
    dim: int,
    kept_last: bool,
) -> None:
    setting = Setting(seed, home, whole=whole, pooling=pooling, precision=precision, dim=dim)
    values, lengths, weights = setting.query(batch, dtype)
    mine = weights if pooling is Pooling.WEIGHTED_SUM else None
    found = setting.routing.bucketize(values, lengths, mine)
    wanted = setting.plain.bucketize(values, lengths, mine)
    assert wanted.kept == 0
    for shard in range(SHARDS):
        if shard != home:
            for ours, theirs in zip(found[shard], wanted[shard], strict=True):
                if ours is None or theirs is None:
                    assert ours is theirs
                else:
                    assert np.array_equal(ours, theirs)
    if batch:
        assert found.kept == wanted[home].lengths[[0, 2]].sum()
        assert found[home].lengths[[0, 2]].sum() == 0
    np.testing.assert_allclose(
        setting.pooled(found, lengths, kept_last=kept_last),
        setting.pooled(wanted, lengths, kept_last=False),
        rtol=1e-5,
        atol=1e-5,
    )


@given(seed=st.integers(0, 1000), home=st.integers(0, SHARDS - 1))
def test_a_bad_id_is_named_as_without_a_home(seed: int, home: int) -> None:
    setting = Setting(seed, home)
    values, lengths, _ = setting.query(5, np.int64)
    if not len(values):
        return
    position = int(setting.generator.integers(len(values)))
    values[position] = setting.generator.choice([-1, 1 << 40, 700])
    errors = []
    for routing in (setting.plain, setting.routing):
        with pytest.raises(QueryError) as error:
            routing.bucketize(values, lengths)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def one_table(stored: int, pooling: Pooling = Pooling.SUM) -> tuple[Routing, EmbeddingShard]:
    """300 rows routed home, of which the index there knows the first `stored`."""
    table = TableSpec(name="t", rows=300, dim=4, pooling=pooling)
    index = RowIndex.build(300, np.arange(stored))
    shard = EmbeddingShard(
        [StoredSlice(table, Precision.FP32, np.ones((stored, 4), np.float32), index)]
    )
    return Routing([table], [TableRoute.of(np.zeros(300, np.uint8))], [[0]], shard.homes(0)), shard


def test_an_index_that_contradicts_the_routing_is_found() -> None:
    routing, _ = one_table(299)
    lengths = np.array([[2, 1]], np.int32)
    assert routing.bucketize(np.array([5, 298, 0]), lengths).kept == 3
    with pytest.raises(QueryError, match=r"table t, sample 1: row id 299 at values\[2\] is not"):
        routing.bucketize(np.array([5, 298, 299]), lengths)


def test_weights_are_asked_for() -> None:
    routing, _ = one_table(299, Pooling.WEIGHTED_SUM)
    with pytest.raises(QueryError, match="table t pools by weighted sum: the query has no weights"):
        routing.bucketize(np.array([5]), np.array([[1]], np.int32))


def test_a_home_that_does_not_fit_is_refused() -> None:
    routing, shard = one_table(299)
    home = shard.homes(0)[0]
    route = TableRoute.of(np.zeros(300, np.uint8))
    for table, place, message in (
        (routing.tables[0], home._replace(slice=1), "no such slice"),
        (routing.tables[0], home._replace(shard=1), "does not hold the table"),
        (routing.tables[0].model_copy(update={"rows": 301}), home, "homes: 300 items"),
    ):
        with pytest.raises(ArtifactError, match=message):
            Routing([table], [TableRoute.of(np.zeros(table.rows, np.uint8))], [[0]], [place])
    index = shard.slices[0].index.array.copy()
    index[1, 0] += np.uint64(1 << 16)  # one row more before the last block than there is
    rows = shard.slices[0].rows
    damaged = _kernels.Pooler(((rows.view(np.uint8).reshape(-1), index, 300, 4, 0, 0),))
    with pytest.raises(ArtifactError, match="beyond the stored rows"):
        Routing([routing.tables[0]], [route], [[0]], [home._replace(pooler=damaged)])


def test_what_is_kept_goes_only_where_it_fits() -> None:
    routing, _ = one_table(299)
    kept = routing.bucketize(np.array([5, 6]), np.array([[1, 1]], np.int32)).split
    places = np.array([[0, 4, 0, 4]])
    with pytest.raises(ValueError, match="places: beyond"):
        kept.pool(np.zeros(7, np.float32), places)
    with pytest.raises(ValueError, match="dim: 3 items"):
        kept.pool(np.zeros(8, np.float32), np.array([[0, 3, 0, 4]]))
