"""Reading a blob: ranges in parallel, hashed in order, each resumed where it broke."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from botocore.exceptions import HTTPClientError, ResponseStreamingError

from erless.errors import ArtifactError, BucketError
from erless.storage.atomic import os_errors
from erless.storage.s3.bucket import PART_BYTES, THREADS, S3Bucket, pause
from erless.storage.store import Blob, Counter

__all__ = ["download", "read_range"]

READ_BYTES = 1 << 20


def download(bucket: S3Bucket, blob: Blob, descriptor: int | None, counter: Counter) -> None:
    """Read `blob` by ranges in parallel, and hash it in order.

    Args:
        bucket: where it is.
        blob: what to read; its size and sha256 are compared.
        descriptor: of the file that is filled; None only compares.
        counter: counts the bytes hashed.

    Raises:
        ArtifactError: the blob is missing, truncated or altered.
        BucketError: the service refused, or the connection broke too often.
    """
    state = hashlib.sha256()
    begins = iter(range(0, blob.size_bytes, PART_BYTES))
    with ThreadPoolExecutor(THREADS) as pool:
        pending: list[Future[bytearray]] = []

        def submit() -> None:
            begin = next(begins, None)
            if begin is not None:
                end = min(begin + PART_BYTES, blob.size_bytes)
                pending.append(pool.submit(_range, bucket, blob, begin, end, descriptor, stop))

        stop = threading.Event()
        try:
            for _ in range(2 * THREADS):
                submit()
            while pending:
                data = pending.pop(0).result()
                submit()
                state.update(data)
                counter.advance(len(data))
        finally:
            stop.set()
    if state.hexdigest() != blob.sha256:
        raise ArtifactError(
            f"{bucket.url}/{blob.name}: altered: sha256 {state.hexdigest()}, expected {blob.sha256}"
        )


def _range(
    bucket: S3Bucket,
    blob: Blob,
    begin: int,
    end: int,
    descriptor: int | None,
    stop: threading.Event,
) -> bytearray:
    """Bytes `begin` … `end` - 1, and put them in their place."""
    data = bytearray(end - begin)
    read_range(bucket, blob.name, blob.size_bytes, begin, memoryview(data), stop)
    if descriptor is not None and not stop.is_set():
        with os_errors(Path(blob.name)):
            os.pwrite(descriptor, data, begin)
    return data


def read_range(
    bucket: S3Bucket,
    name: str,
    size_bytes: int,
    begin: int,
    view: memoryview,
    stop: threading.Event,
    **conditions: Any,
) -> None:
    """Fill `view` with the object's bytes from `begin` on, taken up again where a connection broke.

    Args:
        bucket: where it is.
        name: of the object.
        size_bytes: what the whole object should have.
        begin: of the first byte.
        view: what is filled; not whole where `stop` was set.
        stop: give up.
        conditions: that the object must meet, as boto3 takes them.

    Raises:
        ArtifactError: the object is missing, or of another size.
        StoreError: it is not what the conditions say.
        BucketError: the service refused, or the connection broke too often.
    """
    received = attempt = 0
    while received < len(view):
        if stop.is_set():
            return
        before = received
        with bucket.errors("read", name):
            try:
                received = _read_into(bucket, view, name, size_bytes, begin, received, conditions)
            except (ResponseStreamingError, HTTPClientError):
                if attempt >= bucket.attempts - 1:
                    raise
        if received < len(view):
            attempt = 0 if received > before else attempt + 1
            if attempt >= bucket.attempts:
                raise BucketError(
                    f"{bucket.url}/{name}: no bytes at offset {begin + received:,} in "
                    f"{bucket.attempts} attempts"
                )
            pause(attempt)


def _read_into(
    bucket: S3Bucket,
    view: memoryview,
    name: str,
    size_bytes: int,
    begin: int,
    received: int,
    conditions: Mapping[str, Any],
) -> int:
    """One GET from `begin + received` on; returns how far it came."""
    answer = bucket.client.get_object(
        **bucket.key(name),
        Range=f"bytes={begin + received}-{begin + len(view) - 1}",
        **conditions,
    )
    total = int(answer.get("ContentRange", "/0").rpartition("/")[2])
    if total != size_bytes:
        answer["Body"].close()
        raise ArtifactError(
            f"{bucket.url}/{name}: {total:,} bytes, expected {size_bytes:,}: truncated or altered"
        )
    with suppress(ResponseStreamingError, HTTPClientError), answer["Body"] as body:
        while chunk := body.read(min(READ_BYTES, len(view) - received)):
            view[received : received + len(chunk)] = chunk
            received += len(chunk)
    return received
