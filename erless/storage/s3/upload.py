"""Sending a blob: one multipart upload, parts in parallel, taken up where it was cut off."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from erless.errors import BucketError
from erless.storage.atomic import os_errors
from erless.storage.s3.bucket import PART_BYTES, THREADS, S3Bucket, crc32
from erless.storage.store import Blob, Counter

__all__ = ["upload"]

MAX_PARTS = 10_000  # S3's limit


def upload(bucket: S3Bucket, path: Path, blob: Blob, counter: Counter) -> None:
    """Send the parts that are not there yet, in parallel, then complete the upload."""
    part_bytes = max(PART_BYTES, -(-blob.size_bytes // MAX_PARTS))
    ident = _open_upload(bucket, blob)
    parts = _Parts(bucket, path, blob, ident, _sent(bucket, blob, ident), part_bytes, counter)
    try:
        done = parts.send()
        bucket.client.complete_multipart_upload(
            **bucket.key(blob.name), UploadId=ident, MultipartUpload={"Parts": done}
        )
    except ClientError as error:
        # another packer, sending the same bytes, may have completed the same upload
        if error.response["Error"]["Code"] != "NoSuchUpload" or not bucket.has(blob):
            raise


def _open_upload(bucket: S3Bucket, blob: Blob) -> str:
    """An upload of this blob that was cut off, or a new one."""
    key = bucket.prefix + blob.name
    pages = bucket.client.get_paginator("list_multipart_uploads").paginate(
        Bucket=bucket.name, Prefix=key
    )
    open_uploads = [
        begun for page in pages for begun in page.get("Uploads", ()) if begun["Key"] == key
    ]
    if open_uploads:
        return max(open_uploads, key=lambda begun: begun["Initiated"])["UploadId"]
    created = bucket.client.create_multipart_upload(
        **bucket.key(blob.name), ChecksumAlgorithm="CRC32", Metadata={"sha256": blob.sha256}
    )
    return created["UploadId"]


def _sent(bucket: S3Bucket, blob: Blob, ident: str) -> dict[int, dict[str, Any]]:
    """Parts that are there already, by number."""
    pages = bucket.client.get_paginator("list_parts").paginate(
        **bucket.key(blob.name), UploadId=ident
    )
    return {part["PartNumber"]: dict(part) for page in pages for part in page.get("Parts", ())}


class _Parts:
    """The parts of one multipart upload."""

    def __init__(
        self,
        bucket: S3Bucket,
        path: Path,
        blob: Blob,
        ident: str,
        sent: dict[int, dict[str, Any]],
        part_bytes: int,
        counter: Counter,
    ) -> None:
        self._bucket, self._path, self._blob, self._ident = bucket, path, blob, ident
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
                failed = [future for future in futures if future.done() and future.exception()]
                if failed:
                    pool.shutdown(wait=True, cancel_futures=True)
                    failed[0].result()
        return [future.result() for future in futures]

    def _part(self, number: int) -> dict[str, Any]:
        begin = (number - 1) * self._part_bytes
        size = min(self._part_bytes, self._blob.size_bytes - begin)
        if self._stop.is_set():
            return {}
        with os_errors(self._path, "read"), self._path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, begin)
        checksum = crc32(data)
        tag = self._tag(number, data, checksum)
        if tag is None:
            answer = self._bucket.client.upload_part(
                **self._bucket.key(self._blob.name),
                UploadId=self._ident,
                PartNumber=number,
                Body=data,
                ChecksumCRC32=checksum,
            )
            if answer.get("ChecksumCRC32", checksum) != checksum:
                raise BucketError(
                    f"{self._bucket.url}/{self._blob.name}: part {number} arrived altered: CRC-32 "
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
