"""Reads the files that a function maps again while it runs, and compares them with its manifest.

Rows are verified when they are loaded. A file that is overwritten or cut short afterwards would
give wrong answers, or end the process (SIGBUS), without any message. Sizes are looked at every
second. All bytes are hashed in turn, at a bounded rate, in a thread without the interpreter's lock.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence

from erless.serve.files import MappedFile

__all__ = ["Scrubber"]

CHUNK_BYTES = 1 << 20
LOOK_S = 1.0  # between two looks at the sizes


class Scrubber:
    """A thread that reads `files` until it finds one damaged, or is stopped.

    Args:
        files: those that are mapped.
        bytes_s: read so many bytes a second; 0: none, only sizes are looked at.
        damaged: called from the thread, once, with the reason.
    """

    def __init__(
        self, files: Sequence[MappedFile], bytes_s: float, damaged: Callable[[str], None]
    ) -> None:
        self._bytes_s, self._damaged = bytes_s, damaged
        # by descriptor: a file that is replaced or removed leaves what we map as it was
        self._files = [(file, os.open(file.path, os.O_RDONLY)) for file in files]
        self._stopped = threading.Event()
        self._looked = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="scrub", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        if self._files:
            self._thread.start()

    def stop(self) -> None:
        """Stop reading; the thread ends by itself."""
        self._stopped.set()

    def _run(self) -> None:
        reason = None
        while reason is None and not self._stopped.is_set():
            for file, descriptor in self._files:
                reason = reason or self._wrong_size() or self._damage(file, descriptor)
            self._stopped.wait(LOOK_S)
        if reason is not None and not self._stopped.is_set():
            self._damaged(reason)
        for _, descriptor in self._files:
            os.close(descriptor)

    def _damage(self, file: MappedFile, descriptor: int) -> str | None:
        """How `file`, or the size of any other, is damaged; None: it is not, or we were stopped."""
        if not self._bytes_s:
            return None
        digest = hashlib.sha256()
        for begin in range(0, file.size_bytes, CHUNK_BYTES):
            piece = os.pread(descriptor, min(CHUNK_BYTES, file.size_bytes - begin), begin)
            digest.update(piece)
            if self._stopped.wait(len(piece) / self._bytes_s):
                return None
            if time.monotonic() - self._looked >= LOOK_S:
                self._looked = time.monotonic()
                if (reason := self._wrong_size()) is not None:
                    return reason
        if digest.hexdigest() != file.sha256:
            return f"{file.path} was changed while it was served"
        return None

    def _wrong_size(self) -> str | None:
        for file, descriptor in self._files:
            size = os.fstat(descriptor).st_size
            if size != file.size_bytes:
                return f"{file.path} has {size:,} bytes, expected {file.size_bytes:,}"
        return None
