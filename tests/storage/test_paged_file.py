"""A file that is written at multiples of a huge page: the same bytes, whatever comes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erless.errors import StorageError
from erless.storage.paged_file import HUGE_PAGE_BYTES, PagedFile

SIZES = st.lists(
    st.one_of(st.integers(0, 1000), st.integers(HUGE_PAGE_BYTES - 2, 2 * HUGE_PAGE_BYTES + 2)),
    max_size=6,
)


@given(SIZES)
def test_bytes_are_those_that_came(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    path = tmp_path_factory.mktemp("t") / "file"
    data = np.random.default_rng(len(sizes)).bytes(sum(sizes))
    file, begin = PagedFile(path), 0
    for size in sizes:
        file.write(memoryview(data)[begin : begin + size])
        begin += size
        written = path.stat().st_size  # at multiples alone, and all of them
        assert written == begin - begin % HUGE_PAGE_BYTES
    file.finish()
    assert path.read_bytes() == data


def test_a_disk_that_refuses_is_named() -> None:
    file = PagedFile(Path("/dev/full"))
    with pytest.raises(StorageError, match="/dev/full"):
        file.write(bytes(HUGE_PAGE_BYTES))
    file.write(b"more")
    with pytest.raises(StorageError, match="/dev/full"):
        file.finish()
    file.close()
