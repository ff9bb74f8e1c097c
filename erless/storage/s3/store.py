"""The store that is a bucket's prefix, through boto3.

Every object is written by one conditional PUT, or by one multipart upload that becomes visible
when it is completed. Parts carry a CRC-32 that S3 checks on arrival; whole blobs are compared with
their sha256 when they are fetched. An upload that was cut off is taken up again: parts already
there whose checksum fits are not sent twice. Bodies of downloads resume at the byte where a
connection broke. Credentials come from boto3's standard chain.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError, HTTPClientError, ResponseStreamingError

from erless.errors import StoreError
from erless.storage.atomic import os_errors, staged_file
from erless.storage.s3.bucket import (
    ATTEMPTS,
    PART_BYTES,
    READ_TIMEOUT_S,
    S3Bucket,
    crc32,
    is_conflict,
    pause,
)
from erless.storage.s3.download import download
from erless.storage.s3.upload import upload
from erless.storage.store import Blob, Counter, StoredObject

__all__ = ["S3Store"]


class S3Store:
    """A store under `s3://bucket/prefix`.

    Args:
        url: `s3://bucket/prefix`.
        endpoint_url: of an S3 API other than AWS's (moto, MinIO).
        read_timeout_s: a connection silent for this long counts as broken.
        attempts: per request, and per stretch of a body without a byte of progress.

    Raises:
        StoreError: the URL names no bucket.
        StorageError: no credentials.
    """

    def __init__(
        self,
        url: str,
        endpoint_url: str | None = None,
        *,
        read_timeout_s: float = READ_TIMEOUT_S,
        attempts: int = ATTEMPTS,
    ) -> None:
        self._bucket = S3Bucket(url, endpoint_url, read_timeout_s=read_timeout_s, attempts=attempts)
        self.url = self._bucket.url
        self.folder: Path | None = None

    def read(self, name: str) -> bytes:
        """The document `name`."""
        for attempt in range(self._bucket.attempts):
            with self._bucket.errors("read", name):
                try:
                    return self._bucket.client.get_object(**self._bucket.key(name))["Body"].read()
                except (ResponseStreamingError, HTTPClientError):
                    if attempt == self._bucket.attempts - 1:
                        raise
            pause(attempt)
        raise AssertionError("unreachable")

    def create(self, name: str, data: bytes) -> None:
        """Make the document `name`, or find it there with the same content."""
        with self._bucket.errors("write", name):
            try:
                self._put(name, data, IfNoneMatch="*")
            except ClientError as error:
                if not is_conflict(error):
                    raise
                if self.read(name) != data:
                    raise StoreError(
                        f"{self.url}/{name} exists already with other content"
                    ) from None

    def replace(self, name: str, data: bytes) -> None:
        """Make or overwrite the document `name`."""
        with self._bucket.errors("write", name):
            self._put(name, data)

    def _put(self, name: str, data: bytes, **conditions: Any) -> None:
        self._bucket.client.put_object(
            **self._bucket.key(name), Body=data, ChecksumCRC32=crc32(data), **conditions
        )

    def delete(self, name: str) -> None:
        """Remove `name`, if it is there."""
        with self._bucket.errors("delete", name):
            self._bucket.client.delete_object(**self._bucket.key(name))

    def list(self, prefix: str) -> list[StoredObject]:
        """All whose name begins with `prefix`."""
        objects = []
        with self._bucket.errors("list", prefix):
            pages = self._bucket.client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket.name, Prefix=self._bucket.prefix + prefix
            )
            for page in pages:
                objects += [
                    StoredObject(
                        entry["Key"].removeprefix(self._bucket.prefix),
                        entry["Size"],
                        entry["LastModified"].timestamp(),
                    )
                    for entry in page.get("Contents", ())
                ]
        return sorted(objects)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder to make files in."""
        with tempfile.TemporaryDirectory(prefix="erless-") as folder:
            yield Path(folder)

    def adopt(self, staged: Path, blob: Blob, counter: Counter) -> None:
        """Keep `staged` under the name of `blob`."""
        with self._bucket.errors("write", blob.name):
            if self._bucket.has(blob):
                counter.advance(blob.size_bytes)
            elif blob.size_bytes <= PART_BYTES:
                with os_errors(staged, "read"):
                    self._put(blob.name, staged.read_bytes(), Metadata={"sha256": blob.sha256})
                counter.advance(blob.size_bytes)
            else:
                upload(self._bucket, staged, blob, counter)
        staged.unlink()

    def fetch(self, blob: Blob, target: Path, counter: Counter) -> None:
        """Copy `blob` to `target` and compare its content."""
        with staged_file(target) as stage:
            descriptor = os.open(stage, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                if blob.size_bytes:
                    os.posix_fallocate(descriptor, 0, blob.size_bytes)  # full disks fail here
                download(self._bucket, blob, descriptor, counter)
            finally:
                os.close(descriptor)

    def check(self, blob: Blob, counter: Counter) -> None:
        """Read `blob` whole and compare its content."""
        download(self._bucket, blob, None, counter)

    def sweep(self, before_s: float) -> int:
        """Remove what stopped writers left."""
        swept = 0
        with self._bucket.errors("delete"):
            pages = self._bucket.client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._bucket.name, Prefix=self._bucket.prefix
            )
            for page in pages:
                for begun in page.get("Uploads", ()):
                    if begun["Initiated"].timestamp() < before_s:
                        self._bucket.client.abort_multipart_upload(
                            Bucket=self._bucket.name, Key=begun["Key"], UploadId=begun["UploadId"]
                        )
                        swept += 1
        return swept

    @contextmanager
    def locked(self, *, exclusive: bool) -> Iterator[None]:
        """S3 has no locks: `prune` spares what is younger than its grace period instead."""
        yield
