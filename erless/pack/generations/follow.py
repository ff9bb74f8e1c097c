"""Follow a folder into which a trainer moves batches of changed rows.

    FOLDER/<name>/<table>.parquet or .safetensors     changed and added rows of a table
    FOLDER/<name>/<table>.deleted.parquet (or …)      deleted rows
    FOLDER/<name>/tower/                              a bundle with newer dense weights

A batch is made elsewhere on the same disk and moved in under its name, so that it is whole when it
is seen; what begins with a dot is not looked at. Batches are published in the order of their names.
A published one is moved to FOLDER/published/, one that cannot be to FOLDER/refused/, with the
reason in `error.txt`: those behind it go on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from erless.errors import ArtifactError, ModelError, StorageError, StoreError
from erless.pack.generations.changes import TableChanges, read_changes, read_deletions
from erless.pack.generations.publish import Publisher
from erless.specs.generations import GenerationManifest
from erless.storage.atomic import os_errors

__all__ = ["Batch", "BatchOutcome", "follow", "read_batch"]

PUBLISHED, REFUSED = "published", "refused"
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
    publisher: Publisher,
    folder: Path,
    *,
    every_s: float = EVERY_S,
    go_on: Callable[[], bool] = lambda: True,
) -> Iterator[BatchOutcome]:
    """Publish batches as they come, for as long as `go_on` says so.

    A store or disk that refuses for a while does not lose a batch: it is tried again.

    Raises:
        StorageError: the folder cannot be read.
    """
    with os_errors(folder):
        (folder / PUBLISHED).mkdir(parents=True, exist_ok=True)
        (folder / REFUSED).mkdir(exist_ok=True)
    while go_on():
        for path in _batches(folder):
            try:
                manifest = read_batch(path).publish(publisher)
            except (StorageError, StoreError) as error:
                yield BatchOutcome(path.name, None, f"{error}; it is tried again")
                break
            except (ModelError, ArtifactError) as error:
                _file(path, folder / REFUSED)
                (folder / REFUSED / path.name / "error.txt").write_text(f"{error}\n", "utf-8")
                yield BatchOutcome(path.name, None, str(error))
                continue
            _file(path, folder / PUBLISHED)
            yield BatchOutcome(path.name, manifest)
        time.sleep(every_s)


def _batches(folder: Path) -> list[Path]:
    with os_errors(folder, "read"):
        names = sorted(
            path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    return [path for path in names if path.name not in (PUBLISHED, REFUSED)]


def _file(path: Path, folder: Path) -> None:
    """Move a batch into `folder`, in place of one of its name that lies there."""
    target = folder / path.name
    shutil.rmtree(target, ignore_errors=True)
    with os_errors(target):
        path.rename(target)
