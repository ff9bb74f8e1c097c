"""Gather-pool and combine in every precision and pooling, against float64 by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erless.dlrm import _kernels
from erless.dlrm.embedding import Combiner, EmbeddingShard, StoredSlice, default_partial
from erless.dlrm.quantize import decode, encode
from erless.dlrm.rows import RowIndex
from erless.errors import ArtifactError, QueryError
from erless.specs.features import POOLED
from erless.specs.model import Pooling, TableSpec
from erless.specs.plan import Precision

# around the kernels' lanes: 4, 8, 16 floats, their tails, and odd int4 rows
DIMS = st.sampled_from([1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 100])


ID_TYPES: tuple[type[np.signedinteger], ...] = (np.int32, np.int64)

# slices and the values they stand for, a seed, samples, and the type of ids
DrawnShard = tuple[list[tuple[StoredSlice, np.ndarray]], int, int, type[np.signedinteger]]


def make_slice(
    name: str, rows: int, dim: int, pooling: Pooling, precision: Precision, seed: int
) -> tuple[StoredSlice, np.ndarray]:
    """A slice of about half a table, and the values (rows, dim) it stands for; NaN elsewhere."""
    generator = np.random.default_rng(seed)
    held = np.flatnonzero(generator.random(rows) < 0.6)
    if not len(held):
        held = np.array([rows - 1])
    stored = encode(generator.standard_normal((len(held), dim)).astype(np.float32), precision)
    values = np.full((rows, dim), np.nan)
    values[held] = decode(stored, precision, dim)
    table = TableSpec(name=name, rows=rows, dim=dim, pooling=pooling)
    return StoredSlice(table, precision, stored, RowIndex.build(rows, held)), values


def by_hand(
    values: np.ndarray, pooling: Pooling, bags: list[np.ndarray], weights: list[np.ndarray]
) -> np.ndarray:
    out = np.zeros((len(bags), values.shape[1]))
    for sample, (bag, weight) in enumerate(zip(bags, weights, strict=True)):
        if not len(bag):
            continue
        rows = values[bag]
        if pooling is Pooling.WEIGHTED_SUM:
            rows = rows * np.asarray(weight, np.float64)[:, None]
        out[sample] = rows.max(axis=0) if pooling is Pooling.MAX else rows.sum(axis=0)
    return out


@st.composite
def shards(draw: st.DrawFn) -> DrawnShard:
    seed = draw(st.integers(0, 2**32 - 1))
    precision = draw(st.sampled_from(list(Precision)))
    made = [
        make_slice(
            f"t{i}",
            draw(st.integers(1, 400)),
            draw(DIMS),
            draw(st.sampled_from(POOLED)),
            precision,
            seed + i,
        )
        for i in range(draw(st.integers(1, 3)))
    ]
    batch = draw(st.integers(0, 5))
    return made, seed, batch, draw(st.sampled_from(ID_TYPES))


@given(shards())
def test_pool_is_the_sum_or_maximum_of_its_rows(drawn: DrawnShard) -> None:
    made, seed, batch, dtype = drawn
    generator = np.random.default_rng(seed)
    shard = EmbeddingShard([each for each, _ in made])
    bags, ids, weights = [], [], []
    for each, _ in made:
        held = each.index.ids(0, each.index.stored)
        mine = [generator.choice(held, generator.integers(0, 40)) for _ in range(batch)]
        bags.append(mine)
        ids += mine
        weighted = each.table.pooling is Pooling.WEIGHTED_SUM
        weights += [
            generator.standard_normal(len(bag)).astype(np.float32)
            if weighted
            else np.ones(len(bag), np.float32)
            for bag in mine
        ]
    values = np.concatenate([np.empty(0, np.int64), *ids]).astype(dtype)
    flat = np.concatenate([np.empty(0, np.float32), *weights]).astype(np.float32)
    lengths = np.array([[len(bag) for bag in mine] for mine in bags], np.int32)
    lengths = lengths.reshape(len(made), batch)
    expected = [
        by_hand(of, each.table.pooling, mine, weights[i * batch : (i + 1) * batch])
        for i, ((each, of), mine) in enumerate(zip(made, bags, strict=True))
    ]
    whole = np.concatenate(expected, axis=1) if batch else np.zeros((0, shard.width))
    np.testing.assert_allclose(shard.pool(values, lengths, flat), whole, rtol=1e-4, atol=1e-4)
    packed = np.concatenate(
        [np.empty(0), *(part[row > 0].ravel() for part, row in zip(expected, lengths, strict=True))]
    )
    np.testing.assert_allclose(
        shard.pool_packed(values, lengths, flat), packed, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_partials_add_up_in_any_order(packed: bool, half: bool) -> None:
    tables = [
        TableSpec(name=f"t{i}", rows=10, dim=dim, pooling=pooling)
        for i, (dim, pooling) in enumerate(zip([3, 8, 8, 17], POOLED, strict=True))
    ]
    holdings = [[0, 1, 3], [0, 2, 3], [1, 2]]
    generator = np.random.default_rng(0)
    lengths = generator.integers(0, 3, (3, 4, 5)).astype(np.int32)
    lengths[:, :, 4] = 0  # nobody has a row of the last sample
    combiner = Combiner(tables, holdings)
    total = np.zeros((4, 5), np.int32)
    expected = np.zeros((5, 4, 17))
    filled = np.zeros((5, 4), bool)
    parts = []
    for shard, held in enumerate(holdings):
        mine = lengths[shard][: len(held)]
        vectors = []
        for slot, table in enumerate(held):
            dim, pooling = tables[table].dim, tables[table].pooling
            total[table] += mine[slot]
            vector = generator.standard_normal((5, dim)).astype(np.float16).astype(np.float32)
            vector[mine[slot] == 0] = 0
            vectors.append(vector)
            for sample in np.flatnonzero(mine[slot]):
                now, new = expected[sample, table, :dim], vector[sample]
                larger = pooling is Pooling.MAX and filled[sample, table]
                combined = np.maximum(now, new) if larger else now + new
                expected[sample, table, :dim] = combined
                filled[sample, table] = True
        partial: np.ndarray = (
            np.concatenate([v[row > 0].ravel() for v, row in zip(vectors, mine, strict=True)])
            if packed
            else np.concatenate(vectors, axis=1)
        )
        kind: type[np.floating] = np.float16 if half else np.float32
        parts.append((shard, partial.astype(kind), mine))
    for table in (i for i, each in enumerate(tables) if each.pooling is Pooling.MEAN):
        expected[:, table] /= np.maximum(total[table], 1)[:, None]
    for order in itertools.permutations(parts):
        out = combiner.begin(5)
        for shard, partial, mine in order:
            combiner.add(out, shard, partial, mine, packed=packed)
        np.testing.assert_allclose(combiner.finish(out, total), expected, rtol=1e-5, atol=1e-6)


def test_rows_that_are_not_here_are_named() -> None:
    each, values = make_slice("user", 300, 8, Pooling.SUM, Precision.INT8, 1)
    shard = EmbeddingShard([each], "shard hot")
    absent = int(np.flatnonzero(np.isnan(values[:, 0]))[0])
    with pytest.raises(
        QueryError, match=rf"table user, sample 1: row id {absent} .*not stored in shard hot"
    ):
        shard.pool(np.array([absent]), np.array([[0, 1]], np.int32))
    for wrong in (-1, 300, -(2**62), 2**62):
        with pytest.raises(QueryError, match=rf"row id {wrong} at values\[0\] is outside 0 … 299"):
            shard.pool(np.array([wrong]), np.array([[1]], np.int32))
    with pytest.raises(QueryError, match="lengths sum to 2, but values has 1"):
        shard.pool(np.array([0]), np.array([[2]], np.int32))
    with pytest.raises(QueryError, match="length -1 is negative"):
        shard.pool(np.array([0]), np.array([[2, -1]], np.int32))
    with pytest.raises(QueryError, match="shard hot holds user"):
        shard.pool(np.array([0]), np.array([[1], [0]], np.int32))


def test_weights_are_asked_for() -> None:
    each, _ = make_slice("user", 30, 8, Pooling.WEIGHTED_SUM, Precision.FP32, 1)
    row = each.index.ids(0, 1)
    with pytest.raises(QueryError, match="table user pools by weighted sum"):
        EmbeddingShard([each]).pool(row, np.array([[1]], np.int32))


def test_slices_that_do_not_fit_together_are_told() -> None:
    table = TableSpec(name="t", rows=10, dim=4)
    index = RowIndex.build(10, np.array([1, 2]))
    with pytest.raises(ArtifactError, match="its stored rows have shape"):
        StoredSlice(table, Precision.FP32, np.zeros((3, 4), np.float32), index)
    with pytest.raises(ArtifactError, match="its stored rows have shape"):
        StoredSlice(table, Precision.INT8, np.zeros((2, 4), np.float32), index)
    other = TableSpec(name="t", rows=11, dim=4)
    with pytest.raises(ArtifactError, match="has 11 rows, its index 10"):
        StoredSlice(other, Precision.FP32, np.zeros((2, 4), np.float32), index)


def test_partials_of_the_wrong_size_are_refused() -> None:
    tables = [TableSpec(name="t", rows=10, dim=4)]
    combiner = Combiner(tables, [[0]])
    out = combiner.begin(2)
    lengths = np.array([[1, 1]], np.int32)
    with pytest.raises(ValueError, match="partial: 7 items, expected 8"):
        combiner.add(out, 0, np.zeros(7, np.float32), lengths)
    with pytest.raises(ValueError, match="lengths: 3 items, expected 2"):
        combiner.add(out, 0, np.zeros(8, np.float32), np.array([[1, 1, 1]], np.int32))
    with pytest.raises(TypeError, match="neither float32 nor float16"):
        combiner.add(out, 0, np.zeros(8, np.float64), lengths)  # type: ignore[arg-type]  # refused


def test_the_kernels_check_sizes_themselves() -> None:
    """Nothing that Python hands over may become a wild read."""
    ids, lengths = np.array([0]), np.array([[1]], np.int32)
    rows, blocks = np.zeros(40, np.uint8), np.zeros((1, 4), np.uint64)
    with pytest.raises(ValueError, match="rows: 40 items, expected 32"):
        _kernels.Pooler(((rows, None, 2, 4, 0, 0),))
    with pytest.raises(ValueError, match="blocks: 4 items, expected 8"):
        _kernels.Pooler(((rows[:32], blocks, 200, 4, 0, 0),))
    with pytest.raises(ValueError, match="out of range"):
        _kernels.Pooler(((rows[:32], None, 2, 4, 9, 0),))
    pooler = _kernels.Pooler(((rows[:32], None, 2, 4, 0, 0),))
    with pytest.raises(ValueError, match="columns: beyond"):
        pooler.pool(ids, None, lengths, np.zeros(4, np.float32), np.array([1]), None)
    with pytest.raises(ValueError, match="out: 3 items, 4 needed"):
        pooler.pool(ids, None, lengths, np.zeros(3, np.float32), None, None)
    with pytest.raises(TypeError, match="values: 2-byte items"):
        pooler.pool(ids.astype(np.int16), None, lengths, np.zeros(4, np.float32), None, None)
    with pytest.raises(ValueError, match="weights: 2 items"):
        pooler.pool(ids, np.ones(2, np.float32), lengths, np.zeros(4, np.float32), None, None)
    with pytest.raises(ValueError, match="slots: beyond"):
        _kernels.Router(((rows, 8, len(rows), b""),), np.array([[1]], np.int32), np.array([1]))
    with pytest.raises(ValueError, match="places: beyond"):
        _kernels.combine_begin(1, np.zeros(4, np.float32), np.array([[1, 4, 0, 4]]))


def test_defaults_stand_in_for_rows() -> None:
    tables = [
        TableSpec(name=pooling, rows=10, dim=2, pooling=pooling)
        for pooling in (Pooling.SUM, Pooling.MAX, Pooling.WEIGHTED_SUM)
    ]
    default = np.array([1.0, -2.0], np.float32)
    lengths = np.array([[0, 3], [2, 0], [1, 2]], np.int32)
    weights = np.array([0, 0, 0, 0, 0, 0.5, 2.0, 3.0], np.float32)
    found = default_partial(tables, [default] * 3, lengths, weights)
    expected = [3.0, -6.0, 1.0, -2.0, 0.5, -1.0, 5.0, -10.0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    bags = np.array([1, 3, 2], np.int32)  # the same lengths, dealt otherwise
    again = default_partial(tables, [default] * 3, lengths.reshape(-1), weights, bags)
    np.testing.assert_allclose(again, [1.0, -2.0, 1.0, -2.0, 0.5, -1.0, 5.0, -10.0], atol=1e-6)
