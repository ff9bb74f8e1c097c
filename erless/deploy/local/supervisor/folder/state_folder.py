"""The state folder: one per deployment, locked by its supervisor.

    .erless/
      state.json      `StoredState`, replaced atomically
      lock            flock of the live supervisor, with its pid
      watchdog.lock   flock of the live watchdog, with its pid
      secret          with which functions identify themselves to each other (mode 0600)
      run/            unix sockets: `control`, `alerts`, and one per replica
      logs/           one file per replica slot, and the supervisor's
      cache/          of what came from S3
      models/         further state folders, of models that are deployed by name

It is its owner's only (mode 0700): whoever reaches a socket in it may command the functions.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from erless.deploy.local.supervisor.folder.identities import Identities
from erless.deploy.local.supervisor.folder.locks import (
    LOCK,
    WATCHDOG_LOCK,
    holds_path,
    lock_holder,
    take_lock,
)
from erless.deploy.local.supervisor.folder.secret import SecretFile
from erless.deploy.local.supervisor.spec import StoredState
from erless.errors import ArtifactError, ConflictError, StorageError
from erless.storage.atomic import os_errors, staged_file

__all__ = ["ALERTS", "ALERTS_SOCKET", "CONTROL", "MODELS", "StateFolder"]

CONTROL = "control"  # the supervisor's socket
ALERTS = "alerts"  # the socket of alerts, and their log
ALERTS_SOCKET = f"run/{ALERTS}"  # as functions reach it, which run in the state folder
STATE = "state.json"
MODELS = "models"
SECRET = "secret"  # noqa: S105 - a file's name
FILES = (STATE, SECRET, WATCHDOG_LOCK, LOCK)  # in the order in which they are removed
FOLDERS = ("run", "logs", "cache", "identities")
_STAGE = re.compile(r"\.(state\.json|secret)\.tmp-[0-9a-f]+")  # of a writer that was killed
BACKLOG = 1024
FREE_BYTES = 1 << 20  # a change writes a few KB of state, and functions log


class StateFolder:
    """Paths, state and sockets under one folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()  # the mark by which orphans are found: one name only
        self.logs = self.path / "logs"
        self.run = self.path / "run"
        self.cache = self.path / "cache"
        self.secret = SecretFile(self.path / SECRET)
        self.identities = Identities(self.path / "identities")
        self._run_fd: int | None = None
        self._lock_fd: int | None = None

    @property
    def exists(self) -> bool:
        """Something was deployed here and not destroyed."""
        return (self.path / STATE).is_file()

    def make(self) -> None:
        """Create the folder and its parts.

        Raises:
            StorageError: the disk refused.
            ConflictError: the folder holds other things, or is someone else's.
        """
        with os_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if self.path.stat().st_uid != os.getuid():
                raise ConflictError(f"{self.path} belongs to another user")
            foreign = {entry.name for entry in self.path.iterdir() if not self._ours(entry.name)}
            if foreign and not self.exists:
                raise ConflictError(f"{self.path} holds {min(foreign)}: it is not a state folder")
            self.path.chmod(0o700)
            for folder in (self.logs, self.run):
                folder.mkdir(exist_ok=True)

    @staticmethod
    def _ours(name: str) -> bool:
        return name in (*FILES, *FOLDERS, MODELS) or _STAGE.fullmatch(name) is not None

    def load(self) -> StoredState:
        """What was saved last; a fresh state where nothing was.

        Raises:
            ArtifactError: it is damaged.
        """
        if not self.exists:
            return StoredState()
        file = self.path / STATE
        with os_errors(file, "read"):
            text = file.read_bytes()
        try:
            return StoredState.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            raise ArtifactError(f"{file}: damaged: {first['msg']}") from error

    def check_space(self) -> None:
        """There is room for logs and state: a change is not begun without.

        Raises:
            StorageError: the disk is full.
        """
        with os_errors(self.path, "read"):
            free = shutil.disk_usage(self.path).free
        if free < FREE_BYTES:
            raise StorageError(f"no space left in {self.path}: {free:,} bytes free")

    def save(self, state: StoredState) -> None:
        """Replace the saved state.

        Raises:
            StorageError: the disk refused; the old state is still there.
        """
        file = self.path / STATE
        with staged_file(file) as stage, os_errors(stage):
            stage.touch(mode=0o600)
            stage.write_text(state.model_dump_json(indent=2), encoding="utf-8")

    def forget_state(self) -> None:
        """Record that nothing is deployed here any more, even if we are killed next.

        Raises:
            StorageError: the disk refused.
        """
        with os_errors(self.path, "remove"):
            (self.path / STATE).unlink(missing_ok=True)

    def lock(self) -> bool:
        """Become the folder's supervisor; False where one lives."""
        self._lock_fd = take_lock(self.path / LOCK)
        return self._lock_fd is not None  # held until the process ends

    @property
    def owned(self) -> bool:
        """The lock that this process took still guards the folder: nobody has removed it."""
        return self._lock_fd is not None and holds_path(self._lock_fd, self.path / LOCK)

    def supervisor_pid(self) -> int | None:
        """The live supervisor's pid."""
        return lock_holder(self.path / LOCK)

    def socket_path(self, name: str) -> str:
        """A path short enough for a unix socket (108 bytes), however deep the folder lies."""
        if self._run_fd is not None and os.fstat(self._run_fd).st_nlink == 0:
            self.close()  # somebody removed the folder, and it was made again
        if self._run_fd is None:
            self._run_fd = os.open(self.run, os.O_RDONLY | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._run_fd}/{name}"

    def has_socket(self, name: str) -> bool:
        """Whether the socket `run/name` is there."""
        return (self.run / name).exists()

    def listen(self, name: str) -> socket.socket:
        """A listening unix socket `run/name`.

        Raises:
            StorageError: the disk refused.
        """
        with os_errors(self.run):
            self.run.mkdir(exist_ok=True)
        (self.run / name).unlink(missing_ok=True)
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with os_errors(self.run / name):
                opened.bind(self.socket_path(name))
            opened.listen(BACKLOG)
            opened.setblocking(False)
        except BaseException:
            opened.close()
            raise
        return opened

    def bind_datagram(self, name: str) -> socket.socket:
        """A unix datagram socket `run/name`, that does not block.

        Raises:
            StorageError: the disk refused.
        """
        with os_errors(self.run):
            self.run.mkdir(exist_ok=True)
        (self.run / name).unlink(missing_ok=True)
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            with os_errors(self.run / name):
                opened.bind(self.socket_path(name))
            opened.setblocking(False)
        except BaseException:
            opened.close()
            raise
        return opened

    def forget(self, name: str) -> None:
        """Remove the socket `run/name`."""
        (self.run / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Close what `socket_path` opened."""
        if self._run_fd is not None:
            os.close(self._run_fd)
            self._run_fd = None

    def remove(self) -> None:
        """Remove all of ours, and the folder where nothing else is in it.

        Raises:
            StorageError: the disk refused.
        """
        self.close()
        with os_errors(self.path, "remove"), suppress(FileNotFoundError):  # it has been removed
            for name in FOLDERS:
                shutil.rmtree(self.path / name, ignore_errors=True)
            for entry in list(self.path.iterdir()):
                if _STAGE.fullmatch(entry.name):
                    entry.unlink(missing_ok=True)
            for name in FILES:
                (self.path / name).unlink(missing_ok=True)
            if not any(self.path.iterdir()):
                self.path.rmdir()
