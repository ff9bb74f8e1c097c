"""Plan + bundle + profile → release, in one reading of each table.

Everything is named by its content and nothing depends on when or where it was made. `keys/`
remembers what an input became (`erless.pack.keys`): before a slice is made its key (table file,
counts, ranks, precision) is looked up, so packing twice does nothing, a changed shard is made
alone, a run that was cut off goes on where it stopped, and many workers with `--shard` share the
work. The packer that finds all shards there writes the release manifest, last.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from erless.errors import ArtifactError, PlanError
from erless.pack.inputs import PackInputs, PackSlice
from erless.pack.kept import KeptShards
from erless.pack.keys import Keys
from erless.pack.routing import RoutingWriter, holders
from erless.pack.table import PackedSlice, pack_table
from erless.progress import Progress, Silent
from erless.specs.artifact import FileEntry
from erless.specs.bundle import MANIFEST as BUNDLE_MANIFEST
from erless.specs.profile import MANIFEST as PROFILE_MANIFEST
from erless.specs.release import (
    GatewayFiles,
    ReleaseManifest,
    ReleaseShard,
    ShardManifest,
    ShardSlice,
    release_name,
    shard_name,
)
from erless.specs.stored import keep_by_digest, record_release
from erless.storage.atomic import os_errors
from erless.storage.store import Store
from erless.storage.tensors import write_tensors

__all__ = ["Packed", "Packer"]


@dataclass(frozen=True, slots=True)
class Packed:
    """What a pack did. `release` is None while other workers' shards are missing."""

    release: ReleaseManifest | None
    missing: tuple[str, ...]
    slices_written: int
    slices_kept: int
    bytes_written: int


