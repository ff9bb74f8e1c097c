"""Lanes: features that share tables and differ in bags, over shards: as whole."""

from __future__ import annotations

import numpy as np
import pytest

from erless.dlrm.embedding import EmbeddingShard, StoredSlice
from erless.dlrm.lanes import Lanes
from erless.dlrm.rows import Routing, RowIndex
from erless.errors import QueryError
from erless.specs.features import FeatureSpec
from erless.specs.model import ExportedTower, ModelSpec, Pooling, TableSpec
from erless.specs.plan import Precision
from erless.specs.routes import TableRoute

SHARDS = 5
ROWS, DIMS = (700, 300), (4, 6)


def model(pooling: Pooling = Pooling.SUM, *kinds: Pooling) -> ModelSpec:
    """Two tables; `history`, `target` and `tags` read the first."""
    of_items = kinds or (Pooling.NONE, Pooling.SUM, Pooling.MEAN)
    return ModelSpec(
        dense_features=1,
        tables=tuple(
            TableSpec(name=name, rows=rows, dim=dim, pooling=pooling)
            for name, rows, dim in zip(("items", "users"), ROWS, DIMS, strict=True)
        ),
        tower=ExportedTower(),
        features=(
            FeatureSpec(name="history", table="items", pooling=of_items[0]),
            FeatureSpec(name="user", table="users", pooling=of_items[1]),
            FeatureSpec(name="target", table="items", pooling=of_items[1]),
            FeatureSpec(name="tags", table="items", pooling=of_items[2]),
        ),
    )


