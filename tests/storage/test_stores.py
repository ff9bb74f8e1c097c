"""Opening a store: it is known by its marker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from erless.errors import ArtifactError, ErlessError, StorageError, StoreError
from erless.storage.stores import open_store


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
def test_other_markers_are_told(
    tmp_path: Path, marker: object, error: type[ErlessError], says: str
) -> None:
    text = marker if isinstance(marker, str) else json.dumps(marker)
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(error, match=says):
        open_store(str(tmp_path))
