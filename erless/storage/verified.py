"""What was read whole and found sound on this machine, so that the next process need not hash it.

Hashing costs a core about a second per gigabyte; a function that scales from zero, or a second
replica on a node, would pay it for bytes that did not change. A *note* is a small JSON file beside
the cache that holds, per blob, the identity of the file that was hashed: device, inode, size,
mtime and ctime in nanoseconds. Whatever changes a file through the file system (a write, a
truncation, a copy over it, a rename, a chmod) changes its ctime, which no program can set, and the
blob is hashed again before it is served. What changes beneath the file system, a decaying disk,
is found by `erless releases verify`, which always reads everything.

Timestamps tick every few milliseconds, so a file is only noted once it has been at rest for
`REST_S`: a later change is then sure to show.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from erless.errors import ArtifactError
from erless.storage.atomic import os_errors, path_inside
from erless.storage.store import Blob, Counter, Ignore, verify_blob
from erless.storage.strict_json import read_json

__all__ = ["note_blobs", "verify_blobs"]

REST_S = 0.02  # more than a tick of the kernel's coarse clock (1/HZ, at most 10 ms)
MAX_THREADS = 4

Identity = list[int | str]


def verify_blobs(
    folder: Path, blobs: Sequence[Blob], note: Path | None = None, counter: Counter | None = None
) -> None:
    """Make sure that every blob in `folder` is as its store says.

    Args:
        folder: blobs lie in it under their names.
        blobs: what must be there.
        note: where to remember what was hashed; None hashes all, each time.
        counter: counts each blob's bytes.

    Raises:
        ArtifactError: a blob is missing, of another size, or of another content.
        StorageError: it cannot be read.
    """
    counter = counter or Ignore()
    noted = _read(note)
    todo = []
    for blob in blobs:
        if note and noted.get(blob.name) == _identity(_place(folder, blob), blob):
            counter.advance(blob.size_bytes)
        else:
            todo.append(blob)
    if not todo:
        return
    before = _identities(folder, blobs) if note else {}
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        # sha256 and read() let other threads run
        for _ in pool.map(lambda blob: verify_blob(_place(folder, blob), blob, counter), todo):
            pass
    if note:
        _write(note, before)


def note_blobs(folder: Path, blobs: Sequence[Blob], note: Path) -> None:
    """Remember `blobs`, which this process has just written and hashed."""
    _write(note, _identities(folder, blobs))


def _place(folder: Path, blob: Blob) -> Path:
    return path_inside(folder, blob.name)


def _identity(path: Path, blob: Blob) -> Identity:
    with os_errors(path, "read"):
        status = path.stat()
    if status.st_size != blob.size_bytes:
        raise ArtifactError(
            f"{path}: {status.st_size:,} bytes, expected {blob.size_bytes:,}: truncated or altered"
        )
    return [
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        blob.sha256,
    ]


def _identities(folder: Path, blobs: Sequence[Blob]) -> dict[str, Identity]:
    """Each blob's identity, taken once its file has been at rest long enough."""
    identities = {blob.name: _identity(_place(folder, blob), blob) for blob in blobs}
    newest = max((int(identity[4]) for identity in identities.values()), default=0)
    age = time.time() - newest / 1e9
    if age < REST_S:
        time.sleep(min(REST_S, REST_S - age))
        identities = {blob.name: _identity(_place(folder, blob), blob) for blob in blobs}
    return identities


def _read(note: Path | None) -> dict[str, Identity]:
    """The note's entries; none where it is absent or not whole."""
    if note is None:
        return {}
    try:
        noted = read_json(note.read_bytes(), str(note))
    except (OSError, ArtifactError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _write(note: Path, identities: dict[str, Identity]) -> None:
    """Replace the note; where it cannot be written, the next process hashes again."""
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        stage = note.with_name(f".{note.name}.{secrets.token_hex(4)}")
        try:
            stage.write_text(json.dumps(identities), encoding="utf-8")
            stage.replace(note)
        finally:
            stage.unlink(missing_ok=True)
