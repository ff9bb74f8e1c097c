"""A function's files, from a store to memory: the only way in which a function opens a release.

    source = Source("releases")                         # or s3://bucket/prefix and a cache
    with open_shard(source, shard_digest) as opened:    # sparse function
        opened.shard.pool(values, lengths)
    with open_gateway(source, release_digest) as opened:
        opened.routing.bucketize(values, lengths)
    with open_tower(source, release_digest) as opened:  # dense function, or inside the gateway
        load_tower_file(opened.path, opened.model)

Manifests are checked against their digest and every file against the manifest before anything is
returned: a damaged release is never served. Tables are mapped and brought into memory at once, so
that the first query does not wait for the disk; replicas on one machine share the pages. A file
that was verified on this machine before, and has not changed since, is not hashed again where the
source names a cache (`erless.storage.verified`).

Importing this imports neither torch nor, for a directory, boto3: it is part of a cold start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.embedding import Combiner, EmbeddingShard, StoredSlice
from erless.dlrm.graph_archives import GraphFiles
from erless.dlrm.lanes import Lanes
from erless.dlrm.rows import INDEX_WORDS, Home, Routing, RowIndex
from erless.errors import ArtifactError
from erless.serve.settings import Settings
from erless.specs.artifact import FileEntry
from erless.specs.features import VocabularyIds
from erless.specs.generations import find_tower
from erless.specs.model import ModelSpec, TableSpec
from erless.specs.release import ReleaseManifest, ShardSlice
from erless.specs.routes import RoutingFile, TableRoute, holders_of
from erless.specs.stored import load_release, load_shard
from erless.storage.node_cache import Lease, NodeCache, obtain
from erless.storage.store import Blob, Counter, Store
from erless.storage.stores import open_store
from erless.storage.tensors import TensorFile

__all__ = [
    "MappedFile",
    "OpenGateway",
    "OpenShard",
    "OpenTower",
    "Opened",
    "Source",
    "mapped_files",
    "open_changed_tower",
    "open_gateway",
    "open_shard",
    "open_tower",
    "slice_index",
    "slice_table",
    "source_of",
    "with_changes",
]

CACHE_BYTES = 64 << 30


@dataclass(frozen=True)
class Source:
    """Where a function's files come from.

    Args:
        store: a directory, or `s3://bucket/prefix`.
        endpoint_url: of an S3 API other than AWS's.
        cache: folder on this machine that the replicas on it share; needed for S3, and for a
            directory it remembers which files were verified.
        cache_bytes: most that the cache may hold.
    """

    store: str
    endpoint_url: str | None = None
    cache: Path | None = None
    cache_bytes: int = CACHE_BYTES

    @cached_property
    def _store(self) -> Store:
        return open_store(self.store, endpoint_url=self.endpoint_url)

    def open(self) -> Store:
        """The store, opened once. Errors are StoreError, ArtifactError or StorageError, as of
        `open_store`."""
        return self._store

    def obtain(
        self, store: Store, digest: str, files: Sequence[FileEntry], counter: Counter | None
    ) -> Lease:
        """Have `files` on this machine, verified; `digest` names the set."""
        cache = NodeCache(self.cache, self.cache_bytes) if self.cache else None
        blobs = [Blob(entry.path, entry.size_bytes, entry.sha256) for entry in files]
        return obtain(store, digest, blobs, cache, counter=counter)


def source_of(settings: Settings) -> Source:
    """Where the function's files come from."""
    return Source(
        settings.store,
        settings.endpoint_url,
        Path(settings.cache) if settings.cache else None,
        settings.cache_bytes,
    )


@dataclass(frozen=True, slots=True)
class MappedFile:
    """A verified file that is mapped; size and digest are those of its manifest."""

    path: Path
    size_bytes: int
    sha256: str


def mapped_files(lease: Lease, entries: Iterable[FileEntry]) -> tuple[MappedFile, ...]:
    """Where the files of `entries` are on this machine."""
    return tuple(MappedFile(lease.folder / e.path, e.size_bytes, e.sha256) for e in entries)


class Opened:
    """What was opened; close it, or leave its block, to let the cache evict the files."""

    _leases: ExitStack

    def close(self) -> None:
        """Give the files back. Arrays stay valid as long as someone refers to them."""
        self._leases.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class OpenShard(Opened):
    """One shard, ready to answer."""

    shard: EmbeddingShard
    mapped: tuple[MappedFile, ...]
    _leases: ExitStack = field(repr=False)


@dataclass(frozen=True)
class OpenGateway(Opened):
    """What the gateway needs of a release. Shard numbers are places in `release.shards`.

    Args:
        release: its manifest.
        routing: bucketizes queries.
        routes: per table, of which `routing` was made.
        combiner: adds partials up.
        holdings: per shard number the indexes of the model's tables that it holds rows of.
        lane_holdings: the same in lanes (`erless.dlrm.lanes`).
        resident: shard number → its rows, for the shards inside the gateway. `routing` finds what
            the first of them holds of a table by itself; what others hold goes to them as ids.
        defaults: per shard number one vector (dim,) float32 for each table that it holds.
        mapped: the files of all of it.
    """

    release: ReleaseManifest
    routing: Routing
    routes: tuple[TableRoute, ...]
    combiner: Combiner
    holdings: tuple[tuple[int, ...], ...]
    lane_holdings: tuple[tuple[int, ...], ...]
    resident: dict[int, EmbeddingShard]
    defaults: tuple[tuple[NDArray[np.float32], ...], ...]
    mapped: tuple[MappedFile, ...]
    _leases: ExitStack = field(repr=False)


