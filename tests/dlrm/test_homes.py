"""Bucketize with a home shard: what it gives the home are local indexes, all else is the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erless.dlrm.rows import Routing, RowIndex
from erless.errors import QueryError
from erless.specs.model import TableSpec

SHARDS = 4


class Setting:
    """Three tables in four shards; shard `home` is at home for tables 0 and 2."""

    def __init__(self, seed: int, home: int, whole: bool) -> None:
        self.generator = generator = np.random.default_rng(seed)
        self.tables = [
            TableSpec(name=f"t{i}", rows=int(rows), dim=4)
            for i, rows in enumerate(generator.integers(1, 700, 3))
        ]
        self.home = home
        self.routes = [
            generator.integers(0, SHARDS, table.rows).astype(np.uint8) for table in self.tables
        ]
        if whole:
            self.routes[2][:] = home
        self.index = {
            t: RowIndex.build(self.tables[t].rows, np.flatnonzero(self.routes[t] == home))
            for t in (0, 2)
        }
        holdings = [range(3)] * SHARDS
        self.plain = Routing(self.tables, self.routes, holdings)
        self.routing = Routing(
            self.tables, self.routes, holdings, [(home, self.index[0]), None, (home, self.index[2])]
        )

    def query(self, batch: int, dtype: type) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lengths = self.generator.integers(0, 9, (3, batch)).astype(np.int32)
        values = np.concatenate(
            [
                self.generator.integers(0, table.rows, int(row.sum()))
                for table, row in zip(self.tables, lengths, strict=True)
            ]
        ).astype(dtype)
        return values, lengths, self.generator.standard_normal(len(values)).astype(np.float32)


@given(
    seed=st.integers(0, 2**32 - 1),
    home=st.integers(0, SHARDS - 1),
    batch=st.integers(0, 7),
    dtype=st.sampled_from([np.int32, np.int64]),
    weighted=st.booleans(),
    whole=st.booleans(),
)
def test_only_the_homes_values_differ(
    seed: int, home: int, batch: int, dtype: type, weighted: bool, whole: bool
) -> None:
    setting = Setting(seed, home, whole)
    values, lengths, weights = setting.query(batch, dtype)
    given_weights = weights if weighted else None
    found = setting.routing.bucketize(values, lengths, given_weights)
    wanted = setting.plain.bucketize(values, lengths, given_weights)
    assert np.array_equal(found.lengths, wanted.lengths)
    assert np.array_equal(found.starts, wanted.starts)
    if weighted:
        assert np.array_equal(found.weights, wanted.weights)
    for shard in range(SHARDS):
        ids = wanted[shard].values.copy()
        if shard == home and batch:
            ends = np.cumsum(wanted[shard].lengths.sum(axis=1))
            for t, index in setting.index.items():
                span = slice(ends[t - 1] if t else 0, ends[t])
                ids[span] = index.local(ids[span])
        assert np.array_equal(found[shard].values, ids)


@given(seed=st.integers(0, 1000), home=st.integers(0, SHARDS - 1))
def test_a_bad_id_is_named_as_without_a_home(seed: int, home: int) -> None:
    setting = Setting(seed, home, whole=False)
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


def test_an_index_that_contradicts_the_routing_is_found() -> None:
    table = TableSpec(name="t", rows=300, dim=4)
    route = np.zeros(300, np.uint8)  # all at home
    index = RowIndex.build(300, np.arange(299))  # but for the last row
    routing = Routing([table], [route], [[0]], [(0, index)])
    lengths = np.array([[2, 1]], np.int32)
    assert routing.bucketize(np.array([5, 298, 0]), lengths)[0].values.tolist() == [5, 298, 0]
    with pytest.raises(QueryError, match=r"table t, sample 1: row id 299 at values\[2\] is not"):
        routing.bucketize(np.array([5, 298, 299]), lengths)
