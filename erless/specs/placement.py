"""Where the rows of a release lie: which shard answers for each, and which shards hold it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.errors import ArtifactError
from erless.specs.release import ReleaseManifest
from erless.specs.routes import RoutingFile
from erless.specs.stored import load_release
from erless.storage.store import Blob, Ignore, Store
from erless.storage.tensors import TensorFile

__all__ = ["HeldRows", "read_blob", "routes_of"]


def routes_of(store: Store, release: ReleaseManifest) -> dict[str, NDArray[np.uint8]]:
    """Table → (rows,) the number of the shard that answers for each row.

    Raises:
        ArtifactError: the routing is missing or altered.
        StorageError: the disk or service refused.
    """
    entry = release.gateway.routing
    tables = {table.name: table.rows for table in release.model.tables}
    with _fetched(store, Blob(entry.path, entry.size_bytes, entry.sha256)) as path:
        file = RoutingFile(path, tables, release.shards)
        return {name: file.read(name, 0, rows) for name, rows in tables.items()}


def read_blob(store: Store, blob: Blob) -> dict[str, NDArray[Any]]:
    """All tensors of a file, compared with its digest. Errors as `routes_of`."""
    with _fetched(store, blob) as path:
        file = TensorFile(path)
        return {name: file.read(name) for name in file.tensors}


@contextmanager
def _fetched(store: Store, blob: Blob) -> Iterator[Path]:
    """A verified copy of a file, for the block."""
    with tempfile.TemporaryDirectory(prefix="erless-") as folder:
        path = Path(folder) / "tensors.safetensors"
        store.fetch(blob, path, Ignore())
        yield path


class HeldRows:
    """Which rows the files of a release's shards hold: also those that others answer for.

    A shard that was kept by later releases has the rows that it had where it was packed.

    Args:
        store: of the release.
        release: whose shards these are.
    """

    def __init__(self, store: Store, release: ReleaseManifest) -> None:
        self._store, self._release = store, release
        self._routes: dict[str, dict[str, NDArray[np.uint8]]] = {}
        self._packed: dict[int, tuple[ReleaseManifest, int]] = {}

    @property
    def routes(self) -> dict[str, NDArray[np.uint8]]:
        """As `routes_of` the release."""
        return self._routes_in(self._release)

    def _routes_in(self, release: ReleaseManifest) -> dict[str, NDArray[np.uint8]]:
        if release.digest not in self._routes:
            self._routes[release.digest] = routes_of(self._store, release)
        return self._routes[release.digest]

    def of(self, number: int, table: str, rows: slice = slice(None)) -> NDArray[np.bool_]:
        """(rows,) whether shard `number` holds each row of `table`, or of `rows` of it.

        Raises:
            ArtifactError: the release that it was packed for is gone, or does not have it.
        """
        if number not in self._packed:
            self._packed[number] = self._find(number)
        release, place = self._packed[number]
        return np.asarray(self._routes_in(release)[table][rows] == place)

    def _find(self, number: int) -> tuple[ReleaseManifest, int]:
        """The release that shard `number` was packed for, and its number there."""
        shard = self._release.shards[number]
        release = self._release
        if shard.kept_from is not None:
            release = load_release(self._store, shard.kept_from)
        for place, packed in enumerate(release.shards):
            if packed.digest == shard.digest:
                return release, place
        raise ArtifactError(f"release {release.digest[:12]} has no shard {shard.digest[:12]}")
