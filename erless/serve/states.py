"""A shard with the rows that generations changed: fetched, checked and put beside its own.

Where there is room, they are written into a copy of its rows as well (`Rewriter`).

A state leads back to the ones before it (`erless.specs.generations`). Those that are in memory are
where the walk ends, so that following generations costs one part each, and a function that has just
started fetches all of them.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from erless.dlrm.embedding import EmbeddingShard
from erless.dlrm.patches import RowChanges
from erless.dlrm.row_copies import RowCopy
from erless.errors import ArtifactError
from erless.serve.files import Source
from erless.specs.generations import ShardState, state_chain
from erless.storage.store import Store
from erless.storage.tensors import TensorFile

__all__ = ["KEPT_STATES", "Rewriter", "ShardStates"]

KEPT_STATES = 4  # of a shard that is a function: gateways may still ask for them
FREE_S = 2.0  # that lookups of a state may take to end
POLL_S = 0.01


class Changeable(Protocol):
    """A shard, in memory or on a disk."""

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """All its rows that lie in memory."""

    def changed(self, changes: Mapping[str, RowChanges]) -> Self:
        """It with changed rows, by table. Raises ArtifactError."""


S = TypeVar("S", bound=Changeable)


class ShardStates(Generic[S]):
    """The states of one shard. May be used from any thread; one at a time opens a state.

    Args:
        source: where its files come from.
        digest: of the shard's manifest.
        shard: as its release has it.
        kept: how many states stay in memory, for who may still ask for them.
    """

    def __init__(self, source: Source, digest: str, shard: S, *, kept: int = KEPT_STATES) -> None:
        self._source, self._digest, self._base = source, digest, shard
        self._kept = kept
        self._opened: OrderedDict[str, S] = OrderedDict()
        self._one_at_a_time = threading.Lock()
        self._lock = threading.Lock()  # of `_opened`, and never held for long

    def open(self, digest: str) -> S:
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
        released = {id(array) for array in self._base.arrays}
        sizes = {id(array): array.nbytes for shard in shards for array in shard.arrays}
        return sum(size for held, size in sizes.items() if held not in released)

    def _open(self, store: Store, digest: str) -> S:
        """Walk back to a state that is here, or to the shard itself, and forward again."""
        todo, step = state_chain(store, digest, self._digest, self._opened)
        shard = self._base if step is None else self._opened[step]
        for state in reversed(todo):
            shard = shard.changed(self._changes(store, state))
        return shard

    def _changes(self, store: Store, state: ShardState) -> dict[str, RowChanges]:
        """What the part of `state` changes, by table."""
        changes = {}
        with self._source.obtain(store, state.digest, [state.part], None) as lease:
            file = TensorFile(lease.folder / state.part.path)
            for change in state.tables:
                ids = file.read(f"ids.{change.table}")
                if ids.shape != (change.changed,) or ids.dtype != np.int64:
                    raise ArtifactError(
                        f"{file.path}: ids of {change.table} have shape {ids.shape} of "
                        f"{ids.dtype}, expected ({change.changed},) of int64"
                    )
                rows = file.read(f"rows.{change.table}")
                changes[change.table] = RowChanges(ids, rows, change.rows)
        return changes


class Rewriter:
    """Has the changed rows of one shard written in the places of the release's, in a copy of these.

    There is one copy, which goes from state to state: a state costs the rows in which it differs
    from the one that the copy held. So whoever looks that one up has to go back to rows beside the
    release's first. For one thread.

    Args:
        room_bytes: most that the copy may take.
    """

    def __init__(self, room_bytes: int) -> None:
        self._room_bytes = room_bytes
        self._copies: dict[int, RowCopy] = {}  # by number of the slice

    def rewrite(self, shard: EmbeddingShard) -> EmbeddingShard:
        """`shard` with changed rows in place.

        It is `shard` itself where none are changed, without room, and where lookups of the state
        before do not end in time.
        """
        if not 0 < shard.rewritten_bytes <= self._room_bytes:
            self._copies = {}
            return shard
        until = time.monotonic() + FREE_S
        while not all(copy.free for copy in self._copies.values()):
            if time.monotonic() > until:
                return shard
            time.sleep(POLL_S)
        try:
            return shard.rewritten(self._copies)
        except OSError:  # there is no memory for a copy
            self._copies = {}
            return shard

    @property
    def size_bytes(self) -> int:
        """Memory of the copy."""
        return sum(copy.size_bytes for copy in list(self._copies.values()))
