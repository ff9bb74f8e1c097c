"""Copies of a slice's rows that states are written into, one after the other."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from erless.dlrm.embedding import EmbeddingShard, StoredSlice
from erless.dlrm.patches import RowChanges
from erless.dlrm.row_copies import RowCopy
from erless.dlrm.rows import RowIndex
from erless.specs.model import TableSpec
from erless.specs.plan import Precision

ROWS, DIM = 50, 3
Floats = NDArray[Any]


def released() -> StoredSlice:
    rows = np.arange(ROWS * DIM, dtype=np.float32).reshape(ROWS, DIM)
    table = TableSpec(name="items", rows=ROWS, dim=DIM)
    return StoredSlice(table, Precision.FP32, rows, RowIndex.build(ROWS, np.arange(ROWS)))


@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 3),  # states that are rolled back before
            st.sets(st.integers(0, ROWS + 4), max_size=ROWS),
            st.booleans(),  # whether the copy is brought to this state
        ),
        max_size=12,
    )
)
def test_a_copy_is_brought_from_any_state_to_any_other(
    steps: list[tuple[int, set[int], bool]],
) -> None:
    """Rolled back, gathered, grown or left out: it holds what a fresh copy would."""
    states, copy = [released()], RowCopy(released().rows)
    for number, (back, ids, brought) in enumerate(steps, 1):
        states = states[: max(1, len(states) - back)]
        grown = max(states[-1].table.rows, *(one + 1 for one in ids), ROWS)
        changed = np.array(sorted(ids), np.int64)
        rows = np.full((len(changed), DIM), -number, np.float32)
        states.append(states[-1].changed(RowChanges(changed, rows, grown)))
        if brought:
            again, fresh = states[-1].rewritten(copy), states[-1].rewritten()
            np.testing.assert_array_equal(again.rows, fresh.rows)
            assert (again.patch is None) == (fresh.patch is None)
            del again


def test_a_copy_is_free_once_nothing_looks_it_up() -> None:
    part = released().changed(RowChanges(np.array([7]), np.zeros((1, DIM), np.float32), ROWS))
    copy = RowCopy(part.rows)
    shard = EmbeddingShard([part.rewritten(copy)])
    home = shard.homes(0)  # a routing holds the pooler, which holds the rows
    shard.pool(np.array([7]), np.ones((1, 1), np.int32))
    free = [copy.free]
    del shard
    free.append(copy.free)
    with pytest.raises(AssertionError, match="still looked up"):
        part.rewritten(copy)
    del home
    assert [*free, copy.free] == [False, False, True]


def test_a_copy_that_was_not_finished_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    first = released().changed(RowChanges(np.array([7]), np.zeros((1, DIM), np.float32), ROWS))
    second = first.changed(RowChanges(np.array([8]), np.zeros((1, DIM), np.float32), ROWS))
    copy = RowCopy(first.rows)
    first.rewritten(copy)
    with monkeypatch.context() as patched:
        patched.setattr(type(second.patch), "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            second.rewritten(copy)
    np.testing.assert_array_equal(second.rewritten(copy).rows, second.rewritten().rows)


def test_a_kernel_without_huge_pages_serves_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 9999)
    part = released().changed(RowChanges(np.array([7]), np.zeros((1, DIM), np.float32), ROWS))
    assert part.rewritten(RowCopy(part.rows)).rows[7].tolist() == [0, 0, 0]
