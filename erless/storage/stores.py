"""Open a store by its location; the marker of a store of ours."""

from __future__ import annotations

import json
from pathlib import Path

from erless.errors import ArtifactError, StoreError
from erless.storage.directory import DirectoryStore
from erless.storage.store import Store
from erless.storage.strict_json import read_json

__all__ = ["open_store"]

MARKER = "store.json"
KIND = "erless store"
SCHEMA_VERSION = 1


def open_store(location: str, *, endpoint_url: str | None = None, create: bool = False) -> Store:
    """The store at `location`, a directory or `s3://bucket/prefix`.

    Args:
        location: as the user wrote it.
        endpoint_url: of an S3 API other than AWS's.
        create: make it if it is not there yet (never the bucket).

    Raises:
        StoreError: no store there, or the bucket does not exist.
        ArtifactError: a store of a newer schema.
        StorageError: the disk or service refused.
    """
    store: Store
    if location.startswith("s3://"):
        from erless.storage.s3.store import S3Store  # boto3 takes a while to import

        store = S3Store(location, endpoint_url)
    else:
        store = DirectoryStore(Path(location), create=create)
    _check_marker(store, create)
    return store


def _check_marker(store: Store, create: bool) -> None:
    """Refuse what has no marker of ours; write one where there is nothing else."""
    try:
        text = store.read(MARKER)
    except ArtifactError:
        if not create:
            raise StoreError(f"{store.url} is not a release store: it has no {MARKER}") from None
        if isinstance(store, DirectoryStore):
            store.check_empty()
        text = (json.dumps({"kind": KIND, "schema_version": SCHEMA_VERSION}) + "\n").encode()
        store.create(MARKER, text)
    try:
        marker = read_json(text, f"{store.url}/{MARKER}")
        kind, version = marker["kind"], int(marker["schema_version"])
    except (ArtifactError, ValueError, TypeError, KeyError):
        raise ArtifactError(f"{store.url}/{MARKER} is damaged") from None
    if kind != KIND:
        raise StoreError(f"{store.url} is not a release store: {MARKER} says {kind!r}")
    if version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{store.url}: store schema {version}; this erless reads up to {SCHEMA_VERSION}"
        )
