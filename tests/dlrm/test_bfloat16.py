"""bfloat16 as 16 bits: rounding, and numbers that are none."""

from __future__ import annotations

import numpy as np
import pytest

from erless.dlrm.bfloat16 import all_finite, from_bfloat16, to_bfloat16


def test_numbers_that_bfloat16_holds_come_back() -> None:
    values = np.array([0.0, -1.5, 2.0**-126, 3e38], np.float32)
    values = from_bfloat16(to_bfloat16(values))
    np.testing.assert_array_equal(from_bfloat16(to_bfloat16(values)), values)


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
def test_a_number_that_is_not_finite_is_found(number: float) -> None:
    values = np.array([1.0, number], np.float32)
    assert not all_finite(values)
    assert not all_finite(to_bfloat16(values))


def test_finite_numbers_of_every_kind_are() -> None:
    values = np.array([-3e38, 0.0, 1.0])
    assert all_finite(values)
    assert all_finite(to_bfloat16(values))
    assert all_finite(np.array([0x7F80, -1], np.int32))
    assert all_finite(np.array([True]))
