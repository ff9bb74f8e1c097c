"""A real S3 API for tests: moto's server on loopback, a new bucket for each test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["S3", "s3_server"]

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class S3(NamedTuple):
    """A bucket of one's own; processes started from the test reach it too."""

    endpoint_url: str
    bucket: str

    @property
    def url(self) -> str:
        """Where a store may go."""
        return f"s3://{self.bucket}/releases"

    def client(self) -> S3Client:
        """A plain boto3 client of the server."""
        import boto3

        return boto3.client("s3", endpoint_url=self.endpoint_url)


@contextmanager
def s3_server() -> Iterator[Iterator[S3]]:
    """Start the server; yields new buckets. Credentials are set in this process' environment."""
    from moto.server import ThreadedMotoServer

    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield (_new_bucket(f"http://{host}:{port}", number) for number in itertools.count())
    finally:
        server.stop()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _new_bucket(endpoint_url: str, number: int) -> S3:
    location = S3(endpoint_url, f"bucket-{number}")
    location.client().create_bucket(Bucket=location.bucket)
    return location
