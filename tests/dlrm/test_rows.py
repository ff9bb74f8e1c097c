"""Row id → shard and local index, against plain numpy; and every fault by name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erless.dlrm import _kernels
from erless.dlrm.rows import INDEX_ROWS, Routing, RowIndex, index_blocks
from erless.errors import ArtifactError, PlanError, QueryError
from erless.specs.model import Pooling, TableSpec
from erless.specs.routes import TableRoute

IdType = type[np.signedinteger]

# around the index's words (64), blocks (192) and windows
SIZES = st.one_of(st.integers(1, 400), st.sampled_from([63, 64, 65, 191, 192, 193, 384, 5000]))


@given(SIZES, st.floats(0, 1), st.integers(0, 2**32 - 1), st.sampled_from([np.int32, np.int64]))
def test_the_index_counts_smaller_stored_ids(
    rows: int, share: float, seed: int, dtype: IdType
) -> None:
    generator = np.random.default_rng(seed)
    stored = np.flatnonzero(generator.random(rows) < share).astype(dtype)
    index = RowIndex.build(rows, generator.permutation(stored))
    asked = generator.integers(0, rows, 50).astype(dtype)
    expected = np.where(np.isin(asked, stored), np.searchsorted(stored, asked), -1)
    np.testing.assert_array_equal(index.local(asked), expected)
    assert index.stored == len(stored)
    np.testing.assert_array_equal(index.ids(0, index.stored), stored)
    middle = len(stored) // 2
    np.testing.assert_array_equal(index.ids(middle // 2, middle), stored[middle // 2 : middle])
    np.testing.assert_array_equal(RowIndex(rows, index.array).local(asked), expected)
    assert index.array.nbytes <= 0.25 * max(rows, 2 * INDEX_ROWS)


@given(st.integers(1, 2000), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_an_index_made_by_windows_is_the_whole_one(rows: int, blocks: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    stored = np.flatnonzero(generator.random(rows) < 0.5)
    parts, before = [], 0
    for begin in range(0, rows, blocks * INDEX_ROWS):
        end = min(rows, begin + blocks * INDEX_ROWS)
        inside = stored[(stored >= begin) & (stored < end)] - begin
        parts.append(index_blocks(end - begin, inside, before))
        before += len(inside)
    if len(stored) < rows:
        np.testing.assert_array_equal(np.concatenate(parts), RowIndex.build(rows, stored).array)


def test_an_index_that_lies_askew_in_memory_is_read_right() -> None:
    index = RowIndex.build(1000, np.arange(0, 1000, 3))
    room = np.zeros(index.array.nbytes + 1, np.uint8)
    room[1:] = index.array.reshape(-1).view(np.uint8)
    askew = room[1:].view(np.uint64).reshape(index.array.shape)
    assert not askew.flags.aligned
    found = RowIndex(1000, askew)
    assert found.blocks is not None
    assert found.blocks.flags.aligned
    np.testing.assert_array_equal(found.local(np.arange(1000)), index.local(np.arange(1000)))


def test_ids_outside_the_table_are_named() -> None:
    index = RowIndex.build(10, np.array([1, 2]))
    for wrong in (-1, 10, 2**40):
        with pytest.raises(QueryError, match=f"row id {wrong} is outside 0 … 9"):
            index.local(np.array([1, wrong]))
        with pytest.raises(PlanError, match=f"row id {wrong} is outside 0 … 9"):
            RowIndex.build(10, np.array([wrong]))
    with pytest.raises(ArtifactError, match="row index has shape"):
        RowIndex(1000, np.zeros((5, 4), np.uint64))
    with pytest.raises(IndexError):
        index.ids(1, 3)
    with pytest.raises(QueryError, match="float64"):
        index.local(np.array([1.0]))


def routing(rows: tuple[int, ...], shards: int, seed: int) -> tuple[Routing, list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    routes = [generator.integers(0, shards, size).astype(np.uint8) for size in rows]
    holdings = [
        [table for table, route in enumerate(routes) if (route == shard).any()]
        for shard in range(shards)
    ]
    tables = [TableSpec(name=f"t{i}", rows=size, dim=4) for i, size in enumerate(rows)]
    return Routing(tables, [TableRoute.of(each) for each in routes], holdings), routes


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=5),
    st.sampled_from([1, 2, 3, 7, 254, 255]),
    st.integers(0, 6),
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.int32, np.int64]),
    st.booleans(),
)
def test_bucketize_keeps_the_order_of_bags(
    rows: list[int], shards: int, batch: int, seed: int, dtype: IdType, weighted: bool
) -> None:
    router, routes = routing(tuple(rows), shards, seed)
    if weighted:
        router.tables = tuple(
            table.model_copy(update={"pooling": Pooling.WEIGHTED_SUM}) for table in router.tables
        )
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, 5, (len(rows), batch)).astype(np.int32)
    values = [
        generator.integers(0, size, int(row.sum())) for size, row in zip(rows, lengths, strict=True)
    ]
    ids = np.concatenate(values).astype(dtype)
    weights = generator.random(len(ids)).astype(np.float32) if weighted else None
    buckets = router.bucketize(ids, lengths, weights)
    goes = np.concatenate([route[each] for route, each in zip(routes, values, strict=True)])
    table_of = np.repeat(np.arange(len(rows)), lengths.sum(axis=1))
    sample_of = np.concatenate([np.repeat(np.arange(batch), row) for row in lengths])
    assert buckets.touched() == tuple(sorted(set(goes.tolist())))
    assert buckets[0].values.dtype == np.int32  # where all ids fit
    for shard, held in enumerate(router.holdings):
        mine = goes == shard
        bucket = buckets[shard]
        np.testing.assert_array_equal(bucket.values, ids[mine])
        assert buckets.gathers(shard) == mine.sum()
        if weights is not None:
            assert bucket.weights is not None
            np.testing.assert_array_equal(bucket.weights, weights[mine])
        expected = np.zeros((len(held), batch), np.int32)
        for slot, table in enumerate(held):
            of_table = sample_of[mine & (table_of == table)]
            expected[slot] = np.bincount(of_table, minlength=batch)[:batch] if batch else 0
        if batch:
            np.testing.assert_array_equal(bucket.lengths, expected)


def test_faults_name_table_sample_and_value() -> None:
    router, _ = routing((5, 7), 3, 0)
    good = np.array([[1, 2], [0, 1]], np.int32)
    dtypes: tuple[IdType, ...] = (np.int32, np.int64)
    for dtype in dtypes:
        with pytest.raises(QueryError, match=r"table t0, sample 1: row id 5 at values\[2\] is out"):
            router.bucketize(np.array([1, 2, 5, 3], dtype), good)
        with pytest.raises(QueryError, match=r"table t1, sample 1: row id -1 at values\[3\]"):
            router.bucketize(np.array([1, 2, 3, -1], dtype), good)
    with pytest.raises(QueryError, match="lengths sum to 4, but values has 3"):
        router.bucketize(np.array([1, 2, 3]), good)
    with pytest.raises(QueryError, match="table t1, sample 0: length -1 is negative"):
        router.bucketize(np.array([1, 2, 3]), np.array([[1, 2], [-1, 1]], np.int32))
    with pytest.raises(QueryError, match="expected \\(2 tables, B\\)"):
        router.bucketize(np.array([1]), np.array([[1]], np.int32))
    with pytest.raises(QueryError, match="beyond int32"):
        router.bucketize(np.array([1]), np.array([[2**31], [0]], np.int64))
    with pytest.raises(QueryError, match="weights has shape"):
        router.bucketize(np.array([1, 2, 3, 4]), good, np.ones(3, np.float32))


def test_a_row_that_no_shard_holds_is_told() -> None:
    tables = [TableSpec(name="t", rows=4, dim=4)]
    router = Routing(tables, [TableRoute.of(np.array([0, 1, 0, 255], np.uint8))], [[0], [0]])
    with pytest.raises(QueryError, match="row id 3 at values\\[1\\] is not stored in any"):
        router.bucketize(np.array([0, 3]), np.array([[2]], np.int32))


def test_routes_that_do_not_fit_are_told() -> None:
    tables = [TableSpec(name="t", rows=4, dim=4)]
    with pytest.raises(ArtifactError, match="table t: its routing is of 3 rows"):
        Routing(tables, [TableRoute.of(np.zeros(3, np.uint8))], [[0]])
    with pytest.raises(ArtifactError, match="256 shards"):
        Routing(tables, [TableRoute.of(np.zeros(4, np.uint8))], [[0]] * 256)
    with pytest.raises(ArtifactError, match="0 routes for 1 tables"):
        Routing(tables, [], [[0]])


@given(st.integers(0, 300), st.sampled_from([1, 3, 8, 33]), st.integers(0, 2**32 - 1))
def test_picked_rows_are_those_of_the_shard(rows: int, dim: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    table = generator.standard_normal((rows, dim)).astype(np.float32)
    routes = generator.integers(0, 3, rows).astype(np.uint8)
    counts = generator.integers(0, 1000, rows).astype(np.float32)
    mine = routes == 1
    out, sums = np.empty((int(mine.sum()), dim), np.float32), np.zeros(dim)
    found, weight = _kernels.pick_rows(table, routes, counts, out, sums, 1)
    assert found == mine.sum()
    assert weight == (counts[mine] + 1).sum()
    np.testing.assert_array_equal(out, table[mine])
    exact = ((counts[mine] + 1.0)[:, None] * table[mine].astype(np.float64)).sum(axis=0)
    np.testing.assert_allclose(sums, exact, rtol=1e-12, atol=1e-9)
    again = np.zeros(dim)
    _kernels.pick_rows(table, routes, counts, None, again, 1)
    np.testing.assert_array_equal(sums, again)
    if mine.any():
        with pytest.raises(ValueError, match="out: "):
            _kernels.pick_rows(table, routes, counts, out[1:], sums, 1)
