"""Writing and reading at the disk's speed: hashing and writing run beside the selection of rows.

sha256 and write() let other threads run, so one thread hashes and another writes while the caller
makes the next chunk. Both take chunks in order; at most `QUEUE_BYTES` wait.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from erless.errors import ArtifactError
from erless.specs.artifact import FileEntry
from erless.storage.digests import FileDigest
from erless.storage.paged_file import PagedFile
from erless.storage.ranged import RangedFile, read_bytes
from erless.storage.tensor_header import TensorHeader
from erless.storage.tensors import ALIGNMENT_BYTES, TensorWriter

__all__ = ["CHUNK_BYTES", "Pipeline", "RawWriter", "SourceTable", "StreamWriter"]

CHUNK_BYTES = 8 << 20
QUEUE_BYTES = 64 << 20


class Pipeline:
    """One thread that hashes and one that writes, for all files of a pack."""

    def __init__(self) -> None:
        self.hasher = ThreadPoolExecutor(1, "hash")
        self.writer = ThreadPoolExecutor(1, "write")
        self._waiting: deque[tuple[int, Future[None], Future[None]]] = deque()
        self._bytes = 0

    def submit(self, state: Any, file: PagedFile, data: memoryview) -> None:
        """Hash and write `data`, which nobody may change any more. Raises what an earlier one did.

        Raises:
            StorageError: the disk refused.
        """
        hashed = self.hasher.submit(state.update, data)
        written = self.writer.submit(file.write, data)
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


class StreamWriter(TensorWriter):
    """A TensorWriter whose hashing and writing happen in a pipeline's threads.

    A chunk given to `write` must not be changed afterwards.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, tuple[DTypeLike, tuple[int, ...]]],
        pipeline: Pipeline,
        metadata: Mapping[str, str] | None = None,
        alignment_bytes: int = ALIGNMENT_BYTES,
    ) -> None:
        self._pipeline = pipeline
        super().__init__(path, tensors, metadata, alignment_bytes)

    def _put(self, data: bytes | memoryview) -> None:
        self._pipeline.submit(self._hash, self._file, memoryview(data))
        self._size += len(data)

    def close(self) -> FileDigest:
        """Wait for the threads, make the file durable and say what it holds."""
        self._pipeline.drain()
        return super().close()


class RawWriter:
    """A file without a header, hashed and written by a pipeline's threads."""

    def __init__(self, path: Path, pipeline: Pipeline) -> None:
        self.path, self._pipeline = path, pipeline
        self._hash = hashlib.sha256()
        self._size = 0
        self._file = PagedFile(path)

    def write(self, chunk: NDArray[Any]) -> None:
        """Append `chunk` (C order), which must not be changed afterwards."""
        if chunk.size:
            data = chunk.reshape(-1).view(np.uint8).data
            self._pipeline.submit(self._hash, self._file, data)
            self._size += len(data)

    def close(self) -> FileDigest:
        """Wait for the threads, make the file durable and say what it holds."""
        self._pipeline.drain()
        self._file.finish()
        return FileDigest(self._size, self._hash.hexdigest())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class SourceTable:
    """The rows of a bundle's table, read ahead in chunks: from a disk, or by ranges of a bucket.

    Args:
        file: the table's file.
        entry: what the bundle says it holds.
        chunk_rows: rows per chunk.

    Raises:
        ArtifactError: no safetensors file, or of another size than the bundle says.
    """

    def __init__(self, file: RangedFile, entry: FileEntry, chunk_rows: int) -> None:
        if file.size_bytes != entry.size_bytes:
            raise ArtifactError(
                f"{file.name}: {file.size_bytes:,} bytes, expected {entry.size_bytes:,}: "
                "truncated or altered"
            )
        self.file, self.entry, self.chunk_rows = file, entry, chunk_rows
        self.info = TensorHeader(file.name, file.size_bytes, partial(read_bytes, file)).info("rows")

    def chunks(self, rows: range) -> Iterator[NDArray[np.float32]]:
        """Chunks (n, dim) float32 of `rows`, in order.

        Where these are all rows, the file's digest is checked at the end.

        Raises:
            ArtifactError: the file is truncated, or not what the bundle says.
        """
        whole = len(rows) == self.info.shape[0]
        state = hashlib.sha256()
        if whole:
            state.update(read_bytes(self.file, 0, self.info.begin))
        begins = iter(rows[:: self.chunk_rows])
        with (
            ThreadPoolExecutor(self.file.parallel, "read") as reader,
            ThreadPoolExecutor(1, "hash") as hasher,
        ):
            ahead = deque(
                reader.submit(self._read, begin, rows.stop)
                for begin in islice(begins, max(2, self.file.parallel))
            )
            hashed: deque[Future[None]] = deque()
            try:
                while ahead:
                    chunk = ahead.popleft().result()
                    if (begin := next(begins, None)) is not None:
                        ahead.append(reader.submit(self._read, begin, rows.stop))
                    if whole:
                        hashed.append(
                            hasher.submit(state.update, chunk.reshape(-1).view(np.uint8).data)
                        )
                    if len(hashed) > 1:
                        hashed.popleft().result()
                    yield chunk
                while hashed:
                    hashed.popleft().result()
            finally:
                for pending in ahead:
                    pending.cancel()
        if whole and state.hexdigest() != self.entry.sha256:
            raise ArtifactError(f"{self.file.name}: altered: sha256 does not match the bundle's")

    def _read(self, begin: int, stop: int) -> NDArray[np.float32]:
        """The chunk from row `begin` on."""
        rows = min(self.chunk_rows, stop - begin)
        chunk = np.empty((rows, self.info.shape[1]), np.float32)
        offset = self.info.begin + begin * self.info.row_bytes
        self.file.read_into(offset, chunk.reshape(-1).view(np.uint8).data)
        return chunk
