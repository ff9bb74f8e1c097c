"""Folders of a prefix: what others write there and we read, one level of names at a time."""

from __future__ import annotations

from pathlib import Path

from erless.storage.atomic import os_errors, staged_file
from erless.storage.s3.bucket import S3Bucket

__all__ = ["BucketFolders"]

DELETED_AT_ONCE = 1000  # keys of one DeleteObjects request


class BucketFolders:
    """The folders under `s3://bucket/prefix`: names up to the first slash.

    Each method raises ArtifactError where an object is missing, BucketError where S3 refuses.

    Args:
        url: `s3://bucket/prefix`.
        endpoint_url: of an S3 API other than AWS's.

    Raises:
        StoreError: the URL names no bucket.
        BucketError: no credentials.
    """

    def __init__(self, url: str, endpoint_url: str | None = None) -> None:
        self._bucket = S3Bucket(url, endpoint_url)
        self.url = self._bucket.url

    def names(self) -> list[str]:
        """Names of all folders, sorted."""
        names = []
        with self._bucket.errors("list"):
            pages = self._bucket.client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket.name, Prefix=self._bucket.prefix, Delimiter="/"
            )
            for page in pages:
                names += [entry["Prefix"] for entry in page.get("CommonPrefixes", ())]
        return sorted(name.removeprefix(self._bucket.prefix).rstrip("/") for name in names)

    def files(self, folder: str) -> list[str]:
        """Names of all objects in a folder, however deep, relative to it; sorted."""
        whole = f"{self._bucket.prefix}{folder}/"
        keys = []
        with self._bucket.errors("list", folder):
            pages = self._bucket.client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket.name, Prefix=whole
            )
            for page in pages:
                keys += [entry["Key"] for entry in page.get("Contents", ())]
        return sorted(key.removeprefix(whole) for key in keys if key != whole)

    def fetch(self, folder: str, file: str, target: Path) -> None:
        """Copy an object to `target`, which appears when it is whole."""
        name = f"{folder}/{file}"
        with staged_file(target) as stage, self._bucket.errors("read", name), os_errors(stage):
            self._bucket.client.download_file(
                self._bucket.name, self._bucket.prefix + name, str(stage)
            )

    def write(self, folder: str, file: str, data: bytes) -> None:
        """Make or overwrite an object."""
        name = f"{folder}/{file}"
        with self._bucket.errors("write", name):
            self._bucket.client.put_object(**self._bucket.key(name), Body=data)

    def move(self, folder: str, target: str) -> None:
        """Copy all objects of a folder into another, then remove them together."""
        files = self.files(folder)
        for file in files:
            with self._bucket.errors("write", f"{target}/{file}"):
                self._bucket.client.copy(
                    self._bucket.key(f"{folder}/{file}"),  # type: ignore[arg-type]
                    self._bucket.name,
                    f"{self._bucket.prefix}{target}/{file}",
                )
        for begin in range(0, len(files), DELETED_AT_ONCE):
            keys = files[begin : begin + DELETED_AT_ONCE]
            with self._bucket.errors("delete", folder):
                self._bucket.client.delete_objects(
                    Bucket=self._bucket.name,
                    Delete={
                        "Objects": [
                            {"Key": f"{self._bucket.prefix}{folder}/{file}"} for file in keys
                        ],
                        "Quiet": True,
                    },
                )
