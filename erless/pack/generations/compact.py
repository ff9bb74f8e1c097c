"""Compaction: a release with its newest generation becomes a release of its own.

The cut stays: each row keeps its shard, its precision and its stored bytes, so that answers are the
same bit for bit. A slice is written anew only where generations changed it, all other files are
those of the release before, and a shard without a change is the same function, kept warm. What was
made already is found by its key (`erless.pack.keys`), so a run that was cut off is completed by the
next. Generations that are published meanwhile are carried over: their parts are not copied.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.disk import BLOCK_BYTES, BlockChecksums
from erless.dlrm.quantize import stored_width
from erless.dlrm.rows import INDEX_WORDS, RowIndex
from erless.errors import ArtifactError, StoreError
from erless.pack.generations.carry import Carrying
from erless.pack.inputs import LAYOUT
from erless.pack.keys import Keys
from erless.pack.stream import CHUNK_BYTES, Pipeline, StreamWriter
from erless.progress import Progress, Silent
from erless.specs.artifact import FileEntry
from erless.specs.generations import (
    GenerationManifest,
    generations,
    newest_generation,
    state_chain,
)
from erless.specs.release import (
    Folded,
    GatewayFiles,
    ReleaseManifest,
    ReleaseShard,
    ShardManifest,
    ShardSlice,
    release_name,
    shard_name,
)
from erless.specs.routes import PACKED, RoutingFile, holders_of, pack_codes, packed_tensors
from erless.specs.stored import find_release, keep_by_digest, load_shard, record_release
from erless.storage.digests import digest_json
from erless.storage.store import Blob, Store, verify_blob
from erless.storage.tensors import ALIGNMENT_BYTES, TensorFile

__all__ = ["Compacted", "changed_share", "compact"]

Rows = NDArray[Any]
Int64s = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction did: `generation` of the release before is in `release`.

    carried: generations behind it that were published meanwhile, and are the new release's first.
    """

    release: ReleaseManifest
    generation: int
    carried: int
    slices_written: int
    slices_kept: int
    bytes_written: int


@dataclass(frozen=True, slots=True)
class _Changed:
    """All rows that generations changed in one slice: ascending ids, rows as they are stored.

    `parts`: the digests of the files that they came from.
    """

    ids: Int64s
    rows: Rows
    parts: tuple[str, ...]


def compact(store: Store, release: str = "", progress: Progress | None = None) -> Compacted:
    """Fold the newest generation of a release into a new release.

    Args:
        store: that holds it.
        release: its digest, or the beginning of it; "" is the last that was packed.
        progress: shown while it runs.

    Raises:
        StoreError: no such release, or no generation of it; the store is being pruned; or it went
            back to an earlier generation meanwhile.
        ArtifactError: a file of it is missing or altered.
        StorageError: the disk or bucket refused.
    """
    base = find_release(store, release)
    newest = newest_generation(store, base.digest)
    if newest is None:
        raise StoreError(f"{store.url}: release {base.digest[:12]} has no generation to fold")
    with store.locked(exclusive=False), store.staging() as stage:
        return _Compaction(store, base, newest, stage, progress or Silent()).run()


def changed_share(
    store: Store, release: ReleaseManifest, newest: GenerationManifest | None, known: dict[str, int]
) -> float:
    """Bytes of all parts that lead to the newest generation ÷ bytes of the release's stored rows.

    Args:
        store: that holds them.
        release: whose rows they change.
        newest: its newest generation.
        known: bytes up to each state that was seen, by digest; filled in here.
    """
    changed = 0
    for shard, digest in (newest.states if newest else {}).items():
        chain, below = state_chain(store, digest, shard, known)
        size = known[below] if below else 0
        for state in reversed(chain):
            size += state.part.size_bytes
            known[state.digest] = size
        changed += known[digest]
    return changed / max(1, sum(shard.row_bytes for shard in release.shards))


