"""Rows that are made when they are asked for."""

from __future__ import annotations

import numpy as np
import pytest

from erless.dlrm.quantize import decode
from erless.dlrm.synthetic_rows import SyntheticRows
from erless.specs.plan import Precision

DIM = 32


def rows_of(precision: Precision = Precision.FP32, key: int = 7, rows: int = 3000) -> SyntheticRows:
    return SyntheticRows(10_000, rows, DIM, precision, 0.02, 0.1, key)


def values(rows: SyntheticRows, ids: np.ndarray, precision: Precision) -> np.ndarray:
    rows.make(ids)
    return decode(rows.rows[rows.index.local(ids)], precision, DIM)


@pytest.mark.parametrize("precision", list(Precision))
def test_a_row_is_always_the_same_whatever_was_asked_before(precision: Precision) -> None:
    rows, other = rows_of(precision), rows_of(precision)
    held = rows.index.ids(0, rows.index.stored)
    first = values(rows, held[:50], precision)
    for id_ in held[49::-1]:
        other.make(np.array([id_]))
    np.testing.assert_array_equal(first, values(other, held[:50], precision))
    assert (first != values(rows_of(precision, key=8), held[:50], precision)).mean() > 0.9 or (
        precision is Precision.INT4
    )


def test_their_number_and_distribution_are_as_asked() -> None:
    rows = rows_of()
    assert abs(rows.index.stored - 3000) < 5 * np.sqrt(3000)
    held = rows.index.ids(0, rows.index.stored)
    found = values(rows, held, Precision.FP32)
    assert abs(found.mean() - 0.02) < 0.002
    assert abs(found.std() - 0.1) < 0.002
    assert abs(np.corrcoef(found[:-1, 0], found[1:, 0])[0, 1]) < 0.1
    assert abs(np.corrcoef(found[:, 0], found[:, 1])[0, 1]) < 0.1
    assert rows_of(rows=10_000).index.stored == 10_000


def test_only_rows_that_were_asked_for_are_made() -> None:
    rows = rows_of()
    held = rows.index.ids(0, 3)
    rows.make(np.array([-5, 10**9, int(held[1])]))
    made = np.any(rows.rows != 0, axis=1)
    assert made.tolist()[:3] == [False, True, False]
    assert made.sum() == 1
