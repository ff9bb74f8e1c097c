"""The store that is a directory: writers that are killed, and writers apart from pruners."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from erless.errors import StoreError
from erless.storage.directory import DirectoryStore
from tests.conftest import ROOT


def test_the_stage_of_a_killed_writer_goes_with_the_next(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, create=True)
    program = (
        "import sys; from pathlib import Path\n"
        "from erless.storage.directory import DirectoryStore\n"
        "with DirectoryStore(Path(sys.argv[1])).staging() as stage:\n"
        "    (stage / 'x').write_text('x'); print(stage, flush=True); sys.stdin.read()\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert writer.stdout is not None
    theirs = Path(writer.stdout.readline().strip())
    with store.staging():
        assert theirs.exists()  # its writer lives
    writer.kill()
    writer.communicate(timeout=60)
    with store.staging():
        assert not theirs.exists()


def test_pruners_and_writers_keep_apart(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, create=True)
    other = DirectoryStore(tmp_path)
    with store.locked(exclusive=False), other.locked(exclusive=False):
        with pytest.raises(StoreError, match="a packer is writing to it"):
            other.locked(exclusive=True).__enter__()
    with store.locked(exclusive=True), pytest.raises(StoreError, match="it is being pruned"):
        other.locked(exclusive=False).__enter__()
