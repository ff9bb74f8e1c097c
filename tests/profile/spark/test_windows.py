"""Windows of counts as rows of Spark's: cut, and added up again, without Spark."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from erless.profile.spark.executor import SAMPLES, WindowSums, _facts, _windows, window_rows

WINDOW = 16


COUNTS = st.integers(1, 9) | st.integers((1 << 32) - 9, 1 << 40)  # of 32 bits, or more


@given(
    parts=st.lists(
        st.tuples(st.integers(0, 2), st.dictionaries(st.integers(0, 99), COUNTS)), max_size=8
    )
)
def test_parts_of_windows_add_up_to_the_counts(parts: list[tuple[int, dict[int, int]]]) -> None:
    batches = [_facts([(SAMPLES, 1, 17, None)])]
    wanted = np.zeros((3, 100), np.int64)
    for table, counts in parts:
        ids = np.array(sorted(counts), np.int64)
        if len(ids):
            numbers = np.array([counts[int(each)] for each in ids], np.int64)
            wanted[table][ids] += numbers
            batches += _windows(table, ids, numbers, WINDOW)
    rows = pa.Table.from_batches(batches).sort_by([("table", "ascending"), ("id", "ascending")])
    found = np.zeros((3, 100), np.int64)
    keys = []
    for batch in WindowSums(WINDOW).run(iter(rows.to_batches(max_chunksize=3))):
        for row, table in enumerate(batch.column("table").to_pylist()):
            if table < 0:
                assert batch.column("count")[row].as_py() == 17
                continue
            base = batch.column("id")[row].as_py()
            keys.append((table, base))
            offsets, numbers = window_rows(batch, row)
            assert len(offsets) == batch.column("count")[row].as_py()
            found[table][base + offsets] += numbers
    assert (found == wanted).all()
    assert keys == sorted(set(keys))
