"""The store that is a directory: documents once, blobs whole, writers apart from pruners."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from erless.errors import ArtifactError, StorageError, StoreError
from erless.storage.stores import Blob, DirectoryStore, Ignore, open_store
from tests.conftest import ROOT


def blob_of(data: bytes) -> Blob:
    digest = hashlib.sha256(data).hexdigest()
    return Blob(f"blobs/{digest}.bin", len(data), digest)


def test_a_store_is_known_by_its_marker(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such directory"):
        open_store(str(tmp_path / "s"))
    open_store(str(tmp_path / "s"), create=True)
    open_store(str(tmp_path / "s"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(StoreError, match="is not a release store, and not empty"):
        open_store(str(tmp_path / "full"), create=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write .*file"):
        open_store(str(tmp_path / "file"), create=True)


@pytest.mark.parametrize(
    ("marker", "error", "says"),
    [
        ("not json", ArtifactError, "store.json is damaged"),
        ("[]", ArtifactError, "store.json is damaged"),
        ({"kind": "other", "schema_version": 1}, StoreError, "says 'other'"),
        ({"kind": "erless store", "schema_version": 2}, ArtifactError, "reads up to 1"),
    ],
)
def test_other_markers_are_told(tmp_path: Path, marker, error, says) -> None:
    text = marker if isinstance(marker, str) else json.dumps(marker)
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(error, match=says):
        open_store(str(tmp_path))


def test_documents_are_created_once(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.create("a/x.json", b"1")
    store.create("a/x.json", b"1")
    with pytest.raises(StoreError, match="exists already with other content"):
        store.create("a/x.json", b"2")
    store.replace("a/x.json", b"2")
    assert store.read("a/x.json") == b"2"
    assert [each.name for each in store.list("a/")] == ["a/x.json"]
    store.delete("a/x.json")
    store.delete("a/x.json")
    with pytest.raises(ArtifactError, match="does not exist"):
        store.read("a/x.json")
    assert store.list("nothing/") == []


def test_blobs_are_adopted_checked_and_fetched(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "s", create=True)
    blob = blob_of(b"hello")
    with store.staging() as stage:
        (stage / "x").write_bytes(b"hello")
        store.adopt(stage / "x", blob, Ignore())
    assert not stage.exists()
    store.check(blob, Ignore())
    store.fetch(blob, tmp_path / "copy", Ignore())
    assert (tmp_path / "copy").read_bytes() == b"hello"
    with pytest.raises(ArtifactError, match="does not exist"):
        store.check(blob_of(b"other"), Ignore())


def test_the_stage_of_a_killed_writer_goes_with_the_next(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, create=True)
    program = (
        "import sys; from pathlib import Path\n"
        "from erless.storage.stores import DirectoryStore\n"
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
    with store.held(exclusive=False), other.held(exclusive=False):
        with pytest.raises(StoreError, match="a packer is writing to it"):
            other.held(exclusive=True).__enter__()
    with store.held(exclusive=True), pytest.raises(StoreError, match="it is being pruned"):
        other.held(exclusive=False).__enter__()
