"""Changed rows → a generation: cut by shard, in its precision, published in one step.

Everything is written before the manifest that names it, and the manifest is created under a number
that nobody had: what was published is whole, and a publisher that was stopped leaves nothing that
anybody reads. Who loses a number to another begins anew on top of that one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import ArrayLike, NDArray

from erless.dlrm.quantize import encode
from erless.errors import ArtifactError, ModelError, StoreError
from erless.pack.generations.changes import TableChanges
from erless.specs.artifact import FileEntry
from erless.specs.bundle import BundleManifest
from erless.specs.generations import (
    MOST_STATES,
    GenerationManifest,
    ShardState,
    TableChange,
    load_generation,
    load_state,
    newest_generation,
    publish_generation,
    publish_state,
)
from erless.specs.model import ModelSpec, TableSpec
from erless.specs.plan import Tier
from erless.specs.release import ReleaseManifest, ReleaseShard
from erless.specs.routes import RoutingFile
from erless.specs.stored import find_release, load_release
from erless.storage.digests import digest_file
from erless.storage.node_cache import NodeCache, obtain
from erless.storage.store import Blob, Ignore, Store
from erless.storage.stores import open_store
from erless.storage.tensors import TensorFile, write_tensors

__all__ = ["GROWTH_SHARE", "Publisher", "update"]

GROWTH_SHARE = 0.25  # of a table's rows may be added to one release; beyond it is packed anew
ATTEMPTS = 20  # each that fails is another publisher that got a number
# Where an added row goes: nobody knows yet how hot it will be, and a frozen shard is asleep.
_HOMES = (Tier.WARM, Tier.COLD, Tier.HOT, Tier.FROZEN)


@dataclass
class _Cut:
    """What one generation changes, by shard number: per table ids and vectors."""

    parts: dict[int, dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]]] = field(
        default_factory=dict
    )
    routes: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    changed: int = 0
    added: int = 0
    deleted: int = 0


class Publisher:
    """Publishes generations of one release.

    Args:
        store: that holds the release.
        release: its digest.
        cache: folder for the routing of a release in a bucket; None: one that goes with us.
        clock: Unix time.

    Raises:
        ArtifactError: the release is missing or altered.
    """

    def __init__(self, store: Store, release: str, cache: Path | None = None) -> None:
        self.store = store
        self.release: ReleaseManifest = load_release(store, release)
        self._tables = {table.name: table for table in self.release.model.tables}
        entry = self.release.gateway.routing
        blob = Blob(entry.path, entry.size_bytes, entry.sha256)
        self._closed = ExitStack()
        if cache is None and store.folder is None:
            cache = Path(self._closed.enter_context(TemporaryDirectory(prefix="erless-")))
        self._lease = self._closed.enter_context(
            obtain(store, release, [blob], NodeCache(cache, 64 << 30) if cache else None)
        )
        rows = {name: table.rows for name, table in self._tables.items()}
        self._routing = RoutingFile(self._lease.folder / entry.path, rows, self.release.shards)
        self._bytes = 0

    def close(self) -> None:
        """Let the cache evict the routing, or remove it where there is none."""
        self._closed.close()

    def table(self, name: str) -> TableSpec:
        """The table called `name`, as the release has it.

        Raises:
            ModelError: the model has none.
        """
        try:
            return self._tables[name]
        except KeyError:
            raise ModelError(
                f"the model has no table {name}; it has {', '.join(self._tables)}"
            ) from None

    def publish(
        self, changes: Sequence[TableChanges], tower: Path | None = None
    ) -> GenerationManifest:
        """Make the next generation of these rows, and of the tower of the bundle in `tower`.

        Raises:
            ModelError: rows or tower do not fit the model, or a table grows beyond what it may.
            StoreError: the store is being pruned, or other publishers took every number tried.
            StorageError: the disk or bucket refused.
        """
        for change in changes:
            change.check(self.table(change.table), f"table {change.table}")
        if len({change.table for change in changes}) < len(changes):
            raise ModelError("a table is given twice")
        lost: StoreError | None = None
        with self.store.locked(exclusive=False), self.store.staging() as stage:
            weights = self._adopt_tower(tower, stage) if tower else None
            for _ in range(ATTEMPTS):
                newest = newest_generation(self.store, self.release.digest)
                manifest = self._next(newest, self._cut(changes, newest, stage), weights, stage)
                try:
                    publish_generation(self.store, manifest)
                except StoreError as error:
                    lost = error  # another publisher was faster: begin on top of it
                else:
                    return manifest
        raise StoreError(
            f"{self.store.url}: other publishers took {ATTEMPTS} numbers in turn: try again"
        ) from lost

    def preview(self, changes: Sequence[TableChanges]) -> dict[str, int]:
        """Rows that each shard would get, by its name. Errors as `publish`."""
        for change in changes:
            change.check(self.table(change.table), f"table {change.table}")
        with self.store.staging() as stage:
            cut = self._cut(changes, newest_generation(self.store, self.release.digest), stage)
        return {
            self.release.shards[number].name: sum(len(ids) for ids, _ in tables.values())
            for number, tables in sorted(cut.parts.items())
        }

    def go_back(self, number: int) -> GenerationManifest:
        """Make the next generation one with the content of generation `number`; 0: the release.

        Raises:
            StoreError: there is no such generation, or the store is being pruned.
        """
        with self.store.locked(exclusive=False):
            newest = newest_generation(self.store, self.release.digest)
            if newest is None or not 0 <= number <= newest.number:
                have = f"0 … {newest.number}" if newest else "none"
                raise StoreError(
                    f"{self.store.url}: no generation {number} of release "
                    f"{self.release.digest[:12]}; there are {have}"
                )
            fields: dict[str, object] = {}
            if number:
                then = load_generation(self.store, self.release.digest, number)
                fields = {
                    name: getattr(then, name) for name in ("states", "tables", "routing", "tower")
                }
            manifest = GenerationManifest.create(
                release=self.release.digest,
                number=newest.number + 1,
                made_at_s=time.time(),
                returns_to=number,
                **fields,
            )
            publish_generation(self.store, manifest)
        return manifest

    # -- cutting

    def _cut(
        self, changes: Sequence[TableChanges], newest: GenerationManifest | None, stage: Path
    ) -> _Cut:
        """Which shard each changed row belongs to."""
        cut = _Cut()
        for change in changes:
            spec = self._tables[change.table]
            added = self._added_routes(newest, spec.name, stage)
            rows = spec.rows + len(added)
            is_new = change.ids >= rows
            new = self._check_growth(change, spec, rows, is_new)
            if new:
                shard = self._home_of_added(spec)
                added = np.concatenate([added, np.full(new, shard, np.uint8)])
                cut.added += new
            if len(added):
                cut.routes[spec.name], cut.rows[spec.name] = added, spec.rows + len(added)
            routes = np.empty(len(change.ids), np.uint8)
            stored = change.ids < spec.rows
            routes[stored] = self._routing.route(spec.name).shards(change.ids[stored])
            routes[~stored] = added[change.ids[~stored] - spec.rows]
            for number in np.unique(routes):
                mine = routes == number
                part = cut.parts.setdefault(int(number), {})
                part[spec.name] = (change.ids[mine], change.vectors[mine])
            cut.changed += len(change.ids) - new
            cut.deleted += change.deleted
        return cut

    def _check_growth(
        self, change: TableChanges, spec: TableSpec, rows: int, is_new: NDArray[np.bool_]
    ) -> int:
        """How many rows are added. Raises ModelError for a gap between them, or too many."""
        new = np.sort(change.ids[is_new])
        if len(new) == 0:
            return 0
        if change.deleted:
            raise ModelError(f"table {spec.name} has {rows:,} rows: row {new[0]} is not deleted")
        if new[-1] != rows + len(new) - 1:
            raise ModelError(
                f"table {spec.name} has {rows:,} rows: rows added to it are {rows}, {rows + 1}, … "
                f"without a gap, but {len(new):,} come up to {new[-1]}"
            )
        most = _most_rows(spec)
        if new[-1] >= most:
            raise ModelError(
                f"table {spec.name} had {spec.rows:,} rows when it was packed and may have "
                f"{most:,} in this release, not {new[-1] + 1:,}: plan and pack anew"
            )
        return len(new)

    def _home_of_added(self, spec: TableSpec) -> int:
        """The shard that rows added to a table go to: the smallest of its first remote tier."""
        for tier in _HOMES:
            holders = [
                (shard.row_bytes, number)
                for number, shard in enumerate(self.release.shards)
                if shard.tier is tier and spec.name in shard.tables
            ]
            if holders:
                return min(holders)[1]
        raise ModelError(
            f"all rows of table {spec.name} are resident, so that none can be added: plan and pack "
            "anew"
        )

    def _added_routes(
        self, newest: GenerationManifest | None, table: str, stage: Path
    ) -> NDArray[np.uint8]:
        """The shards of the rows that generations added to a table."""
        if newest is None or newest.routing is None or table not in newest.tables:
            return np.empty(0, np.uint8)
        return self._read(newest.routing, stage).read(table)

    def _read(self, entry: FileEntry, stage: Path) -> TensorFile:
        copy = stage / entry.sha256
        self.store.fetch(Blob(entry.path, entry.size_bytes, entry.sha256), copy, Ignore())
        return TensorFile(copy)

    # -- writing

    def _next(
        self, newest: GenerationManifest | None, cut: _Cut, weights: FileEntry | None, stage: Path
    ) -> GenerationManifest:
        """The manifest of the next generation, all that it names being in the store."""
        self._bytes = weights.size_bytes if weights else 0
        states = dict(newest.states) if newest else {}
        for number, tables in sorted(cut.parts.items()):
            shard = self.release.shards[number]
            states[shard.digest] = self._state(shard, states.get(shard.digest), tables, cut, stage)
        rows = {**(newest.tables if newest else {}), **cut.rows}
        routing = newest.routing if newest else None
        if cut.routes:
            kept = {
                name: self._added_routes(newest, name, stage)
                for name in rows
                if name not in cut.routes
            }
            routing = self._adopt(stage, kept | cut.routes)
        return GenerationManifest.create(
            release=self.release.digest,
            number=newest.number + 1 if newest else 1,
            made_at_s=time.time(),
            states=states,
            tables=rows,
            routing=routing,
            tower=weights or (newest.tower if newest else None),
            changed=cut.changed,
            added=cut.added,
            deleted=cut.deleted,
            size_bytes=self._bytes,
        )

    def _state(
        self,
        shard: ReleaseShard,
        previous: str | None,
        tables: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float32]]],
        cut: _Cut,
        stage: Path,
    ) -> str:
        """Keep the state of a shard with these rows changed; returns its digest."""
        depth = load_state(self.store, previous).depth + 1 if previous else 1
        if depth > MOST_STATES:
            raise StoreError(
                f"shard {shard.name} was changed {MOST_STATES:,} times: pack the release anew"
            )
        tensors: dict[str, NDArray[np.generic]] = {}
        changed = []
        for name, (ids, vectors) in tables.items():
            tensors[f"ids.{name}"] = ids
            tensors[f"rows.{name}"] = encode(vectors, shard.precision_of(name))
            total = cut.rows.get(name, self._tables[name].rows)
            changed.append(TableChange(table=name, changed=len(ids), rows=total))
        state = ShardState.create(
            shard=shard.digest,
            previous=previous,
            depth=depth,
            tables=tuple(changed),
            part=self._adopt(stage, tensors),
        )
        publish_state(self.store, state)
        return state.digest

    def _adopt(self, stage: Path, tensors: Mapping[str, NDArray[np.generic]]) -> FileEntry:
        """Keep tensors as a blob."""
        path = stage / "part.safetensors"
        size, sha256 = write_tensors(path, tensors)
        self._bytes += size
        return self._keep(path, size, sha256, "safetensors")

    def _keep(self, path: Path, size: int, sha256: str, kind: str) -> FileEntry:
        entry = FileEntry(path=f"blobs/{sha256}.{kind}", size_bytes=size, sha256=sha256)
        self.store.adopt(path, Blob(entry.path, size, sha256), Ignore())
        return entry

    def _is_ours(self, model: ModelSpec) -> bool:
        """Whether `model` is the release's; it may have the rows that were added, or not yet."""
        ours = self.release.model
        if model.with_rows({table.name: table.rows for table in ours.tables}) != ours:
            return False
        entry = self.release.bundle
        packed = BundleManifest.parse(self.store.read(entry.path), f"{self.store.url}/{entry.path}")
        return all(
            first.rows <= theirs.rows <= _most_rows(now)
            for first, theirs, now in zip(
                packed.model.tables, model.tables, ours.tables, strict=True
            )
        )

    def _adopt_tower(self, folder: Path, stage: Path) -> FileEntry:
        """Keep the tower of a bundle whose model differs from the release's in weights alone."""
        bundle = BundleManifest.open(folder)
        if not self._is_ours(bundle.model):
            raise ModelError(
                f"{folder}: another model than release {self.release.digest[:12]} was packed from: "
                "only the values of its weights may differ"
            )
        fronts = [(bundle.front, self.release.front)]
        fronts.append((bundle.request_front, self.release.request_front))
        for theirs, ours in fronts:
            if (theirs.sha256 if theirs else None) != (ours.sha256 if ours else None):
                raise ModelError(f"{folder}: its front differs from the release's: pack it anew")
        copy = stage / "tower"
        copy.write_bytes((folder / bundle.tower.path).read_bytes())
        size, sha256 = digest_file(copy)
        if sha256 != bundle.tower.sha256:
            raise ArtifactError(f"{folder}/{bundle.tower.path}: altered")
        suffix = Path(bundle.tower.path).suffix.removeprefix(".")
        return self._keep(copy, size, sha256, suffix)


def _most_rows(table: TableSpec) -> int:
    """How many rows a table may have in a release that has it with `table.rows`."""
    return int(table.rows * (1 + GROWTH_SHARE)) + 1


def update(
    rows: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    store: str = "releases",
    release: str = "",
    tower: Path | None = None,
) -> GenerationManifest:
    """Publish changed rows of a release: gateways answer with them within seconds.

        erless.update({"item": (ids, vectors)}, store="s3://bucket/releases")

    Args:
        rows: by table (n,) distinct row ids and (n, dim) vectors.
        store: that holds the release.
        release: its digest, or the beginning of it; "" is the last that was packed.
        tower: bundle of the same model with newer dense weights.

    Raises:
        ModelError: rows or tower do not fit the model.
        StoreError, StorageError: the store has no such release, or refuses.
    """
    opened = open_store(store)
    with closing(Publisher(opened, find_release(opened, release).digest)) as publisher:
        changes = [
            TableChanges(name, np.asarray(ids, np.int64), np.asarray(vectors, np.float32))
            for name, (ids, vectors) in rows.items()
        ]
        return publisher.publish(changes, tower)
