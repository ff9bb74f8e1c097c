"""Where a trainer leaves batches of changed rows: a folder, or a prefix of a bucket.

A batch in a folder is made elsewhere on the same disk and moved in, so that it is whole when it is
seen. A bucket cannot move a set of objects: there a batch is whole once it has an object called
`_SUCCESS`, written last (as Hadoop and Spark do by themselves). A batch that was published goes to
`published/`, one that cannot be to `refused/`, with the reason in `error.txt`. Who is stopped
between publishing a batch and putting it away publishes it once more when it starts again: the same
rows with the same values, before any later batch.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from pydantic import TypeAdapter, ValidationError

from erless.errors import ModelError
from erless.specs.artifact import RelativePath
from erless.storage.atomic import os_errors

__all__ = ["FolderInbox", "Inbox", "open_inbox"]

PUBLISHED, REFUSED = "published", "refused"
COMPLETE = "_SUCCESS"
_PATH = TypeAdapter(RelativePath)


class Inbox(Protocol):
    """Batches that wait to be published. Each method raises StorageError where it is refused."""

    url: str

    def batches(self) -> list[str]:
        """Names of the whole ones, in their order."""

    @contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """A folder with the files of a batch. Raises ModelError where it holds what is no file."""
        yield Path()

    def put_away(self, name: str, error: str = "") -> None:
        """The batch was published, or refused for `error`."""


def open_inbox(location: str, endpoint_url: str | None = None) -> Inbox:
    """The inbox at `location`, a folder or `s3://bucket/prefix`; a folder is made where it is not.

    Raises:
        StoreError: the URL names no bucket.
        StorageError: the disk or service refused.
    """
    return BucketInbox(location, endpoint_url) if "://" in location else FolderInbox(Path(location))


class FolderInbox:
    """A folder; what begins with a dot is not looked at."""

    def __init__(self, folder: Path) -> None:
        self.url, self._folder = str(folder), folder
        with os_errors(folder):
            (folder / PUBLISHED).mkdir(parents=True, exist_ok=True)
            (folder / REFUSED).mkdir(exist_ok=True)

    def batches(self) -> list[str]:
        """As of `Inbox`."""
        with os_errors(self._folder, "read"):
            names = sorted(path.name for path in self._folder.iterdir() if path.is_dir())
        return [name for name in names if _is_batch(name)]

    @contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """As of `Inbox`: the files where they lie."""
        yield self._folder / name

    def put_away(self, name: str, error: str = "") -> None:
        """As of `Inbox`; takes the place of one of its name that lies there."""
        target = self._folder / (REFUSED if error else PUBLISHED) / name
        shutil.rmtree(target, ignore_errors=True)
        with os_errors(target):
            (self._folder / name).rename(target)
            if error:
                (target / "error.txt").write_text(f"{error}\n", "utf-8")


class BucketInbox:
    """A prefix of a bucket.

    Args:
        url: `s3://bucket/prefix`.
        endpoint_url: of an S3 API other than AWS's.
    """

    def __init__(self, url: str, endpoint_url: str | None = None) -> None:
        from erless.storage.s3.folders import BucketFolders

        self._folders = BucketFolders(url, endpoint_url)
        self.url = self._folders.url

    def batches(self) -> list[str]:
        """As of `Inbox`."""
        names = [name for name in self._folders.names() if _is_batch(name)]
        return [name for name in names if COMPLETE in self._folders.files(name)]

    @contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """As of `Inbox`: the files fetched."""
        with TemporaryDirectory(prefix="erless-batch-") as temporary:
            folder = Path(temporary, "batch")
            folder.mkdir()
            for file in self._folders.files(name):
                if file == COMPLETE:
                    continue
                try:
                    _PATH.validate_python(file)
                except ValidationError:
                    raise ModelError(f"{self.url}/{name}: {file!r} is no file of a batch") from None
                target = folder / file
                with os_errors(target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                self._folders.fetch(name, file, target)
            yield folder

    def put_away(self, name: str, error: str = "") -> None:
        """As of `Inbox`."""
        place = f"{REFUSED if error else PUBLISHED}/{name}"
        self._folders.move(name, place)
        if error:
            self._folders.write(place, "error.txt", f"{error}\n".encode())


def _is_batch(name: str) -> bool:
    return not name.startswith(".") and name not in (PUBLISHED, REFUSED)
