"""Follow an inbox into which a trainer puts batches of changed rows (`inbox.py`).

    INBOX/<name>/<table>.parquet or .safetensors     changed and added rows of a table
    INBOX/<name>/<table>.deleted.parquet (or …)      deleted rows
    INBOX/<name>/tower/                              a bundle with newer dense weights

Batches are published in the order of their names. One that does not fit is put aside, and those
behind it go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from erless.errors import ArtifactError, ModelError, StorageError, StoreError
from erless.pack.generations.changes import TableChanges, read_changes, read_deletions
from erless.pack.generations.inbox import Inbox
from erless.pack.generations.publish import Publisher
from erless.specs.generations import GenerationManifest

__all__ = ["Batch", "BatchOutcome", "follow", "read_batch"]

TOWER = "tower"
DELETED = ".deleted"
EVERY_S = 0.5
_SUFFIXES = (".parquet", ".safetensors")


@dataclass(frozen=True)
class Batch:
    """Files of what one generation changes: by table rows and deletions, and a bundle."""

    rows: Mapping[str, Path]
    deleted: Mapping[str, Path]
    tower: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.rows or self.deleted or self.tower)

    def changes(self, publisher: Publisher) -> list[TableChanges]:
        """All rows, checked against the model.

        Raises:
            ModelError: a file does not fit its table, or a row is changed and deleted.
            StorageError: a file cannot be read.
        """
        changes = []
        for table in sorted({*self.rows, *self.deleted}):
            spec = publisher.table(table)
            parts = []
            if table in self.rows:
                parts.append(read_changes(self.rows[table], spec))
            if table in self.deleted:
                parts.append(read_deletions(self.deleted[table], spec))
            ids = np.concatenate([part.ids for part in parts])
            vectors = np.concatenate([part.vectors for part in parts])
            both = TableChanges(table, ids, vectors, sum(part.deleted for part in parts))
            both.check(spec, f"table {table}: rows and deletions")
            changes.append(both)
        return changes

    def publish(self, publisher: Publisher) -> GenerationManifest:
        """Make a generation of it. Errors as `changes` and `Publisher.publish`."""
        return publisher.publish(self.changes(publisher), self.tower)


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """What became of a batch: a generation, or the reason why not."""

    name: str
    manifest: GenerationManifest | None
    error: str = ""


def read_batch(folder: Path) -> Batch:
    """The batch in `folder`.

    Raises:
        ModelError: a file in it is none of a batch's, or there is none.
    """
    rows: dict[str, Path] = {}
    deleted: dict[str, Path] = {}
    tower = None
    for path in sorted(folder.iterdir()):
        if path.name == TOWER and path.is_dir():
            tower = path
            continue
        if path.suffix not in _SUFFIXES or path.is_symlink() or not path.is_file():
            raise ModelError(
                f"{path}: a batch holds TABLE.parquet, TABLE.safetensors, TABLE.deleted.… and "
                "tower/"
            )
        kind = deleted if path.stem.endswith(DELETED) else rows
        kind[path.stem.removesuffix(DELETED)] = path
    batch = Batch(rows, deleted, tower)
    if not batch:
        raise ModelError(f"{folder}: the batch is empty")
    return batch


def follow(
    publisher: Callable[[], Publisher],
    inbox: Inbox,
    *,
    every_s: float = EVERY_S,
    go_on: Callable[[], bool] = lambda: True,
) -> Iterator[BatchOutcome]:
    """Publish batches as they come, for as long as `go_on` says so.

    A store, disk or bucket that refuses for a while does not lose a batch: it is tried again.

    Args:
        publisher: who publishes, asked for each batch: it may change to another release.
        inbox: where batches come from.
        every_s: between two looks into it.
        go_on: asked between them.
    """
    made: dict[str, tuple[GenerationManifest | None, str]] = {}  # but not put away yet
    told = ""
    while go_on():
        refusal = None
        try:
            for name in inbox.batches():
                if name not in made:
                    made[name] = _publish(publisher(), inbox, name)
                inbox.put_away(name, made[name][1])
                yield BatchOutcome(name, *made.pop(name))
                told = ""
        except (StorageError, StoreError) as error:
            refusal = f"{error}; it is tried again"
        if refusal and refusal != told:
            told = refusal
            yield BatchOutcome(inbox.url, None, refusal)
        time.sleep(every_s)


def _publish(
    publisher: Publisher, inbox: Inbox, name: str
) -> tuple[GenerationManifest | None, str]:
    """The generation of a batch, or why it cannot be one."""
    try:
        with inbox.opened(name) as folder:
            return read_batch(folder).publish(publisher), ""
    except (ModelError, ArtifactError) as error:
        return None, str(error)
