"""Content digests: sha256 of files, and of JSON in one canonical form."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from erless.progress import Progress, Silent
from erless.storage.atomic import os_errors

__all__ = ["FileDigest", "digest_file", "digest_json"]

CHUNK_BYTES = 8 << 20  # mapped: the heap of a thread would keep it for good


class FileDigest(NamedTuple):
    """Size and content of one file."""

    size_bytes: int
    sha256: str


def digest_file(path: Path, progress: Progress | None = None) -> FileDigest:
    """Size and sha256 of the file at `path`, read in chunks.

    Raises:
        ArtifactError: there is no such file.
        StorageError: it cannot be read.
    """
    state = hashlib.sha256()
    size = 0
    with os_errors(path, "read"), path.open("rb", buffering=0) as file:
        total = path.stat().st_size
        with (
            mmap.mmap(-1, min(CHUNK_BYTES, max(1, total))) as pages,
            memoryview(pages) as buffer,
            (progress or Silent()).step(f"check {path.name}", total, "bytes") as step,
        ):
            while read := file.readinto(buffer):
                with buffer[:read] as chunk:
                    state.update(chunk)
                size += read
                step.advance(read)
    return FileDigest(size, state.hexdigest())


def digest_json(document: Mapping[str, Any]) -> str:
    """sha256 of `document` as JSON with sorted keys and no spaces.

    >>> digest_json({"b": 1, "a": 2}) == digest_json({"a": 2, "b": 1})
    True
    """
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
