"""After a burst the heap is trimmed: once, and not while the burst goes on."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from erless.serve.malloc import BURST, CALM, EVERY_S, HeapTrimmer


def test_a_burst_is_trimmed_once_it_is_over() -> None:
    calls: list[int] = []

    def trim(pad: int) -> int:
        calls.append(pad)
        return 1

    trimmer = HeapTrimmer(trim)
    assert not trimmer.sweep(0, 0.0)
    trimmer.observe(BURST - 1)
    assert not trimmer.sweep(0, 1.0)
    trimmer.observe(BURST)
    assert not trimmer.sweep(BURST // CALM + 1, 2.0)  # still many
    assert trimmer.sweep(BURST // CALM, 3.0)
    assert not trimmer.sweep(0, 4.0)
    trimmer.observe(10 * BURST)
    assert not trimmer.sweep(0, 3.0 + EVERY_S - 1)
    assert trimmer.sweep(0, 3.0 + EVERY_S)
    assert calls == [0, 0]


def test_the_c_library_does_it() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this C library has no malloc_trim")
    trimmer = HeapTrimmer()
    trimmer.observe(BURST)
    assert trimmer.sweep(0, 0.0)


def test_buffers_of_queries_cost_no_page_faults_once_kept() -> None:
    code = """
import resource, sys
import numpy as np
from erless.serve.malloc import keep_heap

kept = keep_heap() if sys.argv[1] == "kept" else True

def queries():
    for _ in range(8):
        held.append(np.ones(40_000, np.float64))
    held.clear()

held = []
for _ in range(10):
    queries()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    queries()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def run(how: str) -> list[int]:
        told = subprocess.run(
            [sys.executable, "-c", code, how], check=True, capture_output=True, text=True
        )
        return [int(each) for each in told.stdout.split()]

    kept, faults = run("kept")
    if not kept:
        pytest.skip("this C library has no mallopt")
    assert faults < 100
    assert run("as it comes")[1] > 1_000  # 625 pages each time: why it is kept
