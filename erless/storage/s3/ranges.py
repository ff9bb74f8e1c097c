"""One object of a bucket, read in ranges: all of one version, whoever writes it meanwhile."""

from __future__ import annotations

import threading

from erless.storage.s3.bucket import THREADS, S3Bucket
from erless.storage.s3.download import read_range

__all__ = ["S3Ranges"]


class S3Ranges:
    """The object at `s3://bucket/key`.

    Raises:
        ArtifactError: there is no such object.
        BucketError: the service refused.
    """

    parallel = THREADS

    def __init__(self, url: str, endpoint_url: str | None = None) -> None:
        folder, _, self._key = url.rpartition("/")
        self._bucket = S3Bucket(folder, endpoint_url)
        self.name = url
        self._stop = threading.Event()
        with self._bucket.errors("read", self._key):
            head = self._bucket.client.head_object(**self._bucket.key(self._key))
        self.size_bytes, self._version = head["ContentLength"], head["ETag"]

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `offset` on."""
        read_range(
            self._bucket,
            self._key,
            self.size_bytes,
            offset,
            view,
            self._stop,
            IfMatch=self._version,
        )

    def close(self) -> None:
        """Give up what waits."""
        self._stop.set()
