"""The store that is a bucket's prefix, through boto3.

Every object is written by one conditional PUT, or by one multipart upload that becomes visible
when it is completed. Parts carry a CRC-32 that S3 checks on arrival; whole blobs are compared with
their sha256 when they are fetched. An upload that was cut off is taken up again: parts already
there whose checksum fits are not sent twice. Bodies of downloads resume at the byte where a
connection broke. Credentials come from boto3's standard chain.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
)

from erless.errors import ArtifactError, StorageError, StoreError
from erless.storage.atomic import os_errors
from erless.storage.stores import Blob, Counter, StoredObject

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["S3Store"]

PART_BYTES = 8 << 20  # 16 and 32 MiB moved the same bytes per second, and hold more memory
MAX_PARTS = 10_000  # S3's limit
THREADS = 8
READ_BYTES = 1 << 20
ATTEMPTS = 8  # per request, and per stretch of a body without a byte of progress
BACKOFF_S, MAX_BACKOFF_S = 0.1, 5.0
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 20
_REFUSED = {401, 403}
_CONFLICT = {409, 412}


class S3Store:
    """A store under `s3://bucket/prefix`.

    Args:
        url: `s3://bucket/prefix`.
        endpoint_url: of an S3 API other than AWS's (moto, MinIO).
        read_timeout_s: a connection silent for this long counts as broken.

    Raises:
        StoreError: the URL names no bucket.
        StorageError: no credentials.
    """

    def __init__(
        self, url: str, endpoint_url: str | None = None, *, read_timeout_s: float = READ_TIMEOUT_S
    ) -> None:
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise StoreError(f"{url} names no bucket")
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.url = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        self.folder: Path | None = None
        config = Config(
            retries={"mode": "standard", "max_attempts": ATTEMPTS},
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=read_timeout_s,
            max_pool_connections=2 * THREADS,
            tcp_keepalive=True,
            request_checksum_calculation="when_required",  # parts carry their own
            response_checksum_validation="when_required",  # sha256 covers the whole
        )
        with self._errors("reach"):
            self._s3: S3Client = boto3.client("s3", endpoint_url=endpoint_url, config=config)

    @contextmanager
    def _errors(self, action: str, name: str = "") -> Iterator[None]:
        """Translate botocore's errors by their type and status."""
        where = f"{self.url}/{name}" if name else self.url
        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            if code == "NoSuchBucket":
                raise StoreError(f"{where}: there is no bucket {self.bucket}") from error
            if code in {"NoSuchKey", "404"}:
                raise ArtifactError(f"{where} does not exist") from error
            if status in _REFUSED:
                raise StorageError(f"cannot {action} {where}: access refused ({code})") from error
            if status in _CONFLICT:
                raise StoreError(f"{where} was written by someone else meanwhile") from error
            raise StorageError(
                f"cannot {action} {where}: S3 answered {status} {code} {ATTEMPTS} times"
            ) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise StorageError(f"cannot {action} {where}: no AWS credentials found") from error
        except BotoCoreError as error:
            raise StorageError(f"cannot {action} {where}: {error}") from error

    def _key(self, name: str) -> dict[str, Any]:
        return {"Bucket": self.bucket, "Key": self.prefix + name}

    def read(self, name: str) -> bytes:
        """The document `name`."""
        for attempt in range(ATTEMPTS):
            with self._errors("read", name):
                try:
                    return self._s3.get_object(**self._key(name))["Body"].read()
                except (ResponseStreamingError, HTTPClientError):
                    if attempt == ATTEMPTS - 1:
                        raise
            _pause(attempt)
        raise AssertionError("unreachable")

    def create(self, name: str, data: bytes) -> None:
        """Make the document `name`, or find it there with the same content."""
        with self._errors("write", name):
            try:
                self._put(name, data, IfNoneMatch="*")
            except ClientError as error:
                if not _is_conflict(error):
                    raise
                if self.read(name) != data:
                    raise StoreError(
                        f"{self.url}/{name} exists already with other content"
                    ) from None

    def replace(self, name: str, data: bytes) -> None:
        """Make or overwrite the document `name`."""
        with self._errors("write", name):
            self._put(name, data)

    def _put(self, name: str, data: bytes, **conditions: Any) -> None:
        self._s3.put_object(**self._key(name), Body=data, ChecksumCRC32=_crc32(data), **conditions)

    def delete(self, name: str) -> None:
        """Remove `name`, if it is there."""
        with self._errors("delete", name):
            self._s3.delete_object(**self._key(name))

    def list(self, prefix: str) -> list[StoredObject]:
        """All that lies under `prefix`."""
        found = []
        with self._errors("list", prefix):
            pages = self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix
            )
            for page in pages:
                found += [
                    StoredObject(
                        each["Key"].removeprefix(self.prefix),
                        each["Size"],
                        each["LastModified"].timestamp(),
                    )
                    for each in page.get("Contents", ())
                ]
        return found

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder to make files in."""
        with tempfile.TemporaryDirectory(prefix="erless-") as folder:
            yield Path(folder)

    def adopt(self, staged: Path, blob: Blob, counter: Counter) -> None:
        """Keep `staged` under the name of `blob`."""
        with self._errors("write", blob.name):
            if self._has(blob):
                counter.advance(blob.size_bytes)
            elif blob.size_bytes <= PART_BYTES:
                with os_errors(staged, "read"):
                    self._put(blob.name, staged.read_bytes(), Metadata={"sha256": blob.sha256})
                counter.advance(blob.size_bytes)
            else:
                self._upload(staged, blob, counter)
        staged.unlink()

    def _has(self, blob: Blob) -> bool:
        """Whether the blob is there, in full size and as it was written."""
        try:
            head = self._s3.head_object(**self._key(blob.name))
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                self._s3.head_bucket(Bucket=self.bucket)  # tells a missing bucket from a key
                return False
            raise
        whole = head["ContentLength"] == blob.size_bytes
        return whole and head.get("Metadata", {}).get("sha256") == blob.sha256

    def _upload(self, path: Path, blob: Blob, counter: Counter) -> None:
        """Send the parts that are not there yet, in parallel, then complete the upload."""
        part_bytes = max(PART_BYTES, -(-blob.size_bytes // MAX_PARTS))
        upload = self._open_upload(blob)
        parts = _Parts(self, path, blob, upload, self._sent(blob, upload), part_bytes, counter)
        try:
            done = parts.send()
            self._s3.complete_multipart_upload(
                **self._key(blob.name), UploadId=upload, MultipartUpload={"Parts": done}
            )
        except ClientError as error:
            # another packer, sending the same bytes, may have completed the same upload
            if error.response["Error"]["Code"] != "NoSuchUpload" or not self._has(blob):
                raise

    def _open_upload(self, blob: Blob) -> str:
        """An upload of this blob that was cut off, or a new one."""
        key = self.prefix + blob.name
        pages = self._s3.get_paginator("list_multipart_uploads").paginate(
            Bucket=self.bucket, Prefix=key
        )
        open_uploads = [
            each for page in pages for each in page.get("Uploads", ()) if each["Key"] == key
        ]
        if open_uploads:
            return max(open_uploads, key=lambda each: each["Initiated"])["UploadId"]
        created = self._s3.create_multipart_upload(
            **self._key(blob.name), ChecksumAlgorithm="CRC32", Metadata={"sha256": blob.sha256}
        )
        return created["UploadId"]

    def _sent(self, blob: Blob, upload: str) -> dict[int, dict[str, Any]]:
        """Parts that are there already, by number."""
        pages = self._s3.get_paginator("list_parts").paginate(
            **self._key(blob.name), UploadId=upload
        )
        return {each["PartNumber"]: dict(each) for page in pages for each in page.get("Parts", ())}

    def fetch(self, blob: Blob, target: Path, counter: Counter) -> None:
        """Copy `blob` to `target` and compare its content."""
        with os_errors(target):
            descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            with os_errors(target):
                if blob.size_bytes:
                    os.posix_fallocate(descriptor, 0, blob.size_bytes)  # full disks fail here
            self._ranges(blob, descriptor, counter)
            with os_errors(target):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def check(self, blob: Blob, counter: Counter) -> None:
        """Read `blob` whole and compare its content."""
        self._ranges(blob, None, counter)

    def _ranges(self, blob: Blob, descriptor: int | None, counter: Counter) -> None:
        """Read the blob by ranges in parallel, in order past sha256, and into `descriptor`."""
        state = hashlib.sha256()
        begins = iter(range(0, blob.size_bytes, PART_BYTES))
        with ThreadPoolExecutor(THREADS) as pool:
            pending: list[Future[bytearray]] = []

            def submit() -> None:
                begin = next(begins, None)
                if begin is not None:
                    end = min(begin + PART_BYTES, blob.size_bytes)
                    pending.append(pool.submit(self._range, blob, begin, end, descriptor, stop))

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
                f"{self.url}/{blob.name}: altered: sha256 {state.hexdigest()}, "
                f"expected {blob.sha256}"
            )

    def _range(
        self, blob: Blob, begin: int, end: int, descriptor: int | None, stop: threading.Event
    ) -> bytearray:
        """Bytes `begin` … `end` - 1, taken up again where a connection broke."""
        data = bytearray(end - begin)
        view = memoryview(data)
        got = attempt = 0
        while got < len(data):
            if stop.is_set():
                return data
            before = got
            with self._errors("read", blob.name):
                try:
                    got = self._read_into(view, blob, begin, got)
                except (ResponseStreamingError, HTTPClientError):
                    if attempt >= ATTEMPTS - 1:
                        raise
            if got < len(data):
                attempt = 0 if got > before else attempt + 1
                if attempt >= ATTEMPTS:
                    raise StorageError(
                        f"{self.url}/{blob.name}: no bytes at offset {begin + got:,} in "
                        f"{ATTEMPTS} attempts"
                    )
                _pause(attempt)
        if descriptor is not None:
            with os_errors(Path(blob.name)):
                os.pwrite(descriptor, data, begin)
        return data

    def _read_into(self, view: memoryview, blob: Blob, begin: int, got: int) -> int:
        """One GET from `begin + got` on; says how far it came."""
        answer = self._s3.get_object(
            **self._key(blob.name), Range=f"bytes={begin + got}-{begin + len(view) - 1}"
        )
        total = int(answer.get("ContentRange", "/0").rpartition("/")[2])
        if total != blob.size_bytes:
            answer["Body"].close()
            raise ArtifactError(
                f"{self.url}/{blob.name}: {total:,} bytes, expected {blob.size_bytes:,}: "
                "truncated or altered"
            )
        with suppress(ResponseStreamingError, HTTPClientError), answer["Body"] as body:
            while chunk := body.read(min(READ_BYTES, len(view) - got)):
                view[got : got + len(chunk)] = chunk
                got += len(chunk)
        return got

    def sweep(self, before_s: float) -> int:
        """Remove what stopped writers left."""
        swept = 0
        with self._errors("delete"):
            pages = self._s3.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=self.prefix
            )
            for page in pages:
                for each in page.get("Uploads", ()):
                    if each["Initiated"].timestamp() < before_s:
                        self._s3.abort_multipart_upload(
                            Bucket=self.bucket, Key=each["Key"], UploadId=each["UploadId"]
                        )
                        swept += 1
        return swept

    @contextmanager
    def held(self, *, exclusive: bool) -> Iterator[None]:
        """S3 has no locks: `prune` spares what is younger than its grace period instead."""
        yield


class _Parts:
    """The parts of one multipart upload."""

    def __init__(
        self,
        store: S3Store,
        path: Path,
        blob: Blob,
        upload: str,
        sent: dict[int, dict[str, Any]],
        part_bytes: int,
        counter: Counter,
    ) -> None:
        self._store, self._path, self._blob, self._upload = store, path, blob, upload
        self._sent, self._part_bytes, self._counter = sent, part_bytes, counter
        self._stop = threading.Event()

    def send(self) -> list[Any]:
        """Send all that is missing; returns what completes the upload."""
        count = -(-self._blob.size_bytes // self._part_bytes)
        with ThreadPoolExecutor(THREADS) as pool:
            futures = [pool.submit(self._part, number) for number in range(1, count + 1)]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                self._stop.set()  # an error, or Ctrl-C: the rest need not be sent
                failed = [each for each in futures if each.done() and each.exception()]
                if failed:
                    pool.shutdown(wait=True, cancel_futures=True)
                    failed[0].result()
        return [each.result() for each in futures]

    def _part(self, number: int) -> dict[str, Any]:
        begin = (number - 1) * self._part_bytes
        size = min(self._part_bytes, self._blob.size_bytes - begin)
        if self._stop.is_set():
            return {}
        with os_errors(self._path, "read"), self._path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, begin)
        checksum = _crc32(data)
        tag = self._tag(number, data, checksum)
        if tag is None:
            answer = self._store._s3.upload_part(
                **self._store._key(self._blob.name),
                UploadId=self._upload,
                PartNumber=number,
                Body=data,
                ChecksumCRC32=checksum,
            )
            if answer.get("ChecksumCRC32", checksum) != checksum:
                raise StorageError(
                    f"{self._store.url}/{self._blob.name}: part {number} arrived altered: CRC-32 "
                    f"{answer['ChecksumCRC32']}, sent {checksum}"
                )
            tag = answer["ETag"]
        self._counter.advance(size)
        return {"PartNumber": number, "ETag": tag, "ChecksumCRC32": checksum}

    def _tag(self, number: int, data: bytes, checksum: str) -> str | None:
        """The ETag of a part that is there already and holds `data`, or None."""
        part = self._sent.get(number)
        if part is None or part["Size"] != len(data):
            return None
        tag = str(part["ETag"])
        if "ChecksumCRC32" in part:
            return tag if part["ChecksumCRC32"] == checksum else None
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return tag if tag.strip('"') == digest else None


def _crc32(data: bytes) -> str:
    """CRC-32 as S3 writes it: base64 of big-endian bytes."""
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def _is_conflict(error: ClientError) -> bool:
    return error.response["ResponseMetadata"]["HTTPStatusCode"] in _CONFLICT


def _pause(attempt: int) -> None:
    """Wait before attempt + 1, longer each time, never in step with others."""
    time.sleep(min(MAX_BACKOFF_S, BACKOFF_S * 2**attempt) * random.uniform(0.5, 1))  # noqa: S311