class Packer:
    """One plan about to be packed into one store.

    Args:
        inputs: the plan, and what it was made from.
        store: where the release goes.
        verify: read what the store has already, and make again what is damaged.
        progress: shown while it runs.

    `keys` are the records of the store.
    """

    def __init__(
        self,
        inputs: PackInputs,
        store: Store,
        *,
        verify: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.inputs, self.store = inputs, store
        self._progress = progress or Silent()
        self._kept = KeptShards(store, self.inputs.bundle.digest)
        self.keys = Keys(store, verify=verify, progress=self._progress)
        self._written = 0

    def pack(self, shard: int | None = None) -> Packed:
        """Make what is missing: of shard number `shard`, or all; then the release, if complete.

        Raises:
            PlanError: there is no such shard.
            ModelError: a row that its precision cannot hold.
            StoreError: the store is being pruned.
            StorageError: the disk or bucket refused.
        """
        shards, slices = self.inputs.plan.shards, self.inputs.slices
        if shard is not None and not 0 <= shard < len(shards):
            raise PlanError(f"there is no shard {shard}: the plan has {len(shards)}")
        selected = [part for part in slices if shard in (None, part.shard)]
        with self.store.locked(exclusive=False), self.store.staging() as stage:
            self.keys.take_stock([part.key for part in slices])
            if shard is None and not self.keys.recall(self._routing_key()):
                with self._router(stage) as routing:
                    self._make(selected, stage, routing)
            else:
                self._make(selected, stage)
            release = self._finish(stage)
        return Packed(
            release=release,
            missing=self._missing(),
            slices_written=self._written,
            slices_kept=len(selected) - self._written,
            bytes_written=self.keys.bytes_written,
        )

    def _make(
        self, selected: list[PackSlice], stage: Path, routing: RoutingWriter | None = None
    ) -> None:
        """Make what is missing of the slices `selected`, and note in `routing` where rows go."""
        for number, table in enumerate(self.inputs.model.tables):
            missing = [
                part
                for part in selected
                if part.table_number == number and part.key not in self.keys
            ]
            if not missing and routing is None:
                continue
            windows = self.inputs.windows(table, stage)
            if routing is not None:
                windows = routing.through(table, windows)
            if missing:
                pack_table(self.inputs, missing, windows, stage, self._progress, self._keep)
            for _ in windows:
                pass  # the routing's, where nothing is missing

    def complete(self) -> Packed:
        """Write what is left, and the release, once others have made all slices.

        Raises as `pack`.
        """
        with self.store.locked(exclusive=False), self.store.staging() as stage:
            before = [part for part in self.inputs.slices if part.key in self.keys]
            release = self._finish(stage)
        made = [part for part in self.inputs.slices if part.key in self.keys]
        written = [self.keys.file(part.key).size_bytes for part in made if part not in before]
        return Packed(
            release=release,
            missing=self._missing(),
            slices_written=len(written),
            slices_kept=len(before),
            bytes_written=self.keys.bytes_written + sum(written),
        )

    def route(self) -> None:
        """Write the gateway's routing, which the plan alone decides, while others make slices.

        Raises as `pack`.
        """
        with self.store.staging() as stage:
            self._routing(stage)

    def _missing(self) -> tuple[str, ...]:
        """The names of the shards of which slices are missing."""
        shards, slices = self.inputs.plan.shards, self.inputs.slices
        return tuple(
            sorted({shards[part.shard].name for part in slices if part.key not in self.keys})
        )

    def _keep(self, packed: PackedSlice) -> None:
        self.keys.keep_slice(packed)
        self._written += 1

    def _finish(self, stage: Path) -> ReleaseManifest | None:
        """Write shard manifests, the gateway's files and the release, if all slices are there."""
        shards = []
        complete = True
        for number, planned in enumerate(self.inputs.plan.shards):
            if planned.kept is not None:
                shards.append(self._kept.shard(planned))
                continue
            parts = [part for part in self.inputs.slices if part.shard == number]
            # another worker may have finished a slice since we took stock
            recalled = [self.keys.recall(part.key, late=True) for part in parts]
            if all(recalled):
                shards.append(self._shard(number, parts))
            else:
                complete = False
        return self._release(tuple(shards), stage) if complete else None

    def _shard(self, number: int, slices: list[PackSlice]) -> ReleaseShard:
        """Write the manifest of a complete shard."""
        planned = self.inputs.plan.shards[number]
        cache_bytes = planned.disk.cache_bytes if planned.disk else None
        manifest = ShardManifest.create(
            precision=planned.precision,
            cache_bytes=cache_bytes,
            slices=tuple(
                ShardSlice(
                    table=part.table.name,
                    table_rows=part.table.rows,
                    dim=part.table.dim,
                    pooling=part.table.pooling,
                    rows=part.rows,
                    file=self.keys.file(part.key),
                    precision=planned.exact.get(part.table.name),
                )
                for part in slices
            ),
        )
        keep_by_digest(self.store, shard_name(manifest.digest), manifest.text)
        return ReleaseShard(
            name=planned.name,
            tier=planned.tier,
            precision=planned.precision,
            digest=manifest.digest,
            tables=tuple(part.table.name for part in slices),
            rows=manifest.rows,
            row_bytes=manifest.row_bytes,
            size_bytes=manifest.size_bytes,
            largest_error=max(self.keys[part.key]["error"] for part in slices),
            cache_bytes=cache_bytes,
            exact=planned.exact,
        )

    def _release(self, shards: tuple[ReleaseShard, ...], stage: Path) -> ReleaseManifest:
        inputs = self.inputs
        release = ReleaseManifest.create(
            bundle_digest=inputs.bundle.digest,
            plan_digest=inputs.plan.digest,
            profile_digest=inputs.profile.digest,
            model=inputs.model,
            shards=shards,
            gateway=GatewayFiles(routing=self._routing(stage), defaults=self._defaults(stage)),
            tower=self._copy_entry(inputs.bundle.tower, stage),
            front=self._copy_entry(inputs.bundle.front, stage),
            request_front=self._copy_entry(inputs.bundle.request_front, stage),
            vocabularies=tuple(
                self._copy_entry(entry, stage) for entry in inputs.bundle.vocabularies
            ),
            bundle=self._copy(inputs.bundle_folder / BUNDLE_MANIFEST, stage),
            plan=self._copy(inputs.plan_path, stage),
            profile=self._copy(inputs.profile_folder / PROFILE_MANIFEST, stage),
        )
        keep_by_digest(self.store, release_name(release.digest), release.text)
        record_release(self.store, release.digest)
        return release

    def _routing_key(self) -> str:
        return self.inputs.routing_key(holders(self.inputs, self._kept))

    @contextmanager
    def _router(self, stage: Path) -> Iterator[RoutingWriter]:
        """Writes the routing, which is kept once all windows went through."""
        with RoutingWriter(self.inputs, self._kept, stage) as routing:
            yield routing
            entry = routing.finish()
        self.keys.remember(self._routing_key(), self.keys.adopt(routing.path, entry))

    def _routing(self, stage: Path) -> FileEntry:
        """The gateway's routing, made now unless it was."""
        tables, key = self.inputs.model.tables, self._routing_key()
        if not self.keys.recall(key):
            total = sum(table.rows for table in tables)
            with (
                self._router(stage) as routing,
                self._progress.step("route", total, "rows") as step,
            ):
                for table in tables:
                    for window in routing.through(table, self.inputs.windows(table, stage)):
                        step.advance(len(window.routes))
        return self.keys.file(key)

    def _defaults(self, stage: Path) -> FileEntry:
        """What stands in for the rows of a shard that is not awake."""
        path = stage / "defaults.safetensors"
        vectors = {
            f"{part.shard}.{part.table.name}": np.array(self.keys[part.key]["default"], np.float32)
            for part in self.inputs.slices
        }
        for number, planned in enumerate(self.inputs.plan.shards):
            if planned.kept is not None:
                before = self._kept.defaults(planned)
                vectors |= {f"{number}.{table}": vector for table, vector in before.items()}
        write_tensors(path, vectors)
        return self.keys.add(path, "safetensors")

    @overload
    def _copy_entry(self, entry: FileEntry, stage: Path) -> FileEntry: ...

    @overload
    def _copy_entry(self, entry: None, stage: Path) -> None: ...

    @overload
    def _copy_entry(self, entry: FileEntry | None, stage: Path) -> FileEntry | None: ...

    def _copy_entry(self, entry: FileEntry | None, stage: Path) -> FileEntry | None:
        """Keep a copy of one of the bundle's files, where there is one."""
        if entry is None:
            return None
        return self._copy(self.inputs.bundle_folder / entry.path, stage, entry)

    def _copy(self, path: Path, stage: Path, expected: FileEntry | None = None) -> FileEntry:
        """Keep a copy of one of the inputs."""
        copy = stage / path.name
        with (
            os_errors(path, "read"),
            path.open("rb") as source,
            os_errors(copy),
            copy.open("wb") as target,
        ):
            shutil.copyfileobj(source, target)
        entry = self.keys.add(copy, path.suffix.removeprefix("."))
        if expected and entry.sha256 != expected.sha256:
            raise ArtifactError(f"{path}: altered: sha256 does not match the bundle's")
        return entry
