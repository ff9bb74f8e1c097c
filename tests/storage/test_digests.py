"""Digests of files: right, and without a trace in memory."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from erless.errors import ArtifactError
from erless.storage.digests import CHUNK_BYTES, digest_file

# A process that hashes in a thread, as a function that loads does, and tells what it then holds.
HASH = """
import sys, threading
from pathlib import Path
from erless.storage.digests import digest_file

def held():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

before = held()
thread = threading.Thread(target=digest_file, args=(Path(sys.argv[1]),))
thread.start()
thread.join()
print(held() - before)
"""


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_the_digest_is_sha256(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    assert digest_file(path) == (size, hashlib.sha256(b"x" * size).hexdigest())
    with pytest.raises(ArtifactError, match="does not exist"):
        digest_file(tmp_path / "none")


def test_hashing_leaves_no_memory_behind(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(bytes(3 * CHUNK_BYTES))
    told = subprocess.run(
        [sys.executable, "-c", HASH, str(path)], check=True, capture_output=True, text=True
    )
    assert int(told.stdout) < 2048  # kB
