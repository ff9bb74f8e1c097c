"""The fast lane and the general way say and understand the same."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import numpy as np
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from erless.dlrm._kernels import ANSWER_GENERAL, ANSWER_INCOMPLETE
from erless.dlrm.embedding import Combiner, EmbeddingShard, StoredSlice
from erless.dlrm.rows import Buckets, Routing, RowIndex
from erless.errors import QueryError
from erless.http.budget import MemoryBudget
from erless.http.client.endpoint import CallError, Endpoint, Reply
from erless.http.messages import Response, ServerLimits, aligned
from erless.http.server.state import ServerState
from erless.serve.gateway.remote import RemoteShard
from erless.serve.protocol.fast_lane import (
    answer_forms,
    head_forms,
    request_forms,
)
from erless.serve.protocol.infer import BINARY_TYPE, decode
from erless.serve.protocol.tensors import TensorSpec
from erless.specs.model import Pooling, TableSpec
from erless.specs.plan import Precision
from erless.specs.routes import TableRoute
from tests.serve.functions import Fleet

DIGEST = "ab" * 32
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
LONGEST_MS = 3_600_000
# The heads, written down once more.
REQUEST_HEAD = re.compile(
    rb"POST (/[!->@-~]*) HTTP/1\.1\r\nhost: [!-~]*\r\n"
    rb"content-type: application/octet-stream\r\n"
    rb"inference-header-content-length: (\d{1,9})\r\ncontent-length: (\d{1,9})\r\n"
    rb"erless-deadline-ms: (\d{1,9})\r\n(?:traceparent: [0-9a-f\-]{1,128}\r\n)?\r\n"
)
ANSWER_HEAD = re.compile(
    rb"HTTP/1\.1 200 OK\r\ncontent-type: application/octet-stream\r\n"
    rb"content-length: (\d{1,9})\r\ndate: [ -~]*\r\n"
    rb"inference-header-content-length: (\d{1,9})\r\n(?:erless-up-ms: (\d{1,9})\r\n)?\r\n"
)


class Setting:
    """Two shards of three tables; shard 1 is the remote one."""

    def __init__(
        self,
        rows: int = 1000,
        dim: int = 8,
        *,
        pooling: Pooling = Pooling.SUM,
        float16_partials: bool = False,
    ) -> None:
        self.float16_partials = float16_partials
        generator = self.generator = np.random.default_rng(rows)
        self.tables = [
            TableSpec(name=f"t{i}", rows=rows, dim=dim, pooling=pooling) for i in range(3)
        ]
        held = [0, 2]
        self.routes = [generator.integers(0, 2, rows).astype(np.uint8) for _ in self.tables]
        self.routes[1][:] = 0
        self.routing = self.routed(self.routes)
        self.combiner = Combiner(self.tables, [[0, 1, 2], held])
        self.shard = EmbeddingShard([self.slice(t) for t in held])
        heads, json32, json16 = answer_forms(DIGEST.encode())
        self.fast_path = self.shard.fast_path(
            head_forms(b"shard"), request_forms(), (*heads, json32, json16), 64, 1 << 20, LONGEST_MS
        )

    def routed(self, routes: list[np.ndarray]) -> Routing:
        return Routing(self.tables, [TableRoute.of(each) for each in routes], [[0, 1, 2], [0, 2]])

    def slice(self, table: int) -> StoredSlice:
        spec = self.tables[table]
        index = RowIndex.build(spec.rows, np.flatnonzero(self.routes[table] == 1))
        rows = self.generator.standard_normal((index.stored, spec.dim)).astype(np.float32)
        return StoredSlice(spec, Precision.FP32, rows, index)

    def query(
        self, batch: int, dtype: type[np.signedinteger] = np.int32
    ) -> tuple[np.ndarray, np.ndarray]:
        lengths = self.generator.integers(0, 9, (3, batch)).astype(np.int32)
        lengths[0, 0] += 9
        values = self.generator.integers(0, self.tables[0].rows, int(lengths.sum())).astype(dtype)
        values[0] = int(np.flatnonzero(self.routes[0] == 1)[0])
        return values, lengths

    def remote(self, authority: str = "10.0.0.1:8080") -> RemoteShard:
        """Call on an event loop."""
        endpoint = Endpoint(f"http://{authority}", 10, lambda: None)
        return RemoteShard(
            1,
            "hot",
            DIGEST,
            endpoint,
            places=self.combiner.places(1),
            float16_partials=self.float16_partials,
        )

    def requested(self, buckets: Buckets, trace: bytes | None = None, **more: Any) -> bytes:
        async def write() -> bytes:
            return b"".join(self.remote(**more).request(buckets, 1234, trace))

        return asyncio.run(write())

    def pooled(self, buckets: Buckets, partial: np.ndarray) -> np.ndarray:
        out = self.combiner.begin(buckets.batch)
        self.combiner.add(out, 1, partial, buckets[1].lengths, packed=True)
        return out


@given(
    batch=st.integers(1, 40),
    dtype=st.sampled_from([np.int32, np.int64]),
    rows=st.sampled_from([50, 1000]),
    float16_partials=st.booleans(),
    traced=st.booleans(),
)
def test_a_gateways_request_fits_the_lane_and_means_the_same(
    batch: int, dtype: type, rows: int, float16_partials: bool, traced: bool
) -> None:
    setting = Setting(rows, float16_partials=float16_partials)
    buckets = setting.routing.bucketize(*setting.query(batch, dtype))
    message = setting.requested(buckets, TRACE if traced else None)
    head = REQUEST_HEAD.match(message)
    assert head is not None
    assert (TRACE if traced else b"erless") in head.group(0)
    path, announced, size, left_ms = head.groups()
    body = message[head.end() :]
    assert (path, int(size), left_ms) == (b"/v2/models/shard/infer", len(body), b"1234")
    assert (head.end() + int(announced)) % 16 == 0
    general = decode(
        memoryview(body),
        {b"inference-header-content-length": announced},
        (
            TensorSpec("values", ("INT64", "INT32"), (-1,)),
            TensorSpec("lengths", ("INT32",), (2, -1)),
        ),
        (TensorSpec("partial", ("FP32",), (-1,)),),
        frozenset({"packed", "half"}),
    )
    values, lengths, _ = buckets[1]
    assert np.array_equal(general.inputs["values"], values)
    assert np.array_equal(general.inputs["lengths"], lengths)
    assert general.parameters.get("half", False) is float16_partials
    assert general.parameters["packed"] is True
    assert general.binary
    assert general.outputs == ("partial",)
    # the function's end: with its head, behind other bytes, and without its head
    whole = setting.fast_path.answer(
        bytearray(b"1234" + message + b"POST"), 4, len(message) + 8, 0, b"now", -1
    )
    assert whole is not None
    assert whole[1:4] == (len(message) + 4, len(values), len(body))
    moved = aligned(len(body), int(announced))
    moved[:] = body
    bare = setting.fast_path.answer(moved, 0, len(body), int(announced), b"", -1)
    assert bare is not None
    assert whole[0].endswith(bare[0])
    assert (bare[4], bare[4] + bare[5]) == (bare[0].index(b"}]}") + 3, len(bare[0]))
    partial = setting.shard.pool_packed(values, lengths)
    assert (
        bare[0][bare[4] :]
        == partial.astype(np.float16 if float16_partials else np.float32).tobytes()
    )


@given(
    batch=st.integers(1, 40),
    float16_partials=st.booleans(),
    pooling=st.sampled_from([Pooling.SUM, Pooling.MEAN, Pooling.MAX]),
    up_ms=st.sampled_from([-1, 0, 77]),
    cut=st.integers(0, 10**6),
)
def test_a_functions_answer_is_added_up_as_the_general_way_does(
    batch: int, float16_partials: bool, pooling: Pooling, up_ms: int, cut: int
) -> None:
    setting = Setting(float16_partials=float16_partials, pooling=pooling)
    buckets = setting.routing.bucketize(*setting.query(batch))
    message = setting.requested(buckets)
    found = setting.fast_path.answer(
        message, 0, len(message), 0, b"Tue, 24 Nov 2026 00:00:00 GMT", up_ms
    )
    assert found is not None
    answer = found[0]
    expected = setting.pooled(buckets, setting.shard.pool_packed(*buckets[1][:2]))
    head = ANSWER_HEAD.fullmatch(answer[: answer.index(b"\r\n\r\n") + 4])
    assert head is not None

    async def take() -> None:
        remote = setting.remote()
        out = setting.combiner.begin(batch)
        nothing = out.copy()
        begin = cut % 7  # what lies in front of it was another's
        stop = begin + len(answer)
        room = bytearray(bytes(begin) + answer + bytes(10))
        for end, last in ((begin + cut % len(answer), False), (stop + 1, True)):
            code, at = remote.add_answer(buckets, room, begin, end, last, out)
            assert code in (ANSWER_INCOMPLETE, ANSWER_GENERAL)
            assert at == begin
        within = room[: stop - 1]  # has no room
        assert (
            remote.add_answer(buckets, within, begin, len(within), True, out)[0] == ANSWER_GENERAL
        )
        assert np.array_equal(out, nothing)
        known = up_ms if up_ms >= 0 else 2**31 - 1
        assert remote.add_answer(buckets, room, begin, stop, True, out) == (known, stop)
        again = setting.combiner.begin(batch)
        assert remote.add_answer(buckets, room, begin, stop + 10, False, again) == (known, stop)
        assert np.array_equal(out, again)
        np.testing.assert_allclose(
            out, expected, rtol=2e-3 if float16_partials else 1e-6, atol=1e-3
        )
        body = memoryview(answer)[head.end() :]
        reply = Reply(200, {b"inference-header-content-length": head.group(2)}, body, 0.1)
        general = setting.pooled(buckets, remote.partial(buckets, reply))
        assert np.array_equal(out, general)

    asyncio.run(take())


DAMAGE = {
    "another digest": (DIGEST.encode(), b"cd" * 32),
    "another output": (b'"partial"', b'"portion"'),
    "an error": (b"HTTP/1.1 200 OK", b"HTTP/1.1 500 OK"),
    "another type": (b"FP32", b"INT8"),
    "a leading zero": (b'"shape":[', b'"shape":[0'),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_an_answer_that_differs_takes_the_general_way(what: str) -> None:
    setting = Setting()
    buckets = setting.routing.bucketize(*setting.query(4))
    message = setting.requested(buckets)
    found = setting.fast_path.answer(message, 0, len(message), 0, b"now", -1)
    assert found is not None
    damaged = bytearray(found[0].replace(*DAMAGE[what], 1))

    async def take() -> int:
        out = setting.combiner.begin(4)
        code, _ = setting.remote().add_answer(buckets, damaged, 0, len(damaged), True, out)
        assert not out.any()
        return code

    assert asyncio.run(take()) in (
        ANSWER_GENERAL,
        ANSWER_INCOMPLETE if what == "a leading zero" else ANSWER_GENERAL,
    )


def test_the_answer_to_another_query_takes_the_general_way() -> None:
    setting = Setting()
    ours = setting.routing.bucketize(*setting.query(4))
    other = setting.routing.bucketize(*setting.query(40))
    message = setting.requested(other)
    found = setting.fast_path.answer(message, 0, len(message), 0, b"now", -1)
    assert found is not None

    async def take() -> int:
        buffer, out = bytearray(found[0]), setting.combiner.begin(4)
        return setting.remote().add_answer(ours, buffer, 0, len(buffer), True, out)[0]

    assert asyncio.run(take()) == ANSWER_GENERAL


REFUSED = {
    "cut short": lambda m: m[:-1],
    "another path": lambda m: m.replace(b"/shard/", b"/other/", 1),
    "another header": lambda m: m.replace(b"\r\n\r\n", b"\r\nx: 1\r\n\r\n", 1),
    "no time": lambda m: m.replace(b"deadline-ms: 1234", b"deadline-ms: 0000", 1),
    "too much time": lambda m: m.replace(b"deadline-ms: 1234", b"deadline-ms: 9999999999", 1),
    "another tensor": lambda m: m.replace(b'"values"', b'"valves"', 1),
    "another shape": lambda m: m.replace(b'"shape":[2,', b'"shape":[3,', 1),
    "a negative length": lambda m: m[:-4] + b"\xff\xff\xff\xff",
    "an absent row": lambda m: m,
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_request_that_differs_takes_the_general_way(what: str) -> None:
    setting = Setting()
    values, lengths = setting.query(4)
    if what == "an absent row":  # routed to the shard, which does not store it
        absent = int(np.flatnonzero(setting.routes[0] == 0)[0])
        setting.routes[0][absent] = 1
        setting.routing = setting.routed(setting.routes)
        values[0] = absent
    buckets = setting.routing.bucketize(values, lengths)
    message = bytearray(REFUSED[what](setting.requested(buckets)))
    assert setting.fast_path.answer(message, 0, len(message), 0, b"now", -1) is None
    if what == "an absent row":
        with pytest.raises(QueryError, match="is not stored"):
            setting.shard.pool_packed(*buckets[1][:2])


def test_sums_beyond_float16_are_answered_in_float32() -> None:
    setting = Setting(float16_partials=True)
    rows = np.full((setting.shard.slices[0].index.stored, 8), 60_000, np.float32)
    slices = [
        StoredSlice(e.table, e.precision, rows[: e.index.stored], e.index)
        for e in setting.shard.slices[:1]
    ]
    heads, json32, json16 = answer_forms(DIGEST.encode())
    shard = EmbeddingShard(slices)
    fast_path = shard.fast_path(
        head_forms(b"shard"), request_forms(), (*heads, json32, json16), 9, 1 << 20, 9999
    )
    routing = Routing(setting.tables[:1], [TableRoute.of(setting.routes[0])], [[0], [0]])
    combiner = Combiner(setting.tables[:1], [[0], [0]])
    row = int(np.flatnonzero(setting.routes[0] == 1)[0])
    for count, datatype in ((1, b"FP16"), (2, b"FP32")):
        buckets = routing.bucketize(np.full(count, row), np.array([[count]], np.int32))

        async def both(buckets: Buckets = buckets) -> tuple[bytes, np.ndarray]:
            endpoint = Endpoint("http://h:1", 10, lambda: None)
            remote = RemoteShard(
                1,
                "hot",
                DIGEST,
                endpoint,
                places=combiner.places(1),
                float16_partials=True,
            )
            message = b"".join(remote.request(buckets, 10, None))
            found = fast_path.answer(message, 0, len(message), 0, b"now", -1)
            assert found is not None
            out = combiner.begin(1)
            buffer = bytearray(found[0])
            assert remote.add_answer(buckets, buffer, 0, len(buffer), True, out)[0] > 0
            return found[0], out

        answer, out = asyncio.run(both())
        assert datatype in answer
        assert np.allclose(out, count * 60_000, rtol=1e-3)


def test_weights_take_the_general_way() -> None:
    setting = Setting()
    values, lengths = setting.query(3)
    weights = np.ones(len(values), np.float32)
    buckets = setting.routing.bucketize(values, lengths, weights)
    message = setting.requested(buckets)
    head = REQUEST_HEAD.match(message)
    assert head is not None
    assert b'"weights"' in message
    assert setting.fast_path.answer(message, 0, len(message), 0, b"now", -1) is None


def test_a_percent_sign_in_the_address_is_one() -> None:
    setting = Setting()
    buckets = setting.routing.bucketize(*setting.query(1))
    assert b"host: [fe80::1%eth0]:80\r\n" in setting.requested(
        buckets, authority="[fe80::1%eth0]:80"
    )


def test_the_server_writes_the_same_head() -> None:
    async def heads() -> tuple[bytes, bytes]:
        server = ServerState(
            lambda request: Response(200), ServerLimits(), lambda status: None, MemoryBudget(1)
        )
        server.sweep()
        setting = Setting()
        buckets = setting.routing.bucketize(*setting.query(2))
        message = b"".join(setting.remote().request(buckets, 10, None))
        found = setting.fast_path.answer(message, 0, len(message), 0, server.date, 12)
        assert found is not None
        body = found[0][found[0].index(b"\r\n\r\n") + 4 :]
        more = ((b"inference-header-content-length", b"%d" % found[4]), (b"erless-up-ms", b"12"))
        response = Response(200, (body,), BINARY_TYPE, more)
        return found[0][: -len(body)], server.head(response, keep=True)

    fast, general = asyncio.run(heads())
    assert fast == general


@pytest.mark.parametrize("pipelined", [1, 3])
def test_a_function_answers_both_ways_alike(fleet: Fleet, pipelined: int) -> None:
    """A running function, asked for its first rows."""
    release = fleet.made.release
    process, shard = fleet.shards["frozen"], release.shard("frozen")
    tables = len(shard.tables)
    stored = stored_ids(fleet)
    lengths = np.zeros((tables, 4), np.int32)
    lengths[0] = [3, 0, 2, 0]
    values = np.array(stored[:5], np.int32)
    specs = [each.table for each in shards_slices(fleet)]
    routes = [TableRoute.of(np.zeros(each.rows, np.uint8)) for each in specs]
    routing = Routing(specs, routes, [range(tables)])
    combiner = Combiner(specs, [range(tables)])
    buckets = routing.bucketize(values, lengths)

    async def ask() -> tuple[np.ndarray, bytes]:
        endpoint = Endpoint(process.url, 10, lambda: None)
        remote = RemoteShard(
            0,
            "frozen",
            shard.digest,
            endpoint,
            places=combiner.places(0),
            float16_partials=False,
        )
        out = combiner.begin(4)
        done: asyncio.Future[Reply | CallError] = asyncio.get_running_loop().create_future()
        request = remote.request(buckets, 5000, None)
        endpoint.send(
            request,
            done.set_result,
            lambda buffer, begin, end, last: remote.add_answer(
                buckets, buffer, begin, end, last, out
            ),
        )
        reply = await asyncio.wait_for(done, 60)
        assert isinstance(reply, Reply)
        assert reply.added
        reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
        writer.write(b"".join(bytes(each) for each in request) * pipelined)
        for _ in range(pipelined):
            raw = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
            head = ANSWER_HEAD.fullmatch(raw)
            assert head is not None
            await asyncio.wait_for(reader.readexactly(int(head.group(1))), 60)
        writer.close()
        endpoint.close()
        return out, raw

    fast, _ = uvloop.run(ask())
    took_s = process.metric("erless_request_seconds_sum")
    assert 0 < took_s % 1e-3 < 1e-3  # the event loop's own clock tells whole milliseconds
    request = {
        "inputs": [
            {"name": "values", "datatype": "INT64", "shape": [5], "data": values.tolist()},
            {
                "name": "lengths",
                "datatype": "INT32",
                "shape": [tables, 4],
                "data": lengths.tolist(),
            },
        ]
    }
    status, answer = process.post("/v2/models/shard/infer", json.dumps(request).encode())
    assert status == 200
    dense = np.array(answer["outputs"][0]["data"], np.float32).reshape(4, -1)
    width = specs[0].dim
    assert np.array_equal(fast[:, 0, :width], dense[:, :width])


def shards_slices(fleet: Fleet) -> list[StoredSlice]:
    """Of shard `frozen`."""
    from erless.serve.files import Source, open_shard

    digest = fleet.made.release.shard("frozen").digest
    with open_shard(Source(fleet.made.store), digest) as opened:
        return list(opened.shard.slices)


def stored_ids(fleet: Fleet) -> list[int]:
    """Rows of the first table that shard `frozen` stores."""
    ids: list[int] = shards_slices(fleet)[0].index.ids(0, 5).tolist()
    return ids


def test_a_request_without_weights_for_weighted_tables_takes_the_general_way() -> None:
    """350 bytes that have the form, sent to a shard that needs weights as well."""
    plain, weighted = Setting(), Setting(pooling=Pooling.WEIGHTED_SUM)
    buckets = plain.routing.bucketize(*plain.query(1))
    message = plain.requested(buckets)
    assert plain.fast_path.answer(message, 0, len(message), 0, b"now", -1) is not None
    assert weighted.fast_path.answer(message, 0, len(message), 0, b"now", -1) is None
    with pytest.raises(
        QueryError, match="table t0 pools by weighted sum: the query has no weights"
    ):
        weighted.shard.pool_packed(*buckets[1][:2])
