"""Nothing half-written is ever visible: write under a temporary name, fsync, rename.

A file is staged beside its final name as `.NAME.tmp-XXXXXXXX` and renamed, or linked where the
name must not be taken yet.

A stage's output directory is built beside its final name in the same way, held by an flock so that
a later run can tell a live writer from the remains of a killed one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from erless.errors import ArtifactError, ExistsError, StorageError

__all__ = [
    "create_file",
    "fsync_directory",
    "os_errors",
    "path_inside",
    "replace_file",
    "staged_directory",
    "staged_file",
]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def os_errors(path: Path, action: str = "write") -> Iterator[None]:
    """Translate an `OSError` on `path` into the fact a user can act on.

    Raises:
        StorageError: full, read-only, not permitted, or any other refusal, with the path.
        ArtifactError: the file does not exist.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in _FULL:
            raise StorageError(f"cannot {action} {where}: {_free_space(path)}") from error
        if error.errno in _REFUSED:
            raise StorageError(f"cannot {action} {where}: {error.strerror}") from error
        if isinstance(error, FileNotFoundError):
            raise ArtifactError(f"{where} does not exist") from error
        raise StorageError(f"cannot {action} {where}: {error.strerror or error}") from error


def _free_space(path: Path) -> str:
    """Words for the free space on the file system of `path`."""
    for folder in (path, *path.parents):
        if folder.exists():
            return f"no space left ({shutil.disk_usage(folder).free:,} bytes free)"
    return "no space left"


@contextmanager
def staged_directory(
    target: Path, *, marker: str, overwrite: bool = False, durable: bool = True
) -> Iterator[Path]:
    """Yield a fresh directory that becomes `target` when the block ends without an error.

    Args:
        target: the final name. Its parents are made.
        marker: a file that marks a directory of ours; only such a one is ever overwritten.
        overwrite: replace an existing `target`.
        durable: fsync every file before the rename.

    Raises:
        ExistsError: `target` is there already.
        ArtifactError: it is there and not erless's to replace.
        StorageError: the disk refused.
    """
    target = Path(os.path.abspath(target))  # noqa: PTH100 - keeps symlinks, unlike resolve()
    with os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        _check_replaceable(target, marker, overwrite)
        stage = target.parent / f".{target.name}.tmp-{secrets.token_hex(4)}"
        stage.mkdir()
        lock = os.open(stage, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield stage
            if durable:
                _fsync_tree(stage)
            _swap(stage, target, marker, overwrite)
        finally:
            os.close(lock)
            shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes the file `target` when the block ends without an error.

    Raises:
        StorageError: the disk refused.
    """
    with _beside(target) as stage:
        yield stage
        _fsync(stage)
        stage.replace(target)
        fsync_directory(target.parent)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; whatever is there at the end is removed."""
    with os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        stage = target.parent / f".{target.name}.tmp-{secrets.token_hex(4)}"
        try:
            yield stage
        finally:
            stage.unlink(missing_ok=True)


def replace_file(target: Path, data: bytes) -> None:
    """Make or overwrite the file `target` in one step.

    Raises:
        StorageError: the disk refused.
    """
    with staged_file(target) as stage:
        stage.write_bytes(data)


def create_file(target: Path, data: bytes, mode: int = 0o666) -> bool:
    """Make the file `target` in one step; False where the name is taken already.

    Args:
        target: its final name. Its parents are made.
        data: all of it.
        mode: of the file, less what the umask takes; 0o600 keeps it to its owner throughout.

    Raises:
        StorageError: the disk refused.
    """
    with _beside(target) as stage:
        stage.touch(mode)
        stage.write_bytes(data)
        _fsync(stage)
        try:
            os.link(stage, target)  # unlike a rename, this fails where the name is taken
        except FileExistsError:
            return False
        fsync_directory(target.parent)
    return True


def path_inside(folder: Path, name: str) -> Path:
    """`folder / name`, which must lie inside `folder` once symbolic links are followed.

    Raises:
        ArtifactError: it lies elsewhere.
        StorageError: the links lead in a circle.
    """
    path = folder / name
    with os_errors(path, "read"):
        try:
            inside = path.resolve().is_relative_to(folder.resolve())
        except RuntimeError:  # Python 3.11 and 3.12 raise it for links that lead in a circle
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None
    if not inside:
        raise ArtifactError(f"{path} leads out of {folder}")
    return path


def fsync_directory(folder: Path) -> None:
    """Make the names in `folder` durable."""
    _fsync(folder)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_replaceable(target: Path, marker: str, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or not (target / marker).is_file():
        raise ArtifactError(f"{target} exists and holds no {marker}: it is not erless's to replace")
    if not overwrite:
        raise ExistsError(f"{target} exists already")


def _swap(stage: Path, target: Path, marker: str, overwrite: bool) -> None:
    """Rename `stage` to `target`; an old one steps aside first and is removed last."""
    _check_replaceable(target, marker, overwrite)  # another run may have finished meanwhile
    old = target.parent / f".{target.name}.old-{secrets.token_hex(4)}"
    if target.exists():
        target.rename(old)
    stage.rename(target)
    fsync_directory(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Remove what a killed run left beside `target`; bring back a target it had set aside."""
    for old in target.parent.glob(f".{target.name}.old-*"):
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)
    for stale in target.parent.glob(f".{target.name}.tmp-*"):
        if not stale.is_dir():
            stale.unlink(missing_ok=True)
            continue
        descriptor = os.open(stale, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its writer lives
        else:
            shutil.rmtree(stale, ignore_errors=True)
        finally:
            os.close(descriptor)


def _fsync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        _fsync(path)
    fsync_directory(folder)
