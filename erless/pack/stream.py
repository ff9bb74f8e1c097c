"""Writing and reading at the disk's speed: hashing and writing run beside the selection of rows.

sha256 and write() let other threads run, so one thread hashes and another writes while the caller
makes the next chunk. Both take chunks in order; at most `QUEUE_BYTES` wait.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from erless.errors import ArtifactError
from erless.specs.artifact import FileEntry
from erless.storage.atomic import os_errors
from erless.storage.digests import FileDigest
from erless.storage.tensors import ALIGNMENT_BYTES, TensorFile, TensorWriter

__all__ = ["Pipeline", "SourceTable", "StreamWriter"]

CHUNK_BYTES = 8 << 20
QUEUE_BYTES = 64 << 20


class Pipeline:
    """One thread that hashes and one that writes, for all files of a pack."""

    def __init__(self) -> None:
        self.hasher = ThreadPoolExecutor(1, "hash")
        self.writer = ThreadPoolExecutor(1, "write")
        self._waiting: deque[tuple[int, Future[None], Future[None]]] = deque()
        self._bytes = 0

    def submit(self, state: Any, file: Any, path: Path, data: memoryview) -> None:
        """Hash and write `data`, which nobody may change any more. Raises what an earlier one did.

        Raises:
            StorageError: the disk refused.
        """
        hashed = self.hasher.submit(state.update, data)
        written = self.writer.submit(_write, file, path, data)
        self._waiting.append((len(data), hashed, written))
        self._bytes += len(data)
        while self._bytes > QUEUE_BYTES:
            self._wait()

    def drain(self) -> None:
        """Wait for all that was submitted."""
        while self._waiting:
            self._wait()

    def _wait(self) -> None:
        size, hashed, written = self._waiting.popleft()
        self._bytes -= size
        hashed.result()
        written.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self.hasher, self.writer):
            pool.shutdown(wait=True, cancel_futures=True)


def _write(file: Any, path: Path, data: memoryview) -> None:
    with os_errors(path):
        while data:
            data = data[file.write(data) or 0 :]


class StreamWriter(TensorWriter):
    """A TensorWriter whose hashing and writing happen in a pipeline's threads.

    A chunk given to `write` must not be changed afterwards.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, tuple[DTypeLike, tuple[int, ...]]],
        pipeline: Pipeline,
        alignment_bytes: int = ALIGNMENT_BYTES,
    ) -> None:
        self._pipeline = pipeline
        super().__init__(path, tensors, alignment_bytes=alignment_bytes)

    def _put(self, data: bytes | memoryview) -> None:
        self._pipeline.submit(self._hash, self._file, self.path, memoryview(data))
        self._size += len(data)

    def close(self) -> FileDigest:
        """Wait for the threads, make the file durable and say what it holds."""
        self._pipeline.drain()
        return super().close()


class SourceTable:
    """The rows of a bundle's table, read ahead in chunks and checked against the bundle's sha256.

    Args:
        path: the table's file.
        entry: what the bundle says it holds.
        chunk_rows: rows per chunk.
    """

    def __init__(self, path: Path, entry: FileEntry, chunk_rows: int) -> None:
        self.file = TensorFile(path)
        self.entry = entry
        self.info = self.file.info("rows")
        self.chunk_rows = chunk_rows

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """Chunks (n, dim) float32, in order. The file's digest is checked at the end.

        Raises:
            ArtifactError: the file is truncated, or not what the bundle says.
        """
        state = hashlib.sha256()
        with (
            os_errors(self.file.path, "read"),
            self.file.path.open("rb", buffering=0) as source,
            ThreadPoolExecutor(1, "read") as reader,
        ):
            os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            state.update(source.read(self.info.begin))
            stop = threading.Event()
            begins = range(0, self.info.shape[0], self.chunk_rows)
            ahead = deque(
                reader.submit(self._read, source, state, begin, stop) for begin in begins[:2]
            )
            try:
                for place in range(len(begins)):
                    chunk = ahead.popleft().result()
                    if place + 2 < len(begins):
                        begin = begins[place + 2]
                        ahead.append(reader.submit(self._read, source, state, begin, stop))
                    yield chunk
            finally:
                stop.set()
        if state.hexdigest() != self.entry.sha256:
            raise ArtifactError(f"{self.file.path}: altered: sha256 does not match the bundle's")

    def _read(
        self, source: Any, state: Any, begin: int, stop: threading.Event
    ) -> NDArray[np.float32]:
        """The next chunk, hashed."""
        rows = min(self.chunk_rows, self.info.shape[0] - begin)
        chunk = np.empty((rows, self.info.shape[1]), np.float32)
        view = chunk.reshape(-1).view(np.uint8).data
        whole = view
        while view and not stop.is_set():
            read = source.readinto(view)
            if not read:
                raise ArtifactError(f"{self.file.path}: truncated in row {begin:,} or later")
            view = view[read:]
        state.update(whole)
        return chunk
