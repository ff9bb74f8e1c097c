"""What a gateway answers with: its release, or a generation of it, whole.

A query takes the view that is current when it comes, and keeps it until it is answered: rows,
routing, tower and the versions of the shards that it calls are all of one generation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from erless.dlrm.embedding import EmbeddingShard
from erless.errors import ArtifactError
from erless.serve.files import OpenGateway, Source, with_changes
from erless.serve.gateway.remote import RemoteDense, RemoteShard
from erless.serve.memory import rewritten_bytes
from erless.serve.settings import Settings
from erless.serve.states import Rewriter, ShardStates
from erless.serve.towers import PredictTensors, open_named_tower
from erless.specs.generations import GenerationManifest, newest_generation, next_generation
from erless.storage.tensors import TensorFile

# For copies of resident rows, which most lookups are of, whatever the container's limit leaves: a
# plan gives every gateway 300 MB beside its rows.
LEAST_REWRITTEN_BYTES = 128 << 20

__all__ = ["GatewayGenerations", "GatewayParts", "GatewayView"]


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """What a generation changes inside the gateway.

    Args:
        generation: its manifest; None: the release itself.
        opened: resident rows and routing.
        predict: the tower, where it is inside the gateway.
    """

    generation: GenerationManifest | None
    opened: OpenGateway
    predict: PredictTensors

    @property
    def number(self) -> int:
        """The generation's number, 0 for the release."""
        return self.generation.number if self.generation else 0


@dataclass(frozen=True, slots=True)
class GatewayView:
    """One generation, ready to answer queries with.

    Args:
        parts: what is inside the gateway.
        remote: by shard number the functions that are called, in their states.
        dense: the dense function, where the tower is one.
    """

    parts: GatewayParts
    remote: Mapping[int, RemoteShard]
    dense: RemoteDense | None

    @property
    def functions(self) -> tuple[RemoteShard | RemoteDense, ...]:
        """All that are called: the shards by number, then the dense function."""
        return (*self.remote.values(), *([self.dense] if self.dense else []))

    @property
    def opened(self) -> OpenGateway:
        """Resident rows and routing."""
        return self.parts.opened


class GatewayGenerations:
    """Fetches what generations change inside the gateway. May be used from any thread.

    Args:
        settings: of the gateway.
        source: where its files come from.
        release: the release itself.
    """

    def __init__(self, settings: Settings, source: Source, release: GatewayParts) -> None:
        self._settings, self._source, self._release = settings, source, release
        self._changed_tower = ("", release.predict)  # sha256, and the tower that was opened last
        opened = release.opened
        self._grown = ("", opened)  # sha256 of the added rows' routing, and what it was opened for
        self._states = {
            number: ShardStates(source, opened.release.shards[number].digest, shard, kept=1)
            for number, shard in opened.resident.items()
        }
        sizes = {
            number: sum(array.nbytes for array in shard.arrays)
            for number, shard in opened.resident.items()
        }
        room = rewritten_bytes(settings.rewritten_bytes, settings.workers, LEAST_REWRITTEN_BYTES)
        self._rewriters = {
            number: Rewriter(room * size // sum(sizes.values())) for number, size in sizes.items()
        }

    def newest(self) -> GatewayParts:
        """The newest generation, or the release where there is none. Errors as `behind`."""
        manifest = newest_generation(self._source.open(), self._release.opened.release.digest)
        return self._release if manifest is None else self._open(manifest)

    def rewritten(self, parts: GatewayParts) -> GatewayParts:
        """`parts` with changed rows in the places of the release's, where there is room.

        Both answer alike; lookups in these cost what they do in the release. Of the generation
        before no rows may be looked up any more.
        """
        manifest, beside = parts.generation, parts.opened.resident
        if manifest is None:
            return parts
        resident = {
            number: self._rewriters[number].rewrite(shard) for number, shard in beside.items()
        }
        if all(resident[number] is shard for number, shard in beside.items()):
            return parts
        return replace(parts, opened=self._grow(manifest, resident))

    def behind(self, parts: GatewayParts) -> GatewayParts | None:
        """The newest generation behind that of `parts`; None: there is none yet.

        Raises:
            ArtifactError: it is damaged, or of another model.
            StorageError: the disk or service refused.
        """
        digest = self._release.opened.release.digest
        manifest = next_generation(self._source.open(), digest, parts.number)
        return None if manifest is None else self._open(manifest)

    def _open(self, manifest: GenerationManifest) -> GatewayParts:
        base = self._release.opened
        known = {shard.digest for shard in base.release.shards}
        if not manifest.states.keys() <= known:
            raise ArtifactError(
                f"generation {manifest.number} changes a shard that the release does not have"
            )
        resident: dict[int, EmbeddingShard] = {}
        for number, shard in base.resident.items():
            state = manifest.states.get(base.release.shards[number].digest)
            resident[number] = self._states[number].open(state) if state else shard
        return GatewayParts(manifest, self._grow(manifest, resident), self._tower(manifest))

    @property
    def size_bytes(self) -> int:
        """Memory of resident rows that generations changed."""
        beside = sum(states.size_bytes for states in self._states.values())
        return beside + sum(rewriter.size_bytes for rewriter in self._rewriters.values())

    def _grow(
        self, manifest: GenerationManifest, resident: Mapping[int, EmbeddingShard]
    ) -> OpenGateway:
        """Rows and routing; the routing is built anew only where rows were added since."""
        base, entry = self._release.opened, manifest.routing
        if entry is None:
            return with_changes(base, resident, manifest.tables, None)
        sha256, like = self._grown
        if sha256 == entry.sha256:
            return with_changes(base, resident, manifest.tables, None, like)
        store = self._source.open()
        with self._source.obtain(store, entry.sha256, [entry], None) as lease:
            added = TensorFile(lease.folder / entry.path)
            opened = with_changes(base, resident, manifest.tables, added)
        # kept for its routing alone: rows of that generation would stay in memory with it
        own = with_changes(base, base.resident, manifest.tables, None, opened)
        self._grown = (entry.sha256, own)
        return opened

    def _tower(self, manifest: GenerationManifest) -> PredictTensors:
        """The tower inside the gateway; as in the generation before it is not opened again."""
        entry = manifest.tower
        if entry is None or self._settings.dense_url is not None:
            return self._release.predict
        sha256, predict = self._changed_tower
        if sha256 != entry.sha256:
            store = self._source.open()
            with self._source.obtain(store, entry.sha256, [entry], None) as lease:
                predict = open_named_tower(
                    lease.folder / entry.path,
                    self._release.opened.release.model,
                    threads=self._settings.threads,
                )
            self._changed_tower = (entry.sha256, predict)
        return predict