@dataclass(frozen=True)
class OpenTower(Opened):
    """The dense tower's file and the model it belongs to, for `erless.serve.towers`.

    Args:
        digest: sha256 of the tower's file.
        path: of the tower.
        front, request_front: paths of a graph's other parts, None where it has none.
        vocabularies: path in the bundle → path on this machine.
    """

    release: ReleaseManifest
    model: ModelSpec
    digest: str
    path: Path
    front: Path | None
    request_front: Path | None
    vocabularies: Mapping[str, Path]
    _leases: ExitStack = field(repr=False)

    @property
    def files(self) -> GraphFiles:
        """The files, for `erless.dlrm.graph_archives`."""
        return GraphFiles(self.path, self.front, self.request_front, self.vocabularies)


def open_shard(source: Source, digest: str, counter: Counter | None = None) -> OpenShard:
    """Open the shard whose manifest has `digest`.

    Args:
        source: where it is.
        digest: of its `ShardManifest`.
        counter: called with the bytes verified or fetched.

    Raises:
        ArtifactError: it is missing, truncated, altered or of a newer schema.
        StoreError: there is no such store.
        StorageError: the disk or service refused.
    """
    store = source.open()
    with ExitStack() as leases:
        opened = _shard(source, store, digest, f"shard {digest[:12]}", leases, counter)
        return OpenShard(*opened, leases.pop_all())


def open_gateway(source: Source, digest: str, counter: Counter | None = None) -> OpenGateway:
    """Open routing, default vectors and resident shards of the release with `digest`.

    Arguments and errors as `open_shard`.
    """
    store = source.open()
    release = load_release(store, digest)
    entries = (release.gateway.routing, release.gateway.defaults)
    with ExitStack() as leases:
        lease = leases.enter_context(source.obtain(store, digest, entries, counter))
        vectors = TensorFile(lease.folder / release.gateway.defaults.path)
        tables = release.model.tables
        places = {table.name: index for index, table in enumerate(tables)}
        try:
            holdings = tuple(tuple(places[name] for name in s.tables) for s in release.shards)
        except KeyError as error:
            raise ArtifactError(f"release {digest[:12]}: the model has no table {error}") from error
        opened = {
            number: _shard(source, store, shard.digest, shard.name, leases, counter)
            for number, shard in enumerate(release.shards)
            if shard in release.resident
        }
        rows = {table.name: table.rows for table in tables}
        routes = RoutingFile(lease.folder / release.gateway.routing.path, rows, release.shards)
        # a shard that a compaction left as it was does not know of rows that were added elsewhere
        resident = {number: shard.grown(rows) for number, (shard, _) in opened.items()}
        lanes = Lanes.of(release.model)
        lane_holdings = tuple(lanes.holding(tables) for tables in holdings)
        homes = _homes(holdings, resident)
        mapped = tuple(
            routes.route(table.name, populate=_needs_codes(release, table.name, homes.get(place)))
            for place, table in enumerate(tables)
        )
        return OpenGateway(
            release=release,
            routing=_routing(release.model, lanes, mapped, lane_holdings, homes),
            routes=mapped,
            combiner=Combiner(tables, holdings),
            holdings=holdings,
            lane_holdings=lane_holdings,
            resident=resident,
            defaults=tuple(
                tuple(_default(vectors, number, tables[index]) for index in holdings[number])
                for number in range(len(release.shards))
            ),
            mapped=mapped_files(lease, entries)
            + tuple(file for _, files in opened.values() for file in files),
            _leases=leases.pop_all(),
        )


def _routing(
    model: ModelSpec,
    lanes: Lanes,
    routes: Sequence[TableRoute],
    lane_holdings: Sequence[Sequence[int]],
    homes: Mapping[int, Home],
) -> Routing:
    away = [
        route.elsewhere(homes[number].shard if number in homes else None)
        for number, route in enumerate(routes)
    ]
    return Routing(
        lanes.tables,
        [away[number] for number in lanes.numbers],
        lane_holdings,
        [homes.get(number) for number in lanes.numbers],
        None if model.plain else lanes.names,
    )


def _needs_codes(release: ReleaseManifest, table: str, home: Home | None) -> bool:
    """Whether the rows of a table that are not at home lie in more than one shard."""
    away = set(holders_of(release.shards, table)) - ({home.shard} if home else set())
    return len(away) > 1


