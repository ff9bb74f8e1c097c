"""The fast lane and the general way say and understand the same."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from erless.dlrm.rows import Bucket
from erless.serve.client import CallError, Endpoint, Reply
from erless.serve.lane import ANSWER_HEAD, REQUEST_HEAD
from erless.serve.remote import RemoteShard
from erless.serve.lane import ask_forms
from erless.serve.wire import TensorSpec, decode
from tests.serve.functions import Fleet

DIGEST = "ab" * 32


def requested(bucket: Bucket, halves: bool, trace: bytes | None = None) -> bytes:
    async def write() -> bytes:
        endpoint = Endpoint("http://10.0.0.1:8080", 10, lambda: None)
        remote = RemoteShard(1, "hot", DIGEST, endpoint, halves=halves, keen=True)
        return b"".join(remote.request(bucket, 1234, trace))

    return asyncio.run(write())


@given(
    ids=st.lists(st.integers(0, 2**31 - 1), max_size=50),
    samples=st.integers(1, 400),
    dtype=st.sampled_from([np.int32, np.int64]),
    halves=st.booleans(),
    traced=st.booleans(),
)
def test_a_gateways_request_fits_the_lane_and_means_the_same(
    ids: list[int], samples: int, dtype: type, halves: bool, traced: bool
) -> None:
    values = np.array(ids, dtype)
    lengths = np.arange(3 * samples, dtype=np.int32).reshape(3, samples)
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" if traced else None
    message = requested(Bucket(values, lengths, None), halves, trace)
    head = REQUEST_HEAD.match(message)
    assert head is not None
    assert (trace or b"erless") in head.group(0)
    path, announced, size, left_ms = head.groups()
    body = message[head.end() :]
    assert (path, int(size), left_ms) == (b"/v2/models/shard/infer", len(body), b"1234")
    assert (head.end() + int(announced)) % 16 == 0
    asked = ASKED.fullmatch(body[: int(announced)])
    assert asked is not None
    wide, count, id_bytes, tables, batch, bag_bytes, half = asked.groups()
    assert (int(wide), int(count), int(id_bytes)) == (values.itemsize * 8, len(ids), values.nbytes)
    assert (int(tables), int(batch), int(bag_bytes)) == (3, samples, lengths.nbytes)
    assert (half is not None) == halves
    general = decode(
        memoryview(body),
        {b"inference-header-content-length": announced},
        (
            TensorSpec("values", ("INT64", "INT32"), (-1,)),
            TensorSpec("lengths", ("INT32",), (3, -1)),
        ),
    )
    assert np.array_equal(general.inputs["values"], values)
    assert np.array_equal(general.inputs["lengths"], lengths)
    assert general.parameters.get("half", False) is halves
    assert general.parameters["packed"] is True
    assert general.binary
    assert general.outputs == ("partial",)


def test_weights_take_the_general_way() -> None:
    bucket = Bucket(np.array([1]), np.array([[1]], np.int32), np.array([2.0], np.float32))
    message = requested(bucket, False)
    head = REQUEST_HEAD.match(message)
    assert head is not None
    assert ASKED.fullmatch(message[head.end() : head.end() + int(head.group(2))]) is None


@pytest.mark.parametrize("halves", [False, True])
def test_a_function_answers_both_ways_alike(fleet: Fleet, halves: bool) -> None:
    shard = fleet.made.release.shard("frozen")
    process = fleet.shards["frozen"]
    tables = len(shard.tables)
    stored = stored_ids(fleet)
    lengths = np.zeros((tables, 4), np.int32)
    lengths[0] = [3, 0, 2, 0]
    values = np.array(stored[:5], np.int32)

    async def ask() -> tuple[np.ndarray, bytes]:
        endpoint = Endpoint(process.url, 10, lambda: None)
        remote = RemoteShard(0, "frozen", shard.digest, endpoint, halves=halves, keen=True)
        done: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()

        def answered(result: Reply | CallError) -> None:
            assert isinstance(result, Reply)
            done.set_result(np.array(remote.read(result, 2 * 8, halves)))

        bucket = Bucket(values, lengths, None)
        endpoint.send(remote.request(bucket, 5000, None), answered)
        found = await asyncio.wait_for(done, 60)
        reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
        writer.write(b"".join(bytes(each) for each in remote.request(bucket, 5000, None)))
        raw = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        writer.close()
        endpoint.close()
        return found, raw

    fast, head = uvloop.run(ask())
    assert ANSWER_HEAD.fullmatch(head)
    request = {
        "inputs": [
            {"name": "values", "datatype": "INT64", "shape": [5], "data": values.tolist()},
            {"name": "lengths", "datatype": "INT32", "shape": [tables, 4],
             "data": lengths.tolist()},
        ],
        "parameters": {"packed": True, "half": halves},
    }  # fmt: skip
    status, answer = process.post("/v2/models/shard/infer", json.dumps(request).encode())
    assert status == 200
    assert answer["outputs"][0]["datatype"] == ("FP16" if halves else "FP32")
    assert np.array_equal(np.array(answer["outputs"][0]["data"], fast.dtype), fast)


def stored_ids(fleet: Fleet) -> list[int]:
    """Rows of the first table that shard `frozen` stores."""
    from erless.serve.load import Source, open_shard

    digest = fleet.made.release.shard("frozen").digest
    with open_shard(Source(fleet.made.store), digest) as opened:
        return opened.shard.slices[0].index.ids(0, 5).tolist()
