"""Shards that a plan takes from an earlier release as they are, with all the rows in their files.

`erless replan` moves hot rows into the gateway and leaves the shards that they came from alone:
those keep a copy that nobody asks for, and with it their digest, their files and their processes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from erless.errors import ArtifactError, PlanError
from erless.specs.placement import HeldRows, read_blob
from erless.specs.plan import ShardPlan
from erless.specs.release import ReleaseManifest, ReleaseShard
from erless.specs.stored import load_release, load_shard
from erless.storage.store import Blob, Store

__all__ = ["KeptShards"]


class KeptShards:
    """Looks up kept shards in the store that is packed into.

    Args:
        store: where the earlier release is.
        bundle_digest: of the bundle that is packed.
    """

    def __init__(self, store: Store, bundle_digest: str) -> None:
        self._store, self._bundle = store, bundle_digest
        self._releases: dict[str, tuple[ReleaseManifest, HeldRows]] = {}

    def _release(self, digest: str) -> tuple[ReleaseManifest, HeldRows]:
        if digest not in self._releases:
            try:
                release = load_release(self._store, digest)
            except ArtifactError as error:
                raise PlanError(
                    f"the plan keeps shards of release {digest[:12]}: {error}"
                ) from error
            if release.bundle_digest != self._bundle:
                raise PlanError(
                    f"the plan keeps shards of release {digest[:12]}, which is of another bundle"
                )
            if release.folds is not None:
                raise PlanError(
                    f"the plan keeps shards of release {digest[:12]}, into which generations were "
                    "folded: its rows are not the bundle's"
                )
            self._releases[digest] = release, HeldRows(self._store, release)
        return self._releases[digest]

    def _find(self, planned: ShardPlan) -> tuple[ReleaseManifest, int]:
        assert planned.kept is not None  # noqa: S101
        release, _ = self._release(planned.kept.release)
        for number, shard in enumerate(release.shards):
            if shard.digest == planned.kept.digest:
                return release, number
        raise PlanError(
            f"shard {planned.name}: release {release.digest[:12]} has no shard "
            f"{planned.kept.digest[:12]}"
        )

    def shard(self, planned: ShardPlan) -> ReleaseShard:
        """The shard, as the new release has it.

        Raises:
            PlanError: it is not there, or not in the plan's precision.
        """
        release, number = self._find(planned)
        before = release.shards[number]
        manifest = load_shard(self._store, before.digest)
        for part in manifest.slices:
            stored, wanted = manifest.precision_of(part), planned.precision_of(part.table)
            if stored is not wanted:
                raise PlanError(
                    f"shard {planned.name}: kept rows of table {part.table} are {stored}, the plan "
                    f"says {wanted}"
                )
        if manifest.rows < planned.rows:
            raise PlanError(
                f"shard {planned.name} is kept, and has {manifest.rows:,} rows of the plan's "
                f"{planned.rows:,}"
            )
        return ReleaseShard(
            name=planned.name,
            tier=planned.tier,
            precision=manifest.precision,
            digest=manifest.digest,
            tables=tuple(part.table for part in manifest.slices),
            rows=manifest.rows,
            row_bytes=manifest.row_bytes,
            size_bytes=manifest.size_bytes,
            largest_error=before.largest_error,
            cache_bytes=manifest.cache_bytes,
            kept_from=before.kept_from or release.digest,
            spare_rows=manifest.rows - planned.rows,
            exact=before.exact,
        )

    def defaults(self, planned: ShardPlan) -> dict[str, NDArray[np.float32]]:
        """Table → the vector that stands in for its rows, as in the release before."""
        release, number = self._find(planned)
        entry = release.gateway.defaults
        vectors = read_blob(self._store, Blob(entry.path, entry.size_bytes, entry.sha256))
        tables = release.shards[number].tables
        return {table: vectors[f"{number}.{table}"] for table in tables}

    def check(self, planned: ShardPlan, table: str, begin: int, routed: NDArray[np.bool_]) -> None:
        """Raise PlanError unless the shard holds the rows from `begin` on that are routed to it."""
        if not routed.any():
            return
        release, number = self._find(planned)
        window = slice(begin, begin + len(routed))
        held = self._release(release.digest)[1].of(number, table, window)
        missing = np.flatnonzero(routed & ~held)
        if len(missing):
            raise PlanError(
                f"shard {planned.name} is kept, and does not hold row {begin + int(missing[0]):,} "
                f"of table {table}"
            )