def with_changes(
    base: OpenGateway,
    resident: Mapping[int, EmbeddingShard],
    grown: Mapping[str, int],
    added: TensorFile | None,
    like: OpenGateway | None = None,
) -> OpenGateway:
    """The gateway's files as a generation has them.

    Args:
        base: as the release has them.
        resident: shard number → its rows.
        grown: table → its rows, where some were added.
        added: per grown table uint8: the shards of the rows that were added.
        like: those of a generation with the same added rows, whose routing serves again.

    Raises:
        ArtifactError: they do not fit together.
    """
    model = base.release.model
    if grown and added is None and like is None:
        raise ArtifactError("a generation adds rows and does not tell their shards")
    rows = {table.name: grown.get(table.name, table.rows) for table in model.tables}
    known = {number: shard.grown(rows) for number, shard in resident.items()}
    homes = _homes(base.holdings, known)
    same = like if grown else base
    if same is not None:
        if not homes:
            return replace(same, resident=known)
        numbers = Lanes.of(model).numbers
        routing = same.routing.repatched([homes.get(number) for number in numbers])
        return replace(same, resident=known, routing=routing)
    routes = []
    for table, held in zip(model.tables, base.routes, strict=True):
        more = added.read(table.name) if added and table.name in grown else np.empty(0, np.uint8)
        routes.append(held.grown(more) if len(more) else held)
    larger = model.with_rows(rows)
    routing = _routing(larger, Lanes.of(larger), routes, base.lane_holdings, homes)
    return replace(base, resident=known, routing=routing)


def _homes(
    holdings: Sequence[Sequence[int]], resident: Mapping[int, EmbeddingShard]
) -> dict[int, Home]:
    """Index of a table → where its rows lie in the first resident shard that holds some."""
    homes: dict[int, Home] = {}
    for number, shard in sorted(resident.items()):
        for table, home in zip(holdings[number], shard.homes(number), strict=True):
            homes.setdefault(table, home)
    return homes


def open_tower(source: Source, digest: str, counter: Counter | None = None) -> OpenTower:
    """Open the dense tower of the release with `digest`. Arguments and errors as `open_shard`."""
    store = source.open()
    release = load_release(store, digest)
    files = (*release.tower_files, *release.vocabularies)
    name = release.tower.sha256
    if len(files) > 1:
        name = hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()
    rules = [feature.rule for feature in release.model.features]
    paths = [rule.file.path for rule in rules if isinstance(rule, VocabularyIds)]
    with ExitStack() as leases:
        lease = leases.enter_context(source.obtain(store, name, files, counter))

        def place(entry: FileEntry | None) -> Path | None:
            return lease.folder / entry.path if entry else None

        return OpenTower(
            release=release,
            model=release.model,
            digest=release.tower.sha256,
            path=lease.folder / release.tower.path,
            front=place(release.front),
            request_front=place(release.request_front),
            vocabularies={
                path: lease.folder / entry.path
                for path, entry in zip(paths, release.vocabularies, strict=True)
            },
            _leases=leases.pop_all(),
        )


def open_changed_tower(source: Source, released: OpenTower, sha256: str) -> OpenTower:
    """The tower with digest `sha256` that a generation put in the place of the release's.

    Errors as `open_shard`.
    """
    store = source.open()
    entry = find_tower(store, released.release.digest, sha256)
    with ExitStack() as leases:
        lease = leases.enter_context(source.obtain(store, sha256, [entry], None))
        path = lease.folder / entry.path
        return replace(released, digest=sha256, path=path, _leases=leases.pop_all())


def _shard(
    source: Source, store: Store, digest: str, name: str, leases: ExitStack, counter: Counter | None
) -> tuple[EmbeddingShard, tuple[MappedFile, ...]]:
    manifest = load_shard(store, digest)
    lease = leases.enter_context(source.obtain(store, digest, manifest.files(), counter))
    slices = []
    for part in manifest.slices:
        file = TensorFile(lease.folder / part.file.path)
        rows = file.map("rows", populate=True)
        slices.append(
            StoredSlice(
                slice_table(part), manifest.precision_of(part), rows, slice_index(part, file)
            )
        )
    return EmbeddingShard(slices, name), mapped_files(lease, manifest.files())


def slice_table(part: ShardSlice) -> TableSpec:
    """The table that the slice is of."""
    return TableSpec(name=part.table, rows=part.table_rows, dim=part.dim, pooling=part.pooling)


def slice_index(part: ShardSlice, file: TensorFile, *, copied: bool = False) -> RowIndex:
    """The slice's index in memory: mapped, or a copy that outlives whatever becomes of the file."""
    if "index" in file.tensors:
        blocks = file.read("index") if copied else file.map("index", populate=True)
        return RowIndex(part.table_rows, blocks)
    return RowIndex(part.table_rows, np.empty((0, INDEX_WORDS), np.uint64))  # it holds every row


def _default(file: TensorFile, number: int, table: TableSpec) -> NDArray[np.float32]:
    vector = file.read(f"{number}.{table.name}")
    if vector.shape != (table.dim,) or vector.dtype != np.float32:
        raise ArtifactError(
            f"{file.path}: the default of table {table.name} has shape {vector.shape} of "
            f"{vector.dtype}, expected ({table.dim},) of float32"
        )
    return vector
