"""The fit, and a quick run of the real kernels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erless.profile import throughput
from erless.profile.fit import fit_line


@given(overhead=st.floats(1e-6, 1e-3), slope=st.floats(1e-9, 1e-6), noise=st.floats(-0.05, 0.05))
def test_fit_recovers_the_line(overhead: float, slope: float, noise: float) -> None:
    n = np.array([256, 1024, 4096, 16384, 40960])
    wiggle = 1 + noise * np.array([1, -1, 1, -1, 1])
    line = fit_line(n, (overhead + slope * n) * wiggle)
    assert line.overhead_s > 0
    assert line.slope_s >= 0
    assert line.residual <= 4 * abs(noise) + 1e-6


def test_fit_never_goes_below_zero() -> None:
    line = fit_line([1, 2, 3], [1e-3, 4e-3, 9e-3])
    assert line.overhead_s > 0
    assert line.slope_s > 0


def test_real_kernels_give_rising_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "QUICK", 0.0)
    monkeypatch.setattr(throughput, "QUICK_TABLE_BYTES", 1 << 20)
    curves, towers, *_ = throughput.measure(quick=True)
    assert {curve.precision for curve in curves} == {"fp32", "fp16", "int8", "int4"}
    for curve in curves:
        assert [sample.gathers for sample in curve.samples] == list(throughput.GATHERS)
        assert curve.samples[-1].seconds > curve.samples[0].seconds
        assert not curve.shipped
    assert towers[0].macs_per_sample == 256 * 128 + 128 * 32 + 87 * 256 + 256 * 64 + 64
