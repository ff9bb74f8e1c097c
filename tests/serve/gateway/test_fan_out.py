"""What a query leaves behind: nothing, without waiting for the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from erless.errors import ServeError
from erless.http.client.endpoint import Endpoint, Reply
from erless.http.client.reply import ANSWER_GENERAL
from erless.http.messages import Response
from erless.http.server.server import HttpServer
from erless.serve.gateway.fan_out import FanOut, ShardCall

REQUEST = b"GET /%b HTTP/1.1\r\nhost: h\r\n\r\n"


class Whole:
    """Work that takes any answer; it stands for the arrays that a query holds."""

    def __init__(self, remote: Any, path: bytes) -> None:
        self.remote, self._path = remote, path
        self.read_bytes = b""

    def request(self) -> list[bytes]:
        return [REQUEST % self._path]

    def add_answer(self, buffer: bytearray, begin: int, end: int, last: bool) -> tuple[int, int]:
        return ANSWER_GENERAL, begin

    def read(self, reply: Reply) -> None:
        if reply.status != 200:
            raise ServeError("it failed", 502, "shard")
        self.read_bytes = bytes(reply.body)

    def use_defaults(self) -> None:
        raise AssertionError


@pytest.mark.parametrize("path", [b"good", b"bad"])
def test_a_query_is_freed_when_it_is_answered(path: bytes) -> None:
    async def query() -> list[weakref.ref[Whole]]:
        loop = asyncio.get_running_loop()
        server = HttpServer(
            lambda request: Response(200 if request.path == b"/good" else 500, (b"{}",))
        )
        listener = socket.create_server(("127.0.0.1", 0))
        server.listen(listener)
        endpoint = Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}", 60, lambda: None)
        remote: Any = SimpleNamespace(endpoint=endpoint, what="shard", waking=False)
        left = []
        for _ in range(3):
            fan = FanOut(loop, loop.time() + 60)
            for _ in range(2):
                part = Whole(remote, path)
                left.append(weakref.ref(part))
                ShardCall(loop, fan, part).start()
            try:
                await asyncio.wait_for(fan.done, 30)
            except ServeError:
                assert path == b"bad"
            finally:
                fan.settle()
            await asyncio.sleep(0.2)  # the second call of a query that failed ends by itself
            del fan, part
        endpoint.close()
        listener.close()
        return left

    gc.collect()
    gc.disable()
    try:
        left = uvloop.run(query())
        assert len(left) == 6
        assert [each() for each in left if each() is not None] == []
    finally:
        gc.enable()
