"""What each input became: a store's `keys/`, so that nothing is made twice.

A key is the digest of all that a file depends on. Its record names the files it became; it counts
only while they are all there in full size. A record is written after its files, so a run that was
killed in between makes them again and finds the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from erless.errors import ArtifactError
from erless.pack.table import PackedSlice
from erless.progress import Progress
from erless.specs.artifact import FileEntry
from erless.storage.digests import digest_file
from erless.storage.store import Blob, Store
from erless.storage.strict_json import read_json

__all__ = ["Keys"]


class Keys:
    """The records of one store, and the blobs that they name.

    Args:
        store: where they are.
        verify: trust no size: read what a record names, and forget what is damaged.
        progress: counts the bytes read.
    """

    def __init__(self, store: Store, *, verify: bool = False, progress: Progress) -> None:
        self._store, self._verify, self._progress = store, verify, progress
        self._sizes: dict[str, int] = {}
        self._records: dict[str, dict[str, Any]] = {}
        self.bytes_written = 0

    def take_stock(self, keys: list[str]) -> None:
        """See which of `keys` were made already.

        Raises:
            StorageError: the disk or bucket refused.
        """
        self._list_blobs()
        recorded = {stored.name for stored in self._store.list("keys/")}
        for key in keys:
            if _name(key) in recorded:
                self.recall(key)

    def recall(self, key: str, *, late: bool = False) -> bool:
        """Whether `key` was made and is still there. `late`: perhaps since stock was taken."""
        if key in self._records:
            return True
        try:
            record = read_json(self._store.read(_name(key)), _name(key))
            files = [FileEntry(**entry) for entry in record["files"]]
        except (ArtifactError, ValueError, KeyError, TypeError):
            return False  # never made, or a damaged record: make it again
        if late:
            self._list_blobs()
        if not all(self._is_whole(entry) for entry in files):
            return False
        self._records[key] = record
        return True

    def _list_blobs(self) -> None:
        for prefix in ("blobs/", "pieces/"):
            self._sizes |= {stored.name: stored.size_bytes for stored in self._store.list(prefix)}

    def _is_whole(self, entry: FileEntry) -> bool:
        if self._sizes.get(entry.path) != entry.size_bytes:
            return False
        if self._verify:
            try:
                with self._progress.step("verify", entry.size_bytes, "bytes") as step:
                    self._store.check(_blob(entry), step)
            except ArtifactError:
                self._store.delete(entry.path)
                del self._sizes[entry.path]
                return False
        return True

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._records[key]

    def file(self, key: str) -> FileEntry:
        """The one file that `key` became."""
        return FileEntry(**self._records[key]["files"][0])

    def remember(self, key: str, entry: FileEntry, **more: Any) -> None:
        """Record that `key` became `entry`, which is in the store."""
        record = {"files": [entry.model_dump()], **more}
        self._store.replace(_name(key), _json_bytes(record))
        self._records[key] = record

    def keep_slice(self, packed: PackedSlice) -> None:
        """Keep a slice that was made, and record it."""
        self.adopt(packed.path, packed.file)
        self.remember(
            packed.slice.key, packed.file, error=packed.error, default=packed.default.tolist()
        )

    def forget(self, keys: Iterable[str]) -> None:
        """Remove `keys`, whoever made them, and their files: nobody asks for them any more."""
        self._list_blobs()
        for key in keys:
            if self.recall(key):
                for entry in self._records.pop(key)["files"]:
                    self._store.delete(entry["path"])
                self._store.delete(_name(key))

    def adopt(self, staged: Path, entry: FileEntry) -> FileEntry:
        """Keep the local file `staged` as the blob that `entry` names."""
        with self._progress.step("store", entry.size_bytes, "bytes") as step:
            self._store.adopt(staged, _blob(entry), step)
        self._sizes[entry.path] = entry.size_bytes
        self.bytes_written += entry.size_bytes
        return entry

    def add(self, staged: Path, kind: str) -> FileEntry:
        """Keep `staged` as a blob, unless the store has it."""
        size, sha256 = digest_file(staged)
        entry = FileEntry(path=f"blobs/{sha256}.{kind}", size_bytes=size, sha256=sha256)
        return entry if self._is_whole(entry) else self.adopt(staged, entry)


def _json_bytes(document: dict[str, Any]) -> bytes:
    """`document` as the store keeps it."""
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def _name(key: str) -> str:
    return f"keys/{key}.json"


def _blob(entry: FileEntry) -> Blob:
    return Blob(entry.path, entry.size_bytes, entry.sha256)
