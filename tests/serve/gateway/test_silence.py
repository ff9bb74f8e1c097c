"""A shard that is silent is asked again on a new connection; one that is overloaded is not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from erless.http.client.endpoint import CallError, Endpoint, Reply
from erless.http.client.reply import ANSWER_GENERAL
from erless.serve.gateway import silence
from erless.serve.gateway.fan_out import FanOut, ShardCall
from erless.serve.gateway.silence import (
    ASLEEP_SAVED,
    RESENDS_SAVED,
    RESENT_SHARE,
    SILENT_S,
    Resends,
    silent_after_s,
)

REQUEST = b"GET /shard HTTP/1.1\r\nhost: h\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
# connection's number, request's number on it → seconds before the answer; None: it never comes
Delay = Callable[[int, int], float | None]


class Work:
    """Counts the answers that it is given."""

    def __init__(self, remote: Any) -> None:
        self.remote, self.answers = remote, 0

    def request(self) -> list[bytes]:
        return [REQUEST]

    def add_answer(self, buffer: bytearray, begin: int, end: int, last: bool) -> tuple[int, int]:
        return ANSWER_GENERAL, begin

    def read(self, reply: Reply) -> None:
        self.answers += 1

    def use_defaults(self) -> None:
        raise AssertionError


class Shard:
    """A server on loopback, and the gateway's view of it."""

    def __init__(self, delay: Delay) -> None:
        self._delay, self.closed = delay, 0
        self.requests: list[int] = []  # by connection
        self.metrics = SimpleNamespace(resends=0, silent_connections=0)
        self.resends = Resends(self.metrics)  # type: ignore[arg-type]

    async def __aenter__(self) -> Shard:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        port = self._server.sockets[0].getsockname()[1]
        self.endpoint = Endpoint(
            f"http://127.0.0.1:{port}", 60, lambda: None, on_silent=self._on_silent
        )
        self.remote: Any = SimpleNamespace(endpoint=self.endpoint, label="shard hot", waking=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.endpoint.close()
        self._server.close()

    def _on_silent(self) -> None:
        self.metrics.silent_connections += 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.requests)
        self.requests.append(0)
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                delay_s = self._delay(number, self.requests[number])
                self.requests[number] += 1
                if delay_s is None:
                    await reader.read()
                    break
                await asyncio.sleep(delay_s)
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        self.closed += 1
        writer.close()

    def start(self, deadline_s: float = 30.0) -> tuple[FanOut, Work]:
        loop = asyncio.get_running_loop()
        self.resends.earn(1)
        fan_out, work = FanOut(loop, loop.time() + deadline_s, self.resends), Work(self.remote)
        ShardCall(loop, fan_out, work).start()
        return fan_out, work

    async def ask(self, count: int = 1) -> None:
        """So many queries at once, all answered, each once."""
        started = [self.start() for _ in range(count)]
        for fan_out, work in started:
            await fan_out.done
            fan_out.settle()
            assert work.answers == 1


def test_a_hung_connection_costs_a_query_milliseconds_and_takes_no_other() -> None:
    async def case() -> None:
        async with Shard(lambda number, count: None if (number, count) == (0, 64) else 0) as shard:
            for _ in range(64):
                await shard.ask()
            assert shard.endpoint.p99_s < 30
            shard.endpoint.p99_s = 0.0  # on a busy machine it may be anything
            assert silent_after_s(shard.endpoint) == SILENT_S
            began = shard.endpoint.now()
            await shard.ask()
            assert SILENT_S < shard.endpoint.now() - began < 10  # the deadline is 30 s
            for _ in range(8):
                await shard.ask()
            assert shard.metrics.resends >= 1 and shard.metrics.silent_connections >= 1
            assert shard.requests[0] == 65

    uvloop.run(asyncio.wait_for(case(), 60))


def test_a_call_is_asked_again_when_its_silent_connections_have_been_closed() -> None:
    """All hang, as a sole replica does: whoever takes its place answers within the deadline."""

    async def case() -> None:
        state = {"hung": False}
        async with Shard(lambda number, count: None if state["hung"] else 0) as shard:
            await shard.ask()
            state["hung"] = True
            fan_out, work = shard.start()
            async with asyncio.timeout(20):
                while shard.closed < 3:  # the first and two that were asked again, after a second
                    await asyncio.sleep(0.01)
            assert shard.metrics.resends == 3
            state["hung"] = False
            for connection in list(shard.endpoint.connections):  # the hung replica is killed
                connection.drop("killed")
            await asyncio.wait_for(fan_out.done, 20)
            fan_out.settle()
            assert work.answers == 1

    uvloop.run(asyncio.wait_for(case(), 60))