class Setting:
    """A model's rows over shards: the first is at home, and none has rows of all tables."""

    def __init__(self, spec: ModelSpec) -> None:
        self.lanes = Lanes.of(spec)
        rng = np.random.default_rng(1)
        self.rows = [
            rng.normal(size=(table.rows, table.dim)).astype(np.float32) for table in spec.tables
        ]
        held = [(0, 1), (0,), (0, 1), (1,), (0, 1)]
        routes = [
            rng.choice([s for s in range(SHARDS) if table in held[s]], size=rows).astype(np.uint8)
            for table, rows in enumerate(ROWS)
        ]
        self.shards = [
            EmbeddingShard([self.slice(spec, table, routes, shard) for table in held[shard]])
            for shard in range(SHARDS)
        ]
        self.holdings = [self.lanes.holding(tables) for tables in held]
        homes = self.shards[0].homes(0)
        self.routing = Routing(
            self.lanes.tables,
            [TableRoute.of(routes[number]) for number in self.lanes.numbers],
            self.holdings,
            [homes[number] for number in self.lanes.numbers],
            self.lanes.names,
        )

    def slice(
        self, spec: ModelSpec, table: int, routes: list[np.ndarray], shard: int
    ) -> StoredSlice:
        ids = np.flatnonzero(routes[table] == shard)
        index = RowIndex.build(ROWS[table], ids)
        return StoredSlice(spec.tables[table], Precision.FP32, self.rows[table][ids], index)

    def pool(
        self,
        values: np.ndarray,
        lengths: np.ndarray,
        begins: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> list[np.ndarray]:
        """Vectors of each lane."""
        buckets = self.routing.bucketize_lanes(values, lengths, begins, weights)
        sums = self.lanes.sums(self.holdings, begins)
        for shard in buckets.touched():
            ids, mine, own = buckets[shard]
            bags = buckets.bags(shard)
            partial = self.shards[shard].pool_packed(ids, mine, own, bags)
            sums.add(sums.out, shard, partial, mine)
        sums.keep(sums.out, buckets.split)
        sums.finish(sums.out, lengths)
        return sums.vectors([(count,) for count in np.diff(begins).tolist()])


def query(counts: list[int], longest: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """values, lengths, begins of lanes with so many bags; un-pooled is the first."""
    rng = np.random.default_rng(seed)
    bags = [np.ones(counts[0], np.int64)]
    bags += [rng.integers(0, longest + 1, size=count) for count in counts[1:]]
    rows = [ROWS[0]] * 3 + [ROWS[1]]
    values = [rng.integers(0, n, size=int(b.sum())) for n, b in zip(rows, bags, strict=True)]
    begins = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return np.concatenate(values), np.concatenate(bags).astype(np.int32), begins


def plainly(
    setting: Setting, values: np.ndarray, lengths: np.ndarray, begins: np.ndarray, maxima: bool
) -> list[np.ndarray]:
    """The same without shards."""
    found, at = [], 0
    for lane, number in enumerate(setting.lanes.numbers):
        vectors = []
        for bag in lengths[begins[lane] : begins[lane + 1]]:
            rows = setting.rows[number][values[at : at + bag]].astype(np.float64)
            at += int(bag)
            whole = rows.max(axis=0) if maxima and bag else rows.sum(axis=0)
            if setting.lanes.features[lane].pooling is Pooling.MEAN and bag:
                whole /= bag
            vectors.append(whole)
        found.append(np.array(vectors).reshape(-1, DIMS[number]))
    return found


@pytest.mark.parametrize("maxima", [False, True])
@pytest.mark.parametrize(
    ("counts", "longest"),
    [([7, 3, 3, 3], 5), ([0, 2, 2, 2], 4), ([10_000, 1, 1, 1], 3), ([3, 4, 1, 0], 0)],
)
def test_any_number_of_bags_over_shards_is_the_whole(
    counts: list[int], longest: int, maxima: bool
) -> None:
    """A sequence of nothing and one of 10,000, and tables with no bags at all."""
    kinds = (Pooling.NONE, Pooling.MAX, Pooling.MAX) if maxima else ()
    setting = Setting(model(Pooling.MAX if maxima else Pooling.SUM, *kinds))
    values, lengths, begins = query(counts, longest)
    found = setting.pool(values, lengths, begins)
    for lane, wanted in enumerate(plainly(setting, values, lengths, begins, maxima)):
        np.testing.assert_allclose(found[lane], wanted, rtol=1e-5, atol=1e-5)


def test_features_with_a_bag_for_each_sample_fill_the_towers_input() -> None:
    spec = model(Pooling.SUM, Pooling.SUM, Pooling.SUM, Pooling.MEAN)
    setting = Setting(spec)
    values, lengths, begins = query([4, 4, 4, 4], 3)
    buckets = setting.routing.bucketize_lanes(values, lengths, begins, None)
    sums = setting.lanes.samples_sums(setting.holdings, 4)
    sums.keep(sums.out, buckets.split)
    for shard in buckets.touched():
        ids, mine, _ = buckets[shard]
        partial = setting.shards[shard].pool_packed(ids, mine, None, buckets.bags(shard))
        sums.add(sums.out, shard, partial, mine)
    out = sums.finish(sums.out, lengths)
    assert out.shape == (4, 4, 6)
    for lane, wanted in enumerate(plainly(setting, values, lengths, begins, False)):
        place, dim = setting.lanes.order[lane], wanted.shape[1]
        np.testing.assert_allclose(out[:, place, :dim], wanted, rtol=1e-5, atol=1e-5)
        assert not out[:, place, dim:].any()


def test_weights_of_one_stand_in_where_a_feature_has_none() -> None:
    spec = model(Pooling.WEIGHTED_SUM, Pooling.NONE, Pooling.WEIGHTED_SUM, Pooling.MEAN)
    setting = Setting(spec)
    values, lengths, begins = query([5, 2, 2, 2], 3)
    found = setting.pool(values, lengths, begins, np.ones(len(values), np.float32))
    for lane, wanted in enumerate(plainly(setting, values, lengths, begins, False)):
        np.testing.assert_allclose(found[lane], wanted, rtol=1e-5, atol=1e-5)


def test_errors_name_the_feature_and_sizes_are_checked() -> None:
    setting = Setting(model())
    values, lengths, begins = query([2, 2, 2, 2], 2)
    bad = values.copy()
    bad[1] = ROWS[0]
    with pytest.raises(QueryError, match=r"feature history, sample 1: row id 700 at values\[1\]"):
        setting.routing.bucketize_lanes(bad, lengths, begins, None)
    for wrong in (begins + 1, begins[::-1].copy(), begins[:-1]):
        with pytest.raises(ValueError, match="begins"):
            setting.routing.bucketize_lanes(values, lengths, wrong, None)
    with pytest.raises(ValueError, match="lengths: 7 items"):
        setting.routing.bucketize_lanes(values, lengths[:-1], begins, None)
    shard = setting.shards[4]
    with pytest.raises(QueryError, match="bags \\[1, 1\\] do not sum to the 3 lengths"):
        shard.pool_packed(values[:3], np.ones(3, np.int32), None, np.array([1, 1], np.int32))
