"""A shard with the rows that generations changed: fetched, checked and put beside its own.

A state leads back to the ones before it (`erless.specs.generations`). Those that are in memory are
where the walk ends, so that following generations costs one part each, and a function that has just
started fetches all of them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from erless.dlrm.embedding import EmbeddingShard, StoredSlice
from erless.errors import ArtifactError
from erless.serve.files import Source
from erless.specs.generations import ShardState, state_chain
from erless.storage.store import Store
from erless.storage.tensors import TensorFile

__all__ = ["KEPT_STATES", "ShardStates"]

KEPT_STATES = 4  # of a shard that is a function: gateways may still ask for them


class ShardStates:
    """The states of one shard. May be used from any thread; one at a time opens a state.

    Args:
        source: where its files come from.
        digest: of the shard's manifest.
        shard: as its release has it.
        kept: how many states stay in memory, for who may still ask for them.
        copied_bytes: a shard with no more bytes of rows is copied for each state, so that lookups
            cost what they did; of a larger one the rows that differ lie beside the others.
    """

    def __init__(
        self,
        source: Source,
        digest: str,
        shard: EmbeddingShard,
        *,
        kept: int = KEPT_STATES,
        copied_bytes: int = 0,
    ) -> None:
        self._source, self._digest, self._base = source, digest, shard
        self._kept = kept
        self._copied = sum(part.rows.nbytes for part in shard.slices) <= copied_bytes
        self._opened: OrderedDict[str, EmbeddingShard] = OrderedDict()
        self._one_at_a_time = threading.Lock()
        self._lock = threading.Lock()  # of `_opened`, and never held for long

    def open(self, digest: str) -> EmbeddingShard:
        """The shard in the state with `digest`.

        Raises:
            ArtifactError: a state or part is missing or altered, or of another shard.
            StorageError: the disk or service refused.
        """
        with self._one_at_a_time:
            shard = self._opened.get(digest) or self._open(self._source.open(), digest)
            with self._lock:
                self._opened[digest] = shard
                self._opened.move_to_end(digest)
                while len(self._opened) > self._kept:
                    self._opened.popitem(last=False)
            return shard

    @property
    def size_bytes(self) -> int:
        """Bytes of the changed rows of all states held; rows that they share count once."""
        with self._lock:
            shards = tuple(self._opened.values())
        slices = [part for shard in shards for part in shard.slices]
        arrays = [chunk for part in slices if part.patch for chunk in part.patch.chunks]
        released = {id(part.rows) for part in self._base.slices}
        arrays += [part.rows for part in slices if id(part.rows) not in released]
        return sum({id(array): array.nbytes for array in arrays}.values())

    def _open(self, store: Store, digest: str) -> EmbeddingShard:
        """Walk back to a state that is here, or to the shard itself, and forward again."""
        todo, step = state_chain(store, digest, self._digest, self._opened)
        slices = (self._base if step is None else self._opened[step]).slices
        for state in reversed(todo):
            slices = self._changed(store, slices, state)
        return EmbeddingShard(slices, self._base.name)

    def _changed(
        self, store: Store, slices: tuple[StoredSlice, ...], state: ShardState
    ) -> tuple[StoredSlice, ...]:
        """The slices with the part of `state`."""
        changes = {change.table: change for change in state.tables}
        unknown = changes.keys() - {part.table.name for part in slices}
        if unknown:
            raise ArtifactError(f"state {state.digest[:12]}: the shard has no table {min(unknown)}")
        with self._source.obtain(store, state.digest, [state.part], None) as lease:
            file = TensorFile(lease.folder / state.part.path)
            changed = []
            for part in slices:
                change = changes.get(part.table.name)
                if change is None:
                    changed.append(part)
                    continue
                ids = file.read(f"ids.{part.table.name}")
                if ids.shape != (change.changed,) or ids.dtype != np.int64:
                    raise ArtifactError(
                        f"{file.path}: ids of {part.table.name} have shape {ids.shape} of "
                        f"{ids.dtype}, expected ({change.changed},) of int64"
                    )
                rows = file.read(f"rows.{part.table.name}")
                changed.append(part.changed(ids, rows, change.rows, copied=self._copied))
        return tuple(changed)
