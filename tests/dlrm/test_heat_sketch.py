"""Sketches hold to their bounds, whatever comes, and however replicas are added up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from erless.dlrm.heat_sketch import FLOOR, TableSketch, capacities, merged


def power_law(rows: int, accesses: int, seed: int = 0, locality: float = 0.9) -> NDArray[np.int64]:
    """Accesses of rows whose hottest tenth takes `locality` of them; hot ids lie anywhere."""
    random = np.random.default_rng(seed)
    exponent = np.log(0.1) / np.log(locality)
    ranks = (rows * random.random(accesses) ** exponent).astype(np.int64)
    ids: NDArray[np.int64] = np.random.default_rng(99).permutation(rows)
    drawn: NDArray[np.int64] = ids[np.minimum(ranks, rows - 1)]
    return drawn


def exact(ids: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = np.bincount(ids, minlength=rows)
    return counts


@given(
    st.lists(st.lists(st.integers(0, 40), max_size=60), min_size=1, max_size=8),
    st.integers(1, 12),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_no_count_is_off_by_more_than_the_error(
    batches: list[list[int]], capacity: int, replicas: int
) -> None:
    sketches = [TableSketch(41, capacity) for _ in range(replicas)]
    for number, batch in enumerate(batches):
        sketches[number % replicas].add(np.array(batch, np.int64))
    for sketch in sketches:
        sketch.trim()
    whole = merged(sketches, [1.0] * replicas)
    ids = np.concatenate([np.array(batch, np.int64) for batch in batches])
    counts = exact(ids, 41)
    held = np.zeros(41)
    held[whole.ids] = whole.counts
    assert (held <= counts + 1e-9).all()
    assert (held >= counts - whole.error - 1e-9).all()
    assert whole.error <= len(ids) / (capacity + 1) + 1e-9
    assert whole.accesses == len(ids)


def test_memory_is_bounded_and_the_hottest_rows_are_found() -> None:
    rows, ids = 400_000, power_law(400_000, 1_500_000)
    sketch = TableSketch(rows, 5_000)
    for batch in np.array_split(ids, 10):
        sketch.add(batch)
    sketch.trim()
    assert len(sketch.ids) <= 5_000
    assert len(sketch.sampled) <= 2 * (1 << 14)
    counts = exact(ids, rows)
    hottest = np.argsort(-counts)[:1_000]
    assert np.isin(hottest, sketch.ids).all()
    assert sketch.touched == pytest.approx(np.count_nonzero(counts), rel=0.06)
    np.testing.assert_array_equal(sketch.sampled_counts, counts[sketch.sampled])  # exact


def test_what_is_old_weighs_less_and_is_forgotten() -> None:
    sketch = TableSketch(100, 10)
    sketch.add(np.array([1, 1, 1, 1, 2]))
    sketch.decay(0.5)
    sketch.add(np.array([3, 3, 3]))
    assert dict(zip(sketch.ids.tolist(), sketch.counts.tolist(), strict=True)) == {
        1: 2.0,
        2: 0.5,
        3: 3.0,
    }
    assert (sketch.accesses, sketch.squares) == (5.5, 4.25)
    sketch.decay(FLOOR)
    assert sketch.ids.tolist() == [1, 3]
    assert sketch.error == FLOOR  # what was forgotten
    sketch.turn()
    assert sketch.touched == pytest.approx(3, abs=0.1)
    sketch.turn()
    assert sketch.touched == 0


def test_ids_outside_the_table_are_left_out() -> None:
    sketch = TableSketch(10, 10)
    sketch.add(np.array([-1, 10, 3, 99], np.int32))
    assert (sketch.ids.tolist(), sketch.accesses) == ([3], 1.0)


def test_small_tables_are_counted_whole_within_the_memory() -> None:
    shares = capacities([50, 10_000_000, 20_000_000, 7], 16_000_000)
    assert shares[0] == 50
    assert shares[3] == 7
    assert shares[1] == pytest.approx(shares[2], abs=1)
    assert sum(shares) * 16 * 1.25 <= 16_000_000
