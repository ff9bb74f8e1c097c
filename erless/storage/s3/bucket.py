"""One bucket's prefix as boto3 sees it: the client, keys, and errors in our words."""

from __future__ import annotations

import base64
import random
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from erless.errors import ArtifactError, BucketError, StoreError
from erless.outbound import ca_bundle, proxy_for
from erless.storage.store import Blob

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["ATTEMPTS", "PART_BYTES", "THREADS", "S3Bucket", "crc32", "is_conflict", "pause"]

PART_BYTES = 8 << 20  # 16 and 32 MiB moved the same bytes per second, and hold more memory
THREADS = 8
ATTEMPTS = 8  # per request, and per stretch of a body without a byte of progress
BACKOFF_S, MAX_BACKOFF_S = 0.1, 5.0
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 20
_REFUSED = {401, 403}
_CONFLICT = {409, 412}


class S3Bucket:
    """What lies under `s3://bucket/prefix`.

    Args:
        url: `s3://bucket/prefix`.
        endpoint_url: of an S3 API other than AWS's (moto, MinIO).
        read_timeout_s: a connection silent for this long counts as broken.
        attempts: per request, the first one counted.

    Raises:
        StoreError: the URL names no bucket.
        BucketError: no credentials.
    """

    def __init__(
        self,
        url: str,
        endpoint_url: str | None = None,
        *,
        read_timeout_s: float = READ_TIMEOUT_S,
        attempts: int = ATTEMPTS,
    ) -> None:
        self.name, _, prefix = url.removeprefix("s3://").partition("/")
        if not self.name:
            raise StoreError(f"{url} names no bucket")
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.url = f"s3://{self.name}/{self.prefix}".rstrip("/")
        self.attempts = attempts
        config = Config(
            retries={"mode": "standard", "max_attempts": attempts},
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=read_timeout_s,
            max_pool_connections=2 * THREADS,
            tcp_keepalive=True,
            request_checksum_calculation="when_required",  # parts carry their own
            response_checksum_validation="when_required",  # sha256 covers the whole
        )
        proxy_for(endpoint_url or "https://s3.amazonaws.com")  # refuse what boto3 cannot use
        with self.errors("reach"):
            self.client: S3Client = boto3.client(
                "s3", endpoint_url=endpoint_url, config=config, verify=ca_bundle()
            )

    @contextmanager
    def errors(self, action: str, name: str = "") -> Iterator[None]:
        """Translate botocore's errors by their type and status."""
        where = f"{self.url}/{name}" if name else self.url
        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            # an answer to HEAD has no body, so no code but the status
            if code == "NoSuchBucket" or (status == 404 and error.operation_name == "HeadBucket"):
                raise StoreError(f"{where}: there is no bucket {self.name}") from error
            if code in {"NoSuchKey", "404"}:
                raise ArtifactError(f"{where} does not exist") from error
            if status in _REFUSED:
                raise BucketError(f"cannot {action} {where}: access refused ({code})") from error
            if status in _CONFLICT:
                raise StoreError(f"{where} was written by someone else meanwhile") from error
            times = f" {self.attempts} times" if status >= 500 or status == 429 else ""
            raise BucketError(
                f"cannot {action} {where}: S3 answered {status} {code}{times}"
            ) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise BucketError(f"cannot {action} {where}: no AWS credentials found") from error
        except BotoCoreError as error:
            raise BucketError(f"cannot {action} {where}: {error}") from error

    def key(self, name: str) -> dict[str, Any]:
        """Bucket and key of the object `name`, as boto3 takes them."""
        return {"Bucket": self.name, "Key": self.prefix + name}

    def has(self, blob: Blob) -> bool:
        """Whether the blob is there, in full size and as it was written."""
        try:
            head = self.client.head_object(**self.key(blob.name))
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                self.client.head_bucket(Bucket=self.name)  # tells a missing bucket from a key
                return False
            raise
        whole = head["ContentLength"] == blob.size_bytes
        return whole and head.get("Metadata", {}).get("sha256") == blob.sha256


def crc32(data: bytes) -> str:
    """CRC-32 as S3 writes it: base64 of big-endian bytes."""
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def is_conflict(error: ClientError) -> bool:
    """Whether a conditional write lost."""
    return error.response["ResponseMetadata"]["HTTPStatusCode"] in _CONFLICT


def pause(attempt: int) -> None:
    """Wait before attempt + 1, longer each time, never in step with others."""
    time.sleep(min(MAX_BACKOFF_S, BACKOFF_S * 2**attempt) * random.uniform(0.5, 1))  # noqa: S311
