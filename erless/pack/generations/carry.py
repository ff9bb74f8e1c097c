"""Generations published while a release was being folded become generations of the new release."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from erless.errors import StoreError
from erless.specs.artifact import FileEntry
from erless.specs.generations import (
    GenerationManifest,
    ShardState,
    generations,
    load_generation,
    publish_generation,
    publish_state,
    state_chain,
)
from erless.specs.release import ReleaseManifest
from erless.storage.store import Blob, Ignore, Store
from erless.storage.tensors import TensorFile, write_tensors

__all__ = ["Carrying"]


class Carrying:
    """Generations of `base` behind the one that `release` stores become generations of `release`.

    Their parts stay what they are, since the shards have the same numbers and precisions.

    Args:
        store: that holds both.
        base: the release that was folded, at generation `folded`.
        release: what it became.
        stage: a folder for files on their way.
    """

    def __init__(
        self,
        store: Store,
        base: ReleaseManifest,
        folded: GenerationManifest,
        release: ReleaseManifest,
        stage: Path,
    ) -> None:
        self._store, self._base, self._folded, self._release = store, base, folded, release
        self._stage = stage
        self._digests = {
            before.digest: after.digest
            for before, after in zip(base.shards, release.shards, strict=True)
        }
        # by the digest of the state before; None: it is in the release
        self._moved: dict[str, ShardState | None] = dict.fromkeys(folded.states.values())

    def run(self) -> int:
        """Carry all over; returns how many there were.

        Raises:
            StoreError: one went back behind what was folded.
        """
        carried = 0
        numbers = generations(self._store, self._base.digest)
        for number in numbers[self._folded.number :]:
            carried += 1
            manifest = load_generation(self._store, self._base.digest, number)
            publish_generation(self._store, self._carry(manifest, carried))
        return carried

    def _carry(self, manifest: GenerationManifest, number: int) -> GenerationManifest:
        lost = self._folded.states.keys() - manifest.states.keys()
        if lost or (self._folded.tower and not manifest.tower):
            raise self._went_back(manifest.number)
        states = {}
        for shard, digest in manifest.states.items():
            state = self._state(shard, digest, manifest.number)
            if state is not None:
                states[self._digests[shard]] = state.digest
        tables = {
            table.name: manifest.tables[table.name]
            for table in self._release.model.tables
            if manifest.tables.get(table.name, table.rows) > table.rows
        }
        return GenerationManifest.create(
            release=self._release.digest,
            number=number,
            made_at_s=manifest.made_at_s,
            states=states,
            tables=tables,
            routing=self._routing(manifest, tables),
            tower=None if manifest.tower == self._folded.tower else manifest.tower,
            **{name: getattr(manifest, name) for name in ("changed", "added", "deleted")},
            size_bytes=manifest.size_bytes,
        )

    def _state(self, shard: str, digest: str, number: int) -> ShardState | None:
        """The state on top of the folded shard; None: it is the folded one itself."""
        chain, below = state_chain(self._store, digest, shard, self._moved)
        if below is None and shard in self._folded.states:
            raise self._went_back(number)
        state = self._moved[below] if below else None
        for step in reversed(chain):
            state = ShardState.create(
                shard=self._digests[shard],
                previous=state.digest if state else None,
                depth=state.depth + 1 if state else 1,
                tables=step.tables,
                part=step.part,
            )
            publish_state(self._store, state)
            self._moved[step.digest] = state
        return state

    def _routing(self, manifest: GenerationManifest, tables: Mapping[str, int]) -> FileEntry | None:
        """The shards of the rows that were added behind those that the release stores."""
        if not tables or manifest.routing is None:
            return None
        entry = manifest.routing
        path, fetched = self._stage / "carried", self._stage / "added"
        self._store.fetch(Blob(entry.path, entry.size_bytes, entry.sha256), fetched, Ignore())
        file = TensorFile(fetched)
        pairs = zip(self._base.model.tables, self._release.model.tables, strict=True)
        behind = {
            now.name: file.read_rows(
                now.name, now.rows - before.rows, tables[now.name] - before.rows
            )
            for before, now in pairs
            if now.name in tables
        }
        size, sha256 = write_tensors(path, behind)
        kept = FileEntry(path=f"blobs/{sha256}.safetensors", size_bytes=size, sha256=sha256)
        self._store.adopt(path, Blob(kept.path, size, sha256), Ignore())
        return kept

    def _went_back(self, number: int) -> StoreError:
        return StoreError(
            f"{self._store.url}: generation {number} went back behind generation "
            f"{self._folded.number}, which was being folded: fold anew"
        )
