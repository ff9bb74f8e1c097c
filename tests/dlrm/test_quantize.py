"""Each precision keeps every element within its bound, on any rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from erless.dlrm.quantize import decode, encode, error_bound, stored_dtype, stored_width
from erless.errors import ModelError
from erless.specs.plan import Precision

ROWS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 20), st.integers(1, 9)),
    elements=st.floats(-60000, 60000, width=32),
)


@pytest.mark.parametrize("precision", list(Precision))
@given(rows=ROWS)
def test_every_element_is_within_the_bound(precision: Precision, rows: np.ndarray) -> None:
    stored = encode(rows, precision)
    assert stored.dtype == stored_dtype(precision)
    assert stored.shape == (len(rows), stored_width(precision, rows.shape[1]))
    assert stored[0].nbytes == precision.row_bytes(rows.shape[1])
    values = decode(stored, precision, rows.shape[1])
    error = np.abs(values.astype(np.float64) - rows).max(axis=1)
    assert (error <= error_bound(stored, precision, rows)).all()


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
def test_bound_is_tight_for_common_rows(precision: Precision) -> None:
    rows = np.random.default_rng(0).normal(0, 0.1, (5000, 32)).astype(np.float32)
    stored = encode(rows, precision)
    error = np.abs(decode(stored, precision, 32).astype(np.float64) - rows)
    levels = {Precision.INT8: 255, Precision.INT4: 15}[precision]
    ideal = (rows.max(axis=1) - rows.min(axis=1)).astype(np.float64) / levels / 2
    assert error.max() <= 1.01 * ideal.max() + 2**-14  # half a step, and bias's own rounding
    assert error.max() >= 0.5 * ideal.max()


@pytest.mark.parametrize("precision", list(Precision))
def test_constant_rows_and_zeros_survive(precision: Precision) -> None:
    rows = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [-3, -3, -3]], np.float32)
    assert np.array_equal(decode(encode(rows, precision), precision, 3), rows)


def test_int4_puts_the_first_code_into_the_low_nibble() -> None:
    stored = encode(np.array([[0, 15, 1]], np.float32), Precision.INT4)
    assert stored[0, 4:].tolist() == [0xF0, 0x01]
    assert stored[0, :4].view("<f2").tolist() == [1.0, 0.0]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8, Precision.INT4])
def test_what_float16_cannot_hold_is_refused(precision: Precision, value: float) -> None:
    rows = np.zeros((4, 3), np.float32)
    rows[2, 1] = value
    with pytest.raises(ModelError, match="element 1 of a row is"):
        encode(rows, precision)
