"""Ids, lengths and sizes at the limits of their types: refused by name, or used rightly.

What is wrong with a query is found a second time by plain Python, in integers without limits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erless.dlrm import _kernels
from erless.dlrm.embedding import EmbeddingShard, StoredSlice
from erless.dlrm.query_arrays import QueryFault, as_lengths
from erless.dlrm.rows import Home, Routing, RowIndex
from erless.errors import QueryError
from erless.specs.features import POOLED
from erless.specs.model import Pooling, TableSpec
from erless.specs.plan import Precision
from erless.specs.routes import TableRoute

HUGE_ROWS = 2**31 + 8  # beyond int32; its routing is zeros that nobody touches, so no memory
DIM = 4
ALL = np.empty((0, 4), np.uint64)  # the index of a shard that stores every row

Fault = tuple[int, int, int, int, int]


def edges(*at: int) -> st.SearchStrategy[int]:
    """Numbers around `at`, and around the limits of int32 and int64."""
    around = [*at, 0, 2**31, 2**32, -(2**31), -(2**32), 2**63 - 2, -(2**63) + 1]
    return st.sampled_from([number + off for number in around for off in (-1, 0, 1)])


@st.composite
def queries(
    draw: st.DrawFn, rows: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.dtype[np.signedinteger]]:
    """values and lengths (tables, B): mostly valid, some ids, lengths or sums not."""
    kind: np.dtype[np.signedinteger] = draw(
        st.sampled_from([np.dtype(np.int32), np.dtype(np.int64)])
    )
    limits = np.iinfo(kind)
    batch = draw(st.integers(1, 3))
    lengths = np.array(
        draw(
            st.lists(
                st.lists(st.integers(0, 3), min_size=batch, max_size=batch),
                min_size=len(rows),
                max_size=len(rows),
            )
        ),
        np.int32,
    )
    values: list[int] = []
    for table, table_rows in enumerate(rows):
        good = st.sampled_from([0, 1, table_rows // 2, table_rows - 1]).filter(
            lambda number: number <= limits.max
        )
        bad = edges(table_rows).filter(lambda number: limits.min <= number <= limits.max)
        for _ in range(int(lengths[table].sum())):
            values.append(draw(bad if draw(st.integers(0, 9)) == 0 else good))
    if draw(st.integers(0, 4)) == 0:
        cell = draw(st.integers(0, lengths.size - 1))
        lengths.reshape(-1)[cell] = draw(edges().filter(lambda number: -(2**31) <= number < 2**31))
    return np.array(values, kind), lengths, kind


def expected_fault(
    values: list[int], lengths: list[list[int]], rows: tuple[int, ...]
) -> Fault | None:
    """The first thing that is wrong: lengths before their sum, then ids in order."""
    total = 0
    for table, bags in enumerate(lengths):
        for sample, length in enumerate(bags):
            if length < 0:
                return QueryFault.LENGTH, table, sample, total, length
            total += length
    if total != len(values):
        return QueryFault.TOTAL, 0, 0, len(values), total
    position = 0
    for table, bags in enumerate(lengths):
        for sample, length in enumerate(bags):
            for value in values[position : position + length]:
                if not 0 <= value < rows[table]:
                    return QueryFault.RANGE, table, sample, position, value
                position += 1
    return None


ROWS = (1, 193, HUGE_ROWS)


@pytest.fixture(scope="module")
def huge_route() -> np.ndarray:
    return np.zeros(HUGE_ROWS, np.uint8)


def plain_route(numbers: np.ndarray) -> tuple[np.ndarray, int, int, bytes]:
    return numbers, 8, len(numbers), b""


@pytest.fixture(scope="module")
def routers(huge_route: np.ndarray) -> Iterator[list[_kernels.Router]]:
    """All rows in shard 0; without homes, and with the small tables at home in shard 1."""
    small = [np.zeros(rows, np.uint8) for rows in ROWS[:2]]
    routes = tuple(plain_route(each) for each in (*small, huge_route))
    slots = np.tile(np.arange(3, dtype=np.int32), (2, 1))
    widths = np.full(2, 3, np.int64)
    pooler = _kernels.Pooler(
        tuple(
            (np.zeros(rows * DIM * 4, np.uint8), None, rows, DIM, _kernels.PRECISION_FP32, 0)
            for rows in ROWS[:2]
        )
    )
    homes = (Home(1, pooler, 0), Home(1, pooler, 1), None)
    yield [
        _kernels.Router(routes, slots, widths, None),
        _kernels.Router(routes, slots, widths, homes),
    ]


@given(query=queries(ROWS), weighted=st.booleans())
def test_bucketize_agrees_with_plain_python(
    routers: list[_kernels.Router],
    query: tuple[np.ndarray, np.ndarray, np.dtype[np.signedinteger]],
    weighted: bool,
) -> None:
    values, lengths, _ = query
    weights = np.arange(len(values), dtype=np.float32) if weighted else None
    fault = expected_fault(values.tolist(), lengths.tolist(), ROWS)
    for number, router in enumerate(routers):
        split = router.bucketize(values, weights, lengths, None)
        if fault is not None:
            assert split == fault
            continue
        assert not isinstance(split, tuple)
        begin = int(lengths[:2].sum()) if number else 0  # the small tables' ids are at home
        starts, bags, ids, sent, _ = split.arrays()
        assert np.frombuffer(starts, np.int64).tolist() == [0, *[len(values) - begin] * 2]
        assert split.wide == (values.dtype == np.int64)
        assert np.frombuffer(ids, values.dtype).tolist() == values[begin:].tolist()
        sent_lengths = np.frombuffer(bags, np.int32).reshape(2, 3, -1)[0]
        assert sent_lengths[2].tolist() == lengths[2].tolist()
        assert (sent is None) == (weights is None)
        if weights is not None and sent is not None:
            assert np.frombuffer(sent, np.float32).tolist() == weights[begin:].tolist()


SMALL = (1, 193, 1000)


@given(query=queries(SMALL), pooling=st.sampled_from(POOLED))
def test_pooling_agrees_with_plain_python(
    query: tuple[np.ndarray, np.ndarray, np.dtype[np.signedinteger]], pooling: Pooling
) -> None:
    values, lengths, _ = query
    tables = [TableSpec(name=f"t{rows}", rows=rows, dim=DIM, pooling=pooling) for rows in SMALL]
    slices = [
        StoredSlice(
            table,
            Precision.FP32,
            np.repeat(np.arange(table.rows, dtype=np.float32)[:, None], DIM, axis=1),
            RowIndex(table.rows, ALL),
        )
        for table in tables
    ]
    shard = EmbeddingShard(slices)
    weights = np.full(len(values), 2, np.float32) if pooling is Pooling.WEIGHTED_SUM else None
    fault = expected_fault(values.tolist(), lengths.tolist(), SMALL)
    if fault is not None:
        with pytest.raises(QueryError) as caught:
            shard.pool(values, lengths, weights)
        kind, table, sample, _, value = fault
        named = [f"{value:,}"] if kind == QueryFault.TOTAL else [f"t{SMALL[table]}", str(value)]
        assert all(name in str(caught.value) for name in named)
        assert kind == QueryFault.TOTAL or f"sample {sample}" in str(caught.value)
        return
    out = shard.pool(values, lengths, weights).reshape(lengths.shape[1], len(SMALL), DIM)
    position = 0
    for table in range(len(SMALL)):
        for sample, length in enumerate(lengths[table].tolist()):
            bag = [float(value) for value in values[position : position + length].tolist()]
            whole = max(bag, default=0.0) if pooling is Pooling.MAX else sum(bag)
            factor = 2 if pooling is Pooling.WEIGHTED_SUM else 1
            assert out[sample, table].tolist() == [whole * factor] * DIM
            position += length


@given(data=st.data(), rows=st.integers(1, 400), kind=st.sampled_from([np.int32, np.int64]))
def test_the_index_agrees_with_plain_python(
    data: st.DataObject, rows: int, kind: type[np.signedinteger]
) -> None:
    stored = data.draw(st.sets(st.integers(0, rows - 1), min_size=1))
    limits = np.iinfo(kind)
    ids = data.draw(
        st.lists(
            st.one_of(st.integers(0, rows - 1), edges(rows)).filter(
                lambda number: limits.min <= number <= limits.max
            ),
            max_size=20,
        )
    )
    index = RowIndex.build(rows, np.array(sorted(stored), np.int64))
    bad = [number for number in ids if not 0 <= number < rows]
    array = np.array(ids, kind)
    if bad:
        with pytest.raises(QueryError, match=f"row id {bad[0]} is outside"):
            index.local(array)
        blocks = np.zeros((-(-rows // 192), 4), np.uint64)
        assert _kernels.index_mark(blocks, rows, array) == ids.index(bad[0])
        return
    ranks = {number: rank for rank, number in enumerate(sorted(stored))}
    assert index.local(array).tolist() == [ranks.get(number, -1) for number in ids]


def test_an_id_below_zero_is_refused_beside_a_table_beyond_int32(huge_route: np.ndarray) -> None:
    """As uint32 it would be a row of such a table, and as an index lie before its routing."""
    table = TableSpec(name="huge", rows=HUGE_ROWS, dim=DIM)
    routing = Routing([table], [TableRoute.of(huge_route)], [[0]])
    for value in (-1, -(2**31), -9):
        with pytest.raises(QueryError, match=f"table huge, sample 0: row id {value} at values"):
            routing.bucketize(np.array([value], np.int32), np.array([[1]], np.int32))
    last = routing.bucketize(np.array([HUGE_ROWS - 1], np.int64), np.array([[1]], np.int32))
    assert last[0].values.tolist() == [HUGE_ROWS - 1]


def test_more_ids_than_counters_can_hold_are_refused() -> None:
    values = np.zeros(2**31, np.int32)  # never touched
    table = TableSpec(name="t", rows=4, dim=DIM)
    lengths = np.array([[2**31 - 1, 1]], np.int32)
    message = "values has 2,147,483,648 ids, at most 2,147,483,647 are taken"
    with pytest.raises(QueryError, match=message):
        Routing([table], [TableRoute.of(np.zeros(4, np.uint8))], [[0]]).bucketize(values, lengths)
    rows = np.zeros((4, DIM), np.float32)
    shard = EmbeddingShard([StoredSlice(table, Precision.FP32, rows, RowIndex(4, ALL))])
    with pytest.raises(QueryError, match=message):
        shard.pool_packed(values, lengths)


@pytest.mark.parametrize("at_home", [False, True])
def test_a_weighted_sum_without_weights_is_refused(at_home: bool) -> None:
    tables = [
        TableSpec(name="plain", rows=4, dim=DIM),
        TableSpec(name="weighted", rows=4, dim=DIM, pooling=Pooling.WEIGHTED_SUM),
    ]
    rows = np.zeros((4, DIM), np.float32)
    shard = EmbeddingShard(
        [StoredSlice(table, Precision.FP32, rows, RowIndex(4, ALL)) for table in tables]
    )
    values, lengths = np.zeros(2, np.int32), np.ones((2, 1), np.int32)
    message = "table weighted pools by weighted sum: the query has no weights"
    with pytest.raises(QueryError, match=message):
        if at_home:
            routes = [TableRoute.of(np.zeros(4, np.uint8))] * 2
            Routing(tables, routes, [[0, 1]], shard.homes(0)).bucketize(values, lengths)
        else:
            shard.pool(values, lengths)


@pytest.mark.parametrize(
    ("slots", "widths"),
    [
        ([[0, 2]], [2]),  # beyond the shard's tables
        ([[0, 0]], [2]),  # two tables in one place
        ([[1, 0]], [2]),  # out of order
        ([[0, 1]], [3]),  # a place of no table
        ([[0, 1]], [2**62]),
        ([[-1, -1]], [-1]),
    ],
)
def test_slots_that_do_not_fit_are_refused(slots: list[list[int]], widths: list[int]) -> None:
    route = plain_route(np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match="slots"):
        _kernels.Router((route, route), np.array(slots, np.int32), np.array(widths, np.int64), None)


@pytest.mark.parametrize(
    ("codes", "bits", "rows", "holders"),
    [
        (1, 3, 2, b"\0"),
        (2, 16, 1, b"\0"),
        (1, -1, 1, b"\0"),
        (1, 1, 9, b"\0\1"),  # a code of the ninth row is missing
        (2, 1, 8, b"\0\1"),
        (0, 0, 8, b""),  # no shard that has them
        (0, 0, 8, b"\0\1"),
        (4, 4, 8, b"\0" * 17),
        (0, 8, -1, b""),
        (0, 0, 2**62, b"\0"),
    ],
)
def test_routes_that_do_not_fit_are_refused(
    codes: int, bits: int, rows: int, holders: bytes
) -> None:
    route = (np.zeros(codes, np.uint8), bits, rows, holders)
    with pytest.raises(ValueError, match="route"):
        _kernels.Router((route,), np.zeros((1, 1), np.int32), np.ones(1, np.int64), None)


def test_sizes_beyond_their_types_are_refused() -> None:
    blocks, ids = np.zeros(0, np.uint64), np.zeros(1, np.int64)
    for rows in (-5, 2**62, 2**63 - 1):
        with pytest.raises(ValueError, match="rows"):
            _kernels.index_mark(blocks, rows, ids)
        with pytest.raises(ValueError, match="rows"):
            _kernels.index_find(blocks, rows, ids, ids.copy())
    with pytest.raises(ValueError, match="out of range"):
        _kernels.Pooler(((np.zeros(16, np.uint8), None, 1, 2**62, 0, 0),))
    with pytest.raises(ValueError, match="negative"):
        _kernels.combine_begin(-1, np.zeros(0, np.float32), np.zeros(0, np.int64))
    routes, floats = np.ones(2, np.uint8), np.ones(2, np.float32)
    with pytest.raises(ValueError, match="shard"):  # its low bits name a shard that has rows
        _kernels.pick_rows(floats, routes, floats, np.zeros(0, np.float32), np.zeros(1), 2**32 + 1)


@given(lengths=st.lists(edges(), min_size=1, max_size=3))
def test_int64_lengths_are_taken_exactly_or_refused(lengths: list[int]) -> None:
    array = np.array([lengths], np.int64)
    if all(-(2**31) <= length < 2**31 for length in lengths):
        assert as_lengths(array).tolist() == [lengths]
    else:
        with pytest.raises(QueryError, match="int32"):
            as_lengths(array)
