"""One Spark on this machine for all tests: starting takes longer than they do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from erless.profile.spark.session import SparkOptions, spark_session

LOCAL = SparkOptions("local[2]", {"spark.sql.shuffle.partitions": "2"})


@pytest.fixture(scope="package")
def one_session() -> Iterator[None]:
    """A session that all tests join."""
    with spark_session(LOCAL):
        yield