class _Compaction:
    """One generation on its way into a release."""

    def __init__(
        self,
        store: Store,
        base: ReleaseManifest,
        newest: GenerationManifest,
        stage: Path,
        progress: Progress,
    ) -> None:
        self._store, self._base, self._newest, self._stage = store, base, newest, stage
        self._progress = progress
        self._keys = Keys(store, progress=progress)
        self._written = self._kept = 0
        self._rows = {
            table.name: newest.tables.get(table.name, table.rows) for table in base.model.tables
        }
        self._added = self._added_routes(newest)

    def run(self) -> Compacted:
        """Write what changed, then the release, then what was published meanwhile."""
        self._keys.take_stock([])
        shards = tuple(self._shard(shard) for shard in self._base.shards)
        base, newest = self._base, self._newest
        release = base.amended(
            model=base.model.with_rows(self._rows),
            shards=shards,
            gateway=GatewayFiles(routing=self._routing(), defaults=base.gateway.defaults),
            tower=newest.tower or base.tower,
            folds=Folded(release=base.digest, generation=newest.number),
        )
        fresh = not generations(self._store, release.digest)
        keep_by_digest(self._store, release_name(release.digest), release.text)
        carried = Carrying(self._store, base, newest, release, self._stage).run() if fresh else 0
        record_release(self._store, release.digest)  # from now on it is the last that was packed
        return Compacted(
            release, newest.number, carried, self._written, self._kept, self._keys.bytes_written
        )

    def _local(self, entry: FileEntry) -> Path:
        """The file on this machine, verified."""
        blob = Blob(entry.path, entry.size_bytes, entry.sha256)
        with self._progress.step("verify", entry.size_bytes, "bytes") as step:
            if self._store.folder is not None:
                path = self._store.folder / entry.path
                verify_blob(path, blob, step)
            else:
                path = self._stage / entry.sha256
                self._store.fetch(blob, path, step)
        return path

    def _release_local(self, path: Path) -> None:
        """Give back the room of a file that was fetched."""
        if self._store.folder is None:
            path.unlink()

    # -- one shard

    def _shard(self, shard: ReleaseShard) -> ReleaseShard:
        """The shard with its changed rows; the same where there are none."""
        manifest = load_shard(self._store, shard.digest)
        state = self._newest.states.get(shard.digest)
        if state is None:
            self._kept += len(manifest.slices)
            return shard
        changes = self._changes(shard, state)
        unknown = changes.keys() - set(shard.tables)
        if unknown:
            raise ArtifactError(f"state {state[:12]}: shard {shard.name} has no {min(unknown)}")
        slices = tuple(
            self._slice(part, manifest, changes[part.table]) if part.table in changes else part
            for part in manifest.slices
        )
        self._kept += len(slices) - len(changes)
        folded = manifest.amended(slices=slices)
        keep_by_digest(self._store, shard_name(folded.digest), folded.text)
        sizes = {name: getattr(folded, name) for name in ("digest", "rows", "row_bytes")}
        return shard.model_copy(update={**sizes, "size_bytes": folded.size_bytes})

    def _changes(self, shard: ReleaseShard, state: str) -> dict[str, _Changed]:
        """By table all rows that differ in `state`; of those changed twice the later."""
        parts: dict[str, list[tuple[Int64s, Rows, str]]] = {}
        chain, _ = state_chain(self._store, state, shard.digest)
        for step in reversed(chain):
            path = self._local(step.part)
            file = TensorFile(path)
            for change in step.tables:
                ids, rows = file.read(f"ids.{change.table}"), file.read(f"rows.{change.table}")
                parts.setdefault(change.table, []).append((ids, rows, step.part.sha256))
            self._release_local(path)
        return {table: _merged(found) for table, found in parts.items()}

    def _slice(self, part: ShardSlice, manifest: ShardManifest, changed: _Changed) -> ShardSlice:
        """The slice with `changed` in it."""
        rows = self._rows[part.table]
        on_disk = manifest.cache_bytes is not None
        key = digest_json(
            {
                "what": "folded slice",
                "layout": LAYOUT,
                "slice": part.file.sha256,
                "rows": [part.table_rows, rows],
                "parts": list(changed.parts),
                "storage": "disk" if on_disk else "memory",
            }
        )
        added = int(np.count_nonzero(changed.ids >= part.table_rows))
        if self._keys.recall(key):
            self._kept += 1
        else:
            path = self._local(part.file)
            folded = self._fold(TensorFile(path), part, manifest, changed, on_disk)
            self._release_local(path)
            self._keys.remember(key, self._keys.add(folded, "safetensors"))
            self._written += 1
        update = {"rows": part.rows + added, "table_rows": rows, "file": self._keys.file(key)}
        return part.model_copy(update=update)

    def _fold(
        self,
        base: TensorFile,
        part: ShardSlice,
        manifest: ShardManifest,
        changed: _Changed,
        on_disk: bool,
    ) -> Path:
        """Write the slice: its rows with those that changed in their place, then the added ones."""
        blocks = np.empty((0, INDEX_WORDS), np.uint64)
        if "index" in base.tensors:
            blocks = base.read("index")
        index = RowIndex(part.table_rows, blocks)
        stored = changed.ids < part.table_rows
        places, replacing, added = (
            index.local(changed.ids[stored]),
            changed.rows[stored],
            changed.rows[~stored],
        )
        if len(places) and places.min() < 0:
            strange = changed.ids[stored][places < 0][0]
            raise ArtifactError(f"row {strange} of table {part.table} is not this shard's")
        larger = RowIndex.build(
            self._rows[part.table], itertools.chain(index.chunks(), [changed.ids[~stored]])
        ).array
        width = stored_width(manifest.precision_of(part), part.dim)
        info = base.info("rows")
        if changed.rows.dtype != info.dtype or changed.rows.shape[1:] != (width,):
            raise ArtifactError(f"changed rows of table {part.table} are not stored as its own")
        total = part.rows + len(added)
        declared: dict[str, tuple[Any, tuple[int, ...]]] = {"rows": (info.dtype, (total, width))}
        if len(larger):
            declared["index"] = (np.uint64, larger.shape)
        if on_disk:
            declared["checksums"] = (
                np.uint32,
                (-(-total * width * info.dtype.itemsize // BLOCK_BYTES),),
            )
        path = self._stage / f"{part.file.sha256}.folded"
        checksums = BlockChecksums() if on_disk else None
        with (
            Pipeline() as pipeline,
            StreamWriter(
                path,
                declared,
                pipeline,
                alignment_bytes=BLOCK_BYTES if on_disk else ALIGNMENT_BYTES,
            ) as writer,
            self._progress.step(f"fold {part.table}", part.file.size_bytes, "bytes") as step,
        ):
            for chunk in itertools.chain(_replaced(base, part.rows, places, replacing), [added]):
                writer.write("rows", chunk)
                if checksums is not None:
                    checksums.add(chunk)
                step.advance(chunk.nbytes)
            if len(larger):
                writer.write("index", larger)
            if checksums is not None:
                writer.write("checksums", checksums.finish())
            writer.close()
        return path

    # -- the gateway's part

    def _added_routes(self, manifest: GenerationManifest) -> dict[str, NDArray[np.uint8]]:
        """By table the shards of the rows that generations added."""
        if manifest.routing is None:
            return {}
        file = TensorFile(self._local(manifest.routing))
        return {table: file.read(table) for table in manifest.tables}

    def _routing(self) -> FileEntry:
        """The routing with the added rows; the same where there are none."""
        entry = self._base.gateway.routing
        if not self._added:
            return entry
        before, shards = self._base.model.tables, self._base.shards
        held = RoutingFile(self._local(entry), {t.name: t.rows for t in before}, shards)
        path = self._stage / "routing"
        tables = self._base.model.with_rows(self._rows).tables
        holders = {table.name: holders_of(shards, table.name) for table in tables}
        declared = packed_tensors(tables, holders)
        with Pipeline() as pipeline, StreamWriter(path, declared, pipeline, PACKED) as writer:
            for table in before:
                for begin in range(0, table.rows, CHUNK_BYTES):
                    numbers = held.read(table.name, begin, min(table.rows, begin + CHUNK_BYTES))
                    if begin + CHUNK_BYTES >= table.rows and table.name in self._added:
                        numbers = np.concatenate([numbers, self._added[table.name]])
                    writer.write(table.name, pack_codes(numbers, holders[table.name]))
            writer.close()
        return self._keys.add(path, "safetensors")


def _merged(parts: Iterable[tuple[Int64s, Rows, str]]) -> _Changed:
    """The parts of one table, oldest first, as one."""
    ids, rows, digests = zip(*parts, strict=True)
    all_ids, all_rows = np.concatenate(ids), np.concatenate(rows)
    distinct, last = np.unique(all_ids[::-1], return_index=True)
    return _Changed(distinct, all_rows[len(all_ids) - 1 - last], tuple(digests))


def _replaced(base: TensorFile, count: int, places: Int64s, rows: Rows) -> Iterable[Rows]:
    """The `count` stored rows of a slice in chunks, `rows` at the ascending `places`."""
    size = max(1, CHUNK_BYTES // max(1, rows.itemsize * rows.shape[1]))
    for begin in range(0, count, size):
        end = min(count, begin + size)
        chunk = base.read_rows("rows", begin, end)
        first, last = np.searchsorted(places, [begin, end])
        chunk[places[first:last] - begin] = rows[first:last]
        yield chunk
