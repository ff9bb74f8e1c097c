"""Curves of histograms are those of the counts that they were made of."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from erless.plan.costs.curves import AccessCurve


@given(
    counts=st.lists(st.integers(1, 9) | st.integers(1, 10**12), min_size=1, max_size=300),
    more=st.integers(0, 500),
)
def test_a_histogram_gives_the_same_curve(counts: list[int], more: int) -> None:
    ranked = np.sort(np.array(counts, np.int64))[::-1].copy()
    values, having = np.unique(ranked, return_counts=True)
    exact = AccessCurve.from_counts(ranked, len(ranked) + more)
    curve = AccessCurve.from_histogram(values[::-1], having[::-1], len(ranked) + more)
    assert curve.ranks.tolist() == exact.ranks.tolist()
    assert np.allclose(curve.share, exact.share, rtol=0, atol=1e-12)
