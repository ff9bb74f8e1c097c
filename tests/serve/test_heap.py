"""After a burst the heap is trimmed: once, and not while the burst goes on."""

from __future__ import annotations

import ctypes

import pytest

from erless.serve.heap import BURST, CALM, EVERY_S, Trimmer


def test_a_burst_is_trimmed_once_it_is_over() -> None:
    calls: list[int] = []
    trimmer = Trimmer(lambda pad: calls.append(pad) or 1)
    assert not trimmer.sweep(0, 0.0)
    trimmer.saw(BURST - 1)
    assert not trimmer.sweep(0, 1.0)
    trimmer.saw(BURST)
    assert not trimmer.sweep(BURST // CALM + 1, 2.0)  # still many
    assert trimmer.sweep(BURST // CALM, 3.0)
    assert not trimmer.sweep(0, 4.0)
    trimmer.saw(10 * BURST)
    assert not trimmer.sweep(0, 3.0 + EVERY_S - 1)
    assert trimmer.sweep(0, 3.0 + EVERY_S)
    assert calls == [0, 0]


def test_the_c_library_does_it() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this C library has no malloc_trim")
    trimmer = Trimmer()
    trimmer.saw(BURST)
    assert trimmer.sweep(0, 0.0)
