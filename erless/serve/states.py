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
from erless.specs.generations import ShardState, load_state
from erless.storage.store import Store
from erless.storage.tensors import TensorFile

__all__ = ["KEPT_STATES", "ShardStates"]

KEPT_STATES = 4  # of a shard, in memory: those that gateways may still ask for


class ShardStates:
    """The states of one shard. May be used from any thread; one at a time opens a state.

    Args:
        source: where its files come from.
        digest: of the shard's manifest.
        shard: as its release has it.
    """

    def __init__(self, source: Source, digest: str, shard: EmbeddingShard) -> None:
        self._source, self._digest, self._base = source, digest, shard
        self._opened: OrderedDict[str, EmbeddingShard] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, digest: str) -> EmbeddingShard:
        """The shard in the state with `digest`.

        Raises:
            ArtifactError: a state or part is missing or altered, or of another shard.
            StorageError: the disk or service refused.
        """
        with self._lock:
            shard = self._opened.get(digest)
            if shard is None:
                shard = self._open(self._source.open(), digest)
                self._opened[digest] = shard
                while len(self._opened) > KEPT_STATES:
                    self._opened.popitem(last=False)
            else:
                self._opened.move_to_end(digest)
            return shard

    @property
    def size_bytes(self) -> int:
        """Bytes of changed rows held for the newest state."""
        with self._lock:
            newest = next(reversed(self._opened.values()), None)
        slices = newest.slices if newest else ()
        return sum(part.patch.size_bytes for part in slices if part.patch)

    def _open(self, store: Store, digest: str) -> EmbeddingShard:
        """Walk back to a state that is here, or to the shard itself, and forward again."""
        todo: list[ShardState] = []
        step: str | None = digest
        while step is not None and step not in self._opened:
            state = load_state(store, step)
            if state.shard != self._digest:
                raise ArtifactError(
                    f"state {step[:12]} is of shard {state.shard[:12]}, not of {self._digest[:12]}"
                )
            if todo and state.depth != todo[-1].depth - 1:
                raise ArtifactError(f"state {step[:12]} has depth {state.depth}: a step is missing")
            todo.append(state)
            step = state.previous
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
                changed.append(part.changed(ids, rows, change.rows))
        return tuple(changed)
