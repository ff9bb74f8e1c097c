"""Rows that generations changed: lookups of every kind give the changed table's answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from erless.dlrm import _kernels
from erless.dlrm.embedding import Combiner, EmbeddingShard, StoredSlice
from erless.dlrm.patches import RowChanges
from erless.dlrm.quantize import encode
from erless.dlrm.rows import Routing, RowIndex
from erless.errors import ArtifactError, QueryError
from erless.specs.model import Pooling, TableSpec
from erless.specs.plan import Precision
from erless.specs.routes import TableRoute

DIM = 5


def make_slice(
    values: NDArray[Any], ids: NDArray[Any], rows: int, precision: Precision, pooling: Pooling
) -> StoredSlice:
    table = TableSpec(name="items", rows=rows, dim=DIM, pooling=pooling)
    index = RowIndex.build(rows, ids)
    return StoredSlice(table, precision, encode(values[np.sort(ids)], precision), index)


def whole(values: NDArray[Any], precision: Precision, pooling: Pooling) -> EmbeddingShard:
    ids = np.arange(len(values))
    return EmbeddingShard([make_slice(values, ids, len(values), precision, pooling)])


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 300),
    added=st.integers(0, 40),
    generations=st.integers(1, 4),
    precision=st.sampled_from(list(Precision)),
    pooling=st.sampled_from([Pooling.SUM, Pooling.MAX, Pooling.WEIGHTED_SUM]),
    whole_table=st.booleans(),
    wide=st.booleans(),
    rewritten=st.booleans(),
)
def test_a_patched_shard_answers_as_one_of_the_changed_rows(
    seed: int,
    rows: int,
    added: int,
    generations: int,
    precision: Precision,
    pooling: Pooling,
    whole_table: bool,
    wide: bool,
    rewritten: bool,
) -> None:
    random = np.random.default_rng(seed)
    values = random.normal(size=(rows + added, DIM)).astype(np.float32)
    held = np.arange(rows)
    if not whole_table:
        held = np.sort(random.choice(rows, random.integers(1, rows + 1), replace=False))
    part = make_slice(values[:rows], held, rows, precision, pooling)
    kept = part
    for number in range(generations):
        size = random.integers(0, len(held) + 1)
        ids = random.choice(held, size, replace=False)
        total = rows + added * (number + 1) // generations
        ids = np.concatenate([ids, np.arange(part.table.rows, total)]).astype(np.int64)
        values[ids] = random.normal(size=(len(ids), DIM))
        held = np.union1d(held, ids)
        part = part.changed(RowChanges(ids, encode(values[ids], precision), total))
    part = part.rewritten() if rewritten else part
    lengths = random.integers(0, 6, size=(1, 7)).astype(np.int32)
    query = random.choice(held, lengths.sum()).astype(np.int64 if wide else np.int32)
    weights = random.normal(size=len(query)).astype(np.float32)
    given_weights = weights if pooling is Pooling.WEIGHTED_SUM else None
    expected = whole(values, precision, pooling).pool(query, lengths, given_weights)
    answered = EmbeddingShard([part]).pool(query, lengths, given_weights)
    np.testing.assert_array_equal(answered, expected)
    assert kept.patch is None, "what was before is as it was"


def test_a_row_that_nobody_added_is_refused() -> None:
    part = make_slice(np.zeros((4, DIM), np.float32), np.arange(4), 4, Precision.FP32, Pooling.SUM)
    grown = EmbeddingShard(
        [part.changed(RowChanges(np.array([5]), np.ones((1, DIM), np.float32), 7))]
    )
    one = np.ones((1, 1), np.int32)
    assert grown.pool(np.array([5]), one)[0, 0] == 1
    with pytest.raises(QueryError, match="row id 6"):
        grown.pool(np.array([6]), one)
    with pytest.raises(QueryError, match="row id 7"):
        grown.pool(np.array([7]), one)


@pytest.mark.parametrize(
    ("ids", "rows", "total", "fact"),
    [
        ([9], np.zeros((1, DIM), np.float32), 8, "outside 0 … 7"),
        ([-1], np.zeros((1, DIM), np.float32), 8, "outside 0 … 7"),
        ([3], np.zeros((1, DIM), np.float32), 8, "row 3 is not this shard's"),
        ([2], np.zeros((1, DIM), np.float32), 7, "cannot have 7"),
        ([2], np.zeros((1, DIM + 1), np.float32), 8, "expected"),
        ([2], np.zeros((1, DIM), np.float16), 8, "expected"),
    ],
)
def test_changes_that_do_not_fit_are_refused(
    ids: list[int], rows: NDArray[Any], total: int, fact: str
) -> None:
    part = make_slice(
        np.zeros((8, DIM), np.float32), np.array([0, 2, 4]), 8, Precision.FP32, Pooling.SUM
    )
    with pytest.raises(ArtifactError, match=fact):
        part.changed(RowChanges(np.array(ids), rows, total))


def split(values: NDArray[Any], home: StoredSlice, routes: NDArray[np.uint8]) -> Routing:
    """Two shards: the one in this process, and another with every other row."""
    shard = EmbeddingShard([home])
    return Routing([home.table], [TableRoute.of(routes)], [(0,), (0,)], shard.homes(0))


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("every_row", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rewritten", [False, True])
def test_rows_at_home_are_changed_as_well(
    precision: Precision, every_row: bool, weighted: bool, rewritten: bool
) -> None:
    random = np.random.default_rng(7)
    rows, pooling = 1000, Pooling.WEIGHTED_SUM if weighted else Pooling.SUM
    values = random.normal(size=(rows, DIM)).astype(np.float32)
    ids = np.arange(rows) if every_row else np.arange(0, rows, 3)
    routes = np.ones(rows, np.uint8)
    routes[ids] = 0
    before = make_slice(values, ids, rows, precision, pooling)
    changed = random.choice(ids, 100, replace=False)
    values[changed] += 1
    after = before.changed(RowChanges(changed, encode(values[changed], precision), rows))
    after = after.rewritten() if rewritten else after
    lengths = random.integers(0, 9, size=(1, 50)).astype(np.int32)
    query = random.choice(ids, lengths.sum()).astype(np.int32)
    weights = random.normal(size=len(query)).astype(np.float32) if weighted else None

    original = split(values, before, routes)
    patched = original.repatched(EmbeddingShard([after]).homes(0))
    combiner = Combiner([before.table], [(0,), (0,)])
    out = combiner.begin(50)
    buckets = patched.bucketize(query, lengths, weights)
    assert buckets.kept == len(query)
    combiner.keep(out, buckets.split)
    expected = whole(values, precision, pooling).pool(query, lengths, weights)
    np.testing.assert_allclose(out[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_a_patch_takes_nothing_that_is_not_there() -> None:
    chunk = np.zeros(12, np.uint8)
    key, number, place = np.zeros(1, np.int64), np.zeros(1, np.int32), np.zeros(1, np.int64)
    assert _kernels.Patch(4, 1, (chunk,), key, number, place + 2).rows == 1
    for wrong in [
        (4, 1, (chunk,), key, number, place + 3),
        (4, 1, (chunk,), key, number, place - 1),
        (4, 1, (chunk,), key, number + 1, place),
        (4, 1, (chunk,), key, number - 1, place),
        (4, 1, (chunk,), key + 1, number, place),
        (4, 1, (chunk,), key + 2**62, number, place),
        (0, 1, (chunk,), key, number, place),
        (4, 1, (chunk,), key, number[:0], place),
        (4, -1, (chunk,), key, number, place),
    ]:
        with pytest.raises(ValueError):
            _kernels.Patch(*wrong)


@pytest.mark.parametrize("whole_table", [False, True])
@pytest.mark.parametrize("dim", [1, 3, 7, 32])
def test_each_of_many_rows_is_found(whole_table: bool, dim: int) -> None:
    """Many blocks of the index, added rows with gaps, and rows of an odd size."""
    random = np.random.default_rng(dim)
    rows, total = 5_000, 6_000
    values = random.normal(size=(total, dim)).astype(np.float32)
    held = np.arange(rows)
    if not whole_table:
        held = np.sort(random.choice(rows, 1_700, replace=False))
    table = TableSpec(name="items", rows=rows, dim=dim)
    part = StoredSlice(table, Precision.FP32, values[held], RowIndex.build(rows, held))
    for grown in (rows, 5_500, total):
        added = np.arange(part.table.rows, grown)[::3]
        ids = np.concatenate([random.choice(held, 150, replace=False), added])
        values[ids] += 1
        held = np.union1d(held, added)
        part = part.changed(RowChanges(ids, values[ids], grown))
    shard = EmbeddingShard([part])
    query = random.permutation(held)
    np.testing.assert_array_equal(
        shard.pool(query, np.ones((1, len(query)), np.int32)), values[query]
    )
    with pytest.raises(QueryError, match="row id 5001"):
        shard.pool(np.array([5_001]), np.ones((1, 1), np.int32))


def test_changed_rows_begin_where_a_cache_line_does() -> None:
    """Rows of 128 bytes took three lines each until they did."""
    values = np.zeros((100, 32), np.float32)
    table = TableSpec(name="items", rows=100, dim=32)
    part = StoredSlice(table, Precision.FP32, values, RowIndex.build(100, np.arange(100)))
    for size in (40, 40, 40, 40):  # the last ones are gathered
        ids = np.arange(size)
        part = part.changed(RowChanges(ids, values[ids], 100))
        assert part.patch is not None
        assert [chunk.ctypes.data % 64 for chunk in part.patch.chunks] == [0] * len(
            part.patch.chunks
        )
    assert part.rewritten().rows.ctypes.data % 64 == 0


def test_an_index_beyond_the_stored_rows_is_no_wild_read() -> None:
    part = make_slice(
        np.ones((400, DIM), np.float32), np.arange(0, 400, 2), 400, Precision.FP32, Pooling.SUM
    )
    ids = np.arange(0, 400, 4)
    changed = part.changed(RowChanges(ids, np.ones((100, DIM), np.float32), 400))
    assert part.index.blocks is not None
    part.index.blocks[1, 0] += np.uint64(150 << 16)
    with pytest.raises(ValueError, match="beyond the stored rows"):
        EmbeddingShard([changed]).pool(ids, np.ones((1, 100), np.int32))


def test_an_added_row_may_lie_right_before_the_stored_ones() -> None:
    """Where rows lie to each other in memory is chance: no distance may pass for another row."""
    rows, added = 30, 20
    values = np.arange((rows + added) * DIM, dtype=np.float32).reshape(-1, DIM)
    memory = np.concatenate([values[rows:], values[:rows]])
    table = TableSpec(name="items", rows=rows, dim=DIM)
    index = RowIndex.build(rows, np.arange(rows))
    part = StoredSlice(table, Precision.FP32, memory[added:], index)
    shard = EmbeddingShard(
        [part.changed(RowChanges(np.arange(rows, rows + added), memory[:added], rows + added))]
    )
    ids = np.arange(rows + added)
    np.testing.assert_array_equal(shard.pool(ids, np.ones((1, len(ids)), np.int32)), values)


def test_rewritten_rows_leave_those_before_as_they_are() -> None:
    random = np.random.default_rng(5)
    stored = random.normal(size=(4_000, 33)).astype(np.float32)
    table = TableSpec(name="items", rows=4_000, dim=33)
    index = RowIndex.build(4_000, np.arange(4_000))
    part = StoredSlice(table, Precision.FP32, stored.copy(), index)
    released = part.rows
    assert part.rewritten_bytes == 0
    assert part.rewritten() is part
    values, states = stored.copy(), []
    for size in (3, 40, 500):
        ids = random.choice(4_000, size, replace=False)
        values[ids] += 1
        part = part.changed(RowChanges(ids, values[ids], 4_000))
        assert part.rewritten_bytes == stored.nbytes
        states.append((part.rewritten(), values.copy()))
    for state, expected in states:
        np.testing.assert_array_equal(state.rows, expected)
        assert state.patch is None
    np.testing.assert_array_equal(released, stored)