def test_a_hung_replica_behind_an_ingress_costs_each_of_its_calls_milliseconds() -> None:
    """Whatever the connection, every other call goes to it, until its readiness has failed."""

    async def case() -> None:
        state = {"hung": False, "calls": 0}

        def delay(number: int, count: int) -> float | None:
            state["calls"] += 1
            return None if state["hung"] and state["calls"] % 2 else 0

        async with Shard(delay) as shard:
            for _ in range(64):
                await shard.ask()
            state["hung"] = True
            for _ in range(60):
                began = shard.endpoint.now()
                await asyncio.wait_for(shard.ask(), 10)
                assert shard.endpoint.now() - began < 5  # the deadline is 30 s
            assert shard.metrics.resends >= 30

    uvloop.run(asyncio.wait_for(case(), 60))


def test_a_call_that_meets_the_hung_replica_each_time_is_asked_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behind an ingress no connection is surely another replica's, until its readiness failed."""
    monkeypatch.setattr(silence, "ASLEEP_S", 0.5)

    async def case() -> None:
        state = {"hung": False}
        async with Shard(lambda number, count: None if state["hung"] else 0) as shard:
            await shard.ask()
            state["hung"] = True
            fan_out, work = shard.start()
            async with asyncio.timeout(20):
                while shard.requests[1:] != [1, 1, 1]:
                    await asyncio.sleep(0.01)
            state["hung"] = False  # those that were asked stay hung, and none is closed
            await asyncio.wait_for(fan_out.done, 20)
            fan_out.settle()
            assert work.answers == 1 and shard.metrics.resends == 4

    uvloop.run(asyncio.wait_for(case(), 60))


@pytest.mark.parametrize("slow_s", [0.12])
def test_overload_does_not_multiply_calls(slow_s: float) -> None:
    """A shard that was quick gets slow: what is asked again stays within the budget, and ends."""

    async def case() -> None:
        speed = {"s": 0.0}
        async with Shard(lambda number, count: speed["s"]) as shard:
            await shard.ask(64)
            speed["s"] = slow_s
            for _ in range(12):
                await shard.ask(32)
            spent = shard.metrics.resends
            assert spent <= RESENDS_SAVED + RESENT_SHARE * (64 + 12 * 32)
            assert silent_after_s(shard.endpoint) > 2 * slow_s
            for _ in range(8):
                await shard.ask(32)
            assert shard.metrics.resends <= RESENDS_SAVED + RESENT_SHARE * (64 + 20 * 32)

    uvloop.run(asyncio.wait_for(case(), 60))


def test_a_first_call_that_hangs_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was ever heard of the shard: it may start, so that its connection stays."""
    monkeypatch.setattr(silence, "ASLEEP_S", 0.2)

    async def case() -> None:
        async with Shard(lambda number, count: None if number == 0 else 0) as shard:
            assert not shard.endpoint.awake
            fan_out, work = shard.start()
            await asyncio.sleep(0.1)
            assert not shard.metrics.resends
            await asyncio.wait_for(fan_out.done, 10)  # the deadline is 30 s
            fan_out.settle()
            assert work.answers == 1 and shard.metrics.resends == 1
            assert not shard.metrics.silent_connections

    uvloop.run(asyncio.wait_for(case(), 60))


def test_calls_that_wait_for_a_start_leave_the_budget_of_hung_replicas_alone() -> None:
    metrics = SimpleNamespace(resends=0)
    resends = Resends(metrics)  # type: ignore[arg-type]
    asleep: Any = SimpleNamespace(awake=False)
    awake: Any = SimpleNamespace(awake=True)
    assert sum(resends.spend(asleep) for _ in range(999)) == ASLEEP_SAVED
    assert sum(resends.spend(awake) for _ in range(999)) == RESENDS_SAVED
    resends.earn(100)
    assert resends.spend(asleep) and resends.spend(awake)
    assert metrics.resends == ASLEEP_SAVED + RESENDS_SAVED + 2


def test_a_silent_connection_fails_its_calls_after_a_second() -> None:
    async def case() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        endpoint = Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}", 60, lambda: None)
        ended: asyncio.Future[Reply | CallError] = asyncio.get_running_loop().create_future()
        call = endpoint.send([REQUEST], ended.set_result)
        while call.connection is None:
            await asyncio.sleep(0.005)
        began = endpoint.now()
        endpoint.distrust(call)
        endpoint.distrust(call)
        result = await ended
        assert isinstance(result, CallError) and result.silent
        assert 0.9 < endpoint.now() - began < 5
        assert not endpoint.connections
        endpoint.close()
        listener.close()

    uvloop.run(asyncio.wait_for(case(), 60))
