"""A bundle's files: in their folder, or, out of a bucket, all but the tables, which stay there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from erless.errors import ArtifactError
from erless.specs.bundle import MANIFEST, BundleManifest
from erless.storage.atomic import path_inside
from erless.storage.ranged import open_ranges, read_bytes

__all__ = ["BundleFiles", "bundle_files"]


class BundleFiles(NamedTuple):
    """Where a bundle is: `tables_at` is its prefix in a bucket, if `folder` lacks its tables."""

    folder: Path
    tables_at: str | None = None


@contextmanager
def bundle_files(location: str, endpoint_url: str | None = None) -> Iterator[BundleFiles]:
    """The bundle at `location`, a folder or `s3://bucket/prefix`, while the block runs.

    Raises:
        ArtifactError: no bundle there, or one of its small files is missing or altered.
        StorageError: the disk or bucket refused.
    """
    if not location.startswith("s3://"):
        yield BundleFiles(Path(location))
        return
    location = location.rstrip("/")
    with TemporaryDirectory(prefix="erless-bundle-") as name:
        folder = Path(name)
        (folder / MANIFEST).write_bytes(_read(f"{location}/{MANIFEST}", endpoint_url))
        manifest = BundleManifest.load(folder / MANIFEST)
        for entry in manifest.files():
            if entry in manifest.tables:
                continue
            data = _read(f"{location}/{entry.path}", endpoint_url)
            if hashlib.sha256(data).hexdigest() != entry.sha256:
                raise ArtifactError(
                    f"{location}/{entry.path}: altered: sha256 does not match the bundle's"
                )
            path = path_inside(folder, entry.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        yield BundleFiles(folder, location)


def _read(location: str, endpoint_url: str | None) -> bytes:
    with closing(open_ranges(location, endpoint_url)) as file:
        return read_bytes(file, 0, file.size_bytes)
