"""The secret that the functions of one deployment share, in a file of the state folder.

A gateway sends the first line with every call to a shard, and a shard accepts every line
(`ERLESS_SECRET_FILE`, docs/functions.md). So a new secret is put before the old one when gateways
are to change, and the old one is dropped when the last gateway that sends it has ended. A gateway
sends what was first when it started, for as long as it lives: a replica that started during a
deploy that was undone sends that deploy's secret, so it stays accepted, behind the first.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from erless.storage.atomic import os_errors, staged_file

__all__ = ["SecretFile"]

SECRET_BYTES = 32
MOST = 8  # secrets that are accepted: those of deploys that failed one after the other
OWNER_ONLY = 0o600


class SecretFile:
    """The file at `path`, readable by its owner only."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> tuple[str, ...]:
        """The secrets that are accepted, the one that is sent first; none where nothing was made.

        Raises:
            StorageError: the file cannot be read.
        """
        with os_errors(self.path, "read"):
            try:
                text = self.path.read_text(encoding="ascii", errors="replace")
            except FileNotFoundError:
                return ()
        return tuple(text.split())

    def rotate(self) -> tuple[str, ...]:
        """Put a new secret before those that are accepted; returns what the file held before.

        Raises:
            StorageError: the disk refused; the file is as it was.
        """
        before = self.lines()
        self.write((secrets.token_urlsafe(SECRET_BYTES), *before)[:MOST])
        return before

    def restore(self, before: tuple[str, ...]) -> None:
        """Send again what was sent `before` a rotation; what it brought is accepted on.

        Raises:
            StorageError: the disk refused; both are accepted, the new one is sent.
        """
        fresh = tuple(line for line in self.lines() if line not in before)
        self.write((*before[:1], *fresh, *before[1:])[:MOST] if before else ())

    def settle(self) -> None:
        """Accept only the secret that is sent.

        Raises:
            StorageError: the disk refused; the old one is accepted on.
        """
        lines = self.lines()
        if len(lines) > 1:
            self.write(lines[:1])

    def write(self, lines: tuple[str, ...]) -> None:
        """Replace the file's lines; no line at all removes it.

        Raises:
            StorageError: the disk refused.
        """
        if not lines:
            self.path.unlink(missing_ok=True)
            return
        with staged_file(self.path) as stage, os_errors(stage):
            descriptor = os.open(stage, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, OWNER_ONLY)
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                os.fchmod(file.fileno(), OWNER_ONLY)
                file.writelines(f"{line}\n" for line in lines)
