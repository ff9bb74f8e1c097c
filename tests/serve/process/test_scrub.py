"""Files that change under a running function: never a wrong answer, always a reason."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from erless.dlrm.reference import Monolith
from erless.serve.files import Source, open_shard
from tests.releases import Made, random_query
from tests.serve.functions import Fleet, Function, body_of, predict

INFER = "/v2/models/small/infer"


@pytest.fixture
def made(packed_release: Made, tmp_path: Path) -> Made:
    """A release of the test's own."""
    store = tmp_path / "store"
    shutil.copytree(packed_release.store, store)
    return packed_release._replace(store=str(store))


@pytest.fixture
def running(made: Made, tmp_path: Path) -> Iterator[Fleet]:
    every = {"ERLESS_SCRUB_BYTES_S": "1e12"}
    with Fleet(made, tmp_path / "logs", every=every) as fleet:
        yield fleet


def rows_of(made: Made, shard: str) -> Path:
    """The file of the first table in `shard`."""
    with open_shard(Source(made.store), made.release.shard(shard).digest) as opened:
        return opened.mapped[0].path


def not_ready(function: Function) -> str:
    """Why the function is not ready; waits until it is not."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        status, text = function.get("/v2/health/ready")
        if status == 503:
            answer = json.loads(text)
            assert answer["state"] == "failed"
            return str(answer["error"])
        time.sleep(0.05)
    raise AssertionError("it is ready still")


def overwrite(path: Path, offset: int, data: bytes) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
        file.write(data)


def test_rows_that_are_overwritten_are_not_served(running: Fleet, made: Made) -> None:
    path = rows_of(made, "hot")
    overwrite(path, -4, b"\x00\x00\x80\x3f")
    assert not_ready(running.shards["hot"]) == f"not ready: {path} was changed while it was served"
    status, answer = running.gateway.post(INFER, body_of(random_query(made.model, 3, 8)))
    assert status == 503
    assert answer["error"] == f"shard hot has failed: {path} was changed while it was served"
    events = running.shards["hot"].events
    assert any(event["level"] == "error" and str(path) in event["message"] for event in events)


def test_a_file_that_is_cut_short_is_told_before_it_is_touched(running: Fleet, made: Made) -> None:
    path = rows_of(made, "cold")
    size = path.stat().st_size
    path.chmod(0o600)
    os.truncate(path, size - 4)
    assert f"{path} has {size - 4:,} bytes, expected {size:,}" in not_ready(running.shards["cold"])


def test_a_file_that_is_replaced_or_removed_is_served_on(running: Fleet, made: Made) -> None:
    path = rows_of(made, "hot")
    query = random_query(made.model, 4, 8)
    expected = Monolith.load(made.bundle).predict(query)
    path.rename(path.with_suffix(".old"))
    path.write_bytes(b"something else")
    time.sleep(2.5)
    np.testing.assert_allclose(predict(running.gateway, made, query), expected, rtol=1e-4)
    assert running.shards["hot"].get("/v2/health/ready")[0] == 200


def test_rows_that_are_not_numbers_are_our_fault(made: Made, tmp_path: Path) -> None:
    every = {"ERLESS_SCRUB_BYTES_S": "0"}
    with Fleet(made, tmp_path / "logs", every=every) as fleet:
        for name in fleet.shards:
            path = rows_of(made, name)
            with open_shard(Source(made.store), made.release.shard(name).digest) as opened:
                rows = opened.shard.slices[0].rows.tobytes()
            nothing = np.float32(np.nan).tobytes() * (len(rows) // 4)
            overwrite(path, path.read_bytes().index(rows), nothing)
        status, answer = fleet.gateway.post(INFER, body_of(random_query(made.model, 5, 8)))
    assert status == 500, answer
    assert (status, answer["error"]) == (
        500,
        "the rows of this query give numbers that are not finite",
    )
