"""Calls of one turn that share a connection and its write; what becomes of them when it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erless.http.client import endpoint as client
from erless.http.client.endpoint import CallError, Endpoint, HttpCall, Reply
from erless.http.receive import BUFFER_BYTES

WAIT_S = 60.0


def request(name: str) -> bytes:
    return b"GET /%b HTTP/1.1\r\nhost: h\r\n\r\n" % name.encode()


def plain(body: bytes) -> bytes:
    """An answer in the fast lane's form."""
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: %d\r\n"
        b"date: now\r\ninference-header-content-length: 0\r\n\r\n%b" % (len(body), body)
    )


def general(body: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%b\r\n%b" % (len(body), more, body)


def chunked(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
        len(body),
        body,
    )


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(1 << 20)
    except ConnectionError:
        return b""


class Server:
    """Remembers what it was asked, by connection, and answers as `script` says.

    script: connection's number, names asked so far on it → what to write now; None: hang up; a
    bytearray: write it, and hang up.
    """

    def __init__(self, script: Callable[[int, list[str]], bytes | bytearray | None]) -> None:
        self.asked: list[list[str]] = []
        self.reads: list[int] = []  # requests in each read
        self._script = script

    async def __aenter__(self) -> Endpoint:
        server = self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.retries, self._open = 0, set[asyncio.Task[None]]()
        port = server.sockets[0].getsockname()[1]
        endpoint = self._endpoint = Endpoint(f"http://127.0.0.1:{port}", 60, self._retried, batch=8)
        first: asyncio.Future[Reply | CallError] = asyncio.get_running_loop().create_future()
        endpoint.send([request("first")], first.set_result)
        await asyncio.wait_for(first, WAIT_S)
        endpoint.observe_answer(direct=True)
        return endpoint

    async def __aexit__(self, *_: object) -> None:
        self._endpoint.close()
        self._server.close()
        await until(lambda: all(each.done() for each in self._open))

    def _retried(self) -> None:
        self.retries += 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        number, names = len(self.asked), list[str]()
        self.asked.append(names)
        while data := await _read(reader):
            parts = data.split(b"\r\n\r\n")[:-1]
            self.reads.append(len(parts))
            for part in parts:
                names.append(part.split(b" ")[1][1:].decode())
                if names[-1] == "first":
                    writer.write(plain(b"first"))
                    continue
                told = self._script(number, names)
                if told is None:
                    writer.close()
                    return
                writer.write(told)
                if isinstance(told, bytearray):
                    writer.close()
                    return
        writer.close()


Got = dict[str, "bytes | str"]


def ask(endpoint: Endpoint, names: list[str], got: Got) -> list[HttpCall]:
    """Send all of them in one turn."""

    def done(name: str) -> Callable[[Reply | CallError], None]:
        def told(result: Reply | CallError) -> None:
            got[name] = bytes(result.body) if isinstance(result, Reply) else str(result)

        return told

    return [endpoint.send([request(name)], done(name)) for name in names]


async def ask_three(endpoint: Endpoint) -> Got:
    """What became of a, b and c, sent in one turn."""
    got: Got = {}
    ask(endpoint, ["a", "b", "c"], got)
    await until(lambda: len(got) == 3)
    return got


async def until(seen: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not seen():
            await asyncio.sleep(0.005)


def run(case: Coroutine[Any, Any, None]) -> None:
    uvloop.run(case)


def _holds(got: Got, count: int) -> bool:
    return len(got) == count


def test_calls_of_a_turn_leave_in_one_write() -> None:
    async def case() -> None:
        server = Server(lambda _, names: plain(names[-1].encode()))
        async with server as endpoint:
            got: Got = {}
            for turn in range(3):
                ask(endpoint, [f"{turn}{name}" for name in "abc"], got)
                await until(partial(_holds, got, 3 * (turn + 1)))
            assert all(told == name.encode() for name, told in got.items())
            assert server.reads == [1, 3, 3, 3]
            assert len(server.asked) == 1
            ask(endpoint, [f"more{number}" for number in range(11)], got)  # beyond a batch of 8
            await until(lambda: len(got) == 20)
            assert len(server.asked) > 1
            assert server.retries == 0

    run(case())


def test_behind_a_proxy_each_call_has_its_own_connection() -> None:
    async def case() -> None:
        server = Server(lambda _, names: general(names[-1].encode()))
        async with server as endpoint:
            got: Got = {}
            ask(endpoint, ["a"], got)
            await until(lambda: len(got) == 1)
            ask(endpoint, ["b", "c"], got)
            await until(lambda: len(got) == 3)
            assert max(server.reads) == 1

    run(case())


def test_a_head_in_pieces_does_not_look_like_a_proxy() -> None:
    async def case() -> None:
        rest = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(plain(b"a")[:40])
            await rest.wait()
            writer.write(plain(b"a")[40:])
            await _read(reader)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        endpoint = Endpoint(f"http://127.0.0.1:{port}", 60, lambda: None, batch=8)
        got: Got = {}
        endpoint.observe_answer(direct=True)
        ask(endpoint, ["a"], got)
        try:
            await until(lambda: any(each.tail == 40 for each in endpoint.connections))
            assert endpoint.direct
            rest.set()
            await until(lambda: got == {"a": b"a"})
            assert endpoint.direct
        finally:
            rest.set()
            endpoint.close()
            server.close()

    run(case())


def test_a_refused_connection_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Service that still names a replica that is gone."""
    monkeypatch.setattr(client, "REFUSED_S", (0.01,) * 500)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(plain(b"a"))
        await _read(reader)
        writer.close()

    async def case() -> None:
        place = socket.create_server(("127.0.0.1", 0))
        port = place.getsockname()[1]
        place.close()
        endpoint = Endpoint(f"http://127.0.0.1:{port}", 60, lambda: None)
        got: Got = {}
        ask(endpoint, ["a"], got)
        await asyncio.sleep(0.1)
        assert not got
        server = await asyncio.start_server(serve, "127.0.0.1", port)
        await until(lambda: got == {"a": b"a"})
        endpoint.close()
        server.close()
        monkeypatch.setattr(client, "REFUSED_S", (0.01,))
        await server.wait_closed()
        ask(endpoint, ["b"], got)
        await until(lambda: "b" in got)
        assert "refused" in str(got["b"])

    run(case())


def test_a_connection_that_nobody_answers_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Service that still names a pod whose address is gone: packets to it are lost."""
    monkeypatch.setattr(client, "REACH_S", 0.2)
    full = socket.socket()  # with a full backlog the kernel drops what asks for a connection
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    full.setblocking(False)
    waiting = [socket.socket() for _ in range(2)]
    for each in waiting:
        each.setblocking(False)
        each.connect_ex(full.getsockname())

    async def case() -> None:
        endpoint = Endpoint(f"http://127.0.0.1:{full.getsockname()[1]}", 60, lambda: None)
        got: Got = {}
        ask(endpoint, ["a"], got)
        await asyncio.sleep(0.1)
        assert not got and not endpoint.connections
        began = endpoint.now()
        with contextlib.suppress(BlockingIOError):
            while True:
                full.accept()[0].close()
        await until(lambda: bool(endpoint.connections))
        assert endpoint.now() - began < 0.6  # the kernel itself tries again after a second
        endpoint.close()

    run(case())
    for each in (full, *waiting):
        each.close()


def test_an_old_connection_goes_on_until_another_is_to_be_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process without descriptors for new connections, or a replica that takes no more."""
    monkeypatch.setattr(client, "REFUSED_S", ())
    monkeypatch.setattr(client, "RENEW_S", 0.0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(plain(b"a"))
        writer.close()

    async def case() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        retried: list[int] = []
        endpoint = Endpoint(f"http://127.0.0.1:{port}", 0.01, lambda: retried.append(1))
        got: Got = {}

        async def ask_once() -> None:
            got.clear()
            await asyncio.sleep(0.02)
            ask(endpoint, ["a"], got)
            await until(lambda: bool(got))
            assert got == {"a": b"a"}

        await ask_once()
        server.close()
        await asyncio.sleep(0.05)
        await ask_once()  # it may have been replaced before nobody listened any more
        first = list(endpoint.connections)
        for _ in range(10):
            await ask_once()
        assert list(endpoint.connections) == first and not retried
        server = await asyncio.start_server(serve, "127.0.0.1", port)
        for _ in range(100):
            await ask_once()
            if list(endpoint.connections) != first:
                break
        await until(lambda: first[0] not in endpoint.connections)
        endpoint.close()
        server.close()

    run(case())


def test_a_call_waits_for_a_connection_where_there_is_no_descriptor_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(0.05)
                writer.write(plain(b"a"))
        writer.close()

    async def case() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        endpoint = Endpoint(f"http://127.0.0.1:{port}", 60, lambda: None)
        got: Got = {}
        ask(endpoint, ["a"], got)
        await until(lambda: got == {"a": b"a"})

        async def full(*_: object, **__: object) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(endpoint, "_dial", full)
        ask(endpoint, ["b", "c", "d"], got)
        await until(lambda: len(got) == 4)
        assert got == dict.fromkeys("abcd", b"a")
        assert len(endpoint.connections) == 1
        for connection in list(endpoint.connections):
            connection.close()
        ask(endpoint, ["e"], got)
        await until(lambda: "e" in got)
        assert "Too many open files" in str(got["e"])
        endpoint.close()
        server.close()

    run(case())


KINDS = [plain, general]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(KINDS), st.sampled_from([0, 1, 100, 5_000, BUFFER_BYTES, 100_000])
        ),
        min_size=1,
        max_size=8,
    ),
    st.lists(st.integers(0, 1 << 20), max_size=6),
)
def test_answers_arrive_whole_however_they_are_cut(plans: list[Any], cuts: list[int]) -> None:
    bodies = [bytes([97 + number]) * size for number, (_, size) in enumerate(plans)]
    stream = b"".join(kind(body) for (kind, _), body in zip(plans, bodies, strict=True))

    async def case() -> None:
        served = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"first HTTP/1.1\r\nhost: h\r\n\r\n")
            writer.write(plain(b""))
            for _ in plans:
                await reader.readuntil(b"\r\n\r\n")
            edges = sorted({0, len(stream), *(cut % len(stream) for cut in cuts)})
            for begin, end in itertools.pairwise(edges):
                writer.write(stream[begin:end])
                await asyncio.sleep(0.002)
            await _read(reader)
            writer.close()
            served.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        endpoint = Endpoint(f"http://127.0.0.1:{port}", 60, lambda: None, batch=8)
        got: Got = {}
        ask(endpoint, ["first"], got)
        await until(lambda: bool(got))
        endpoint.observe_answer(direct=True)
        ask(endpoint, [str(number) for number in range(len(plans))], got)
        await until(lambda: len(got) == len(plans) + 1)
        assert [got[str(number)] for number in range(len(plans))] == bodies
        assert len(endpoint.connections) == 1
        endpoint.close()
        server.close()
        await served.wait()

    run(case())


BREAKS: dict[str, Callable[[list[str]], bytes | None]] = {
    "it dies": lambda names: None,
    "it says close": lambda names: general(b"a", b"connection: close\r\n"),
    "not HTTP": lambda names: b"no\r\n\r\n",
    "another protocol": lambda names: (
        b"HTTP/1.1 101 X\r\nupgrade: h\r\nconnection: upgrade\r\n\r\n"
    ),
    "chunked": lambda names: chunked(b"a"),
}


@pytest.mark.parametrize("how", BREAKS)
def test_what_was_not_answered_is_sent_again_once(how: str) -> None:
    async def case() -> None:
        def script(number: int, names: list[str]) -> bytes | None:
            if number == 0:
                return BREAKS[how](names) if names[-1] == "a" else plain(b"too late")
            return plain(names[-1].encode())

        server = Server(script)
        async with server as endpoint:
            got = await ask_three(endpoint)
            if how in {"not HTTP", "another protocol"}:
                assert "not HTTP" in str(got["a"])
            else:
                assert got["a"] == b"a"
            assert (got["b"], got["c"]) == (b"b", b"c")
            assert server.retries == (3 if how == "it dies" else 2)

    run(case())


@pytest.mark.parametrize("heals", [True, False])
def test_an_answer_that_breaks_off_is_asked_for_once_more(heals: bool) -> None:
    async def case() -> None:
        def script(number: int, names: list[str]) -> bytes | bytearray:
            if names[-1] == "b" and not (heals and number):
                return bytearray(plain(b"b" * 100)[:-1])
            return plain(names[-1].encode())

        server = Server(script)
        async with server as endpoint:
            got = await ask_three(endpoint)
            assert (got["a"], got["c"]) == (b"a", b"c")
            if heals:
                assert got["b"] == b"b"
            else:
                assert "broke within the answer" in str(got["b"])
            assert server.retries == 2  # b, and c behind it

    run(case())


def test_a_call_given_up_leaves_the_others_alone() -> None:
    async def case() -> None:
        free = asyncio.Event()
        server = Server(lambda _, names: plain(names[-1].encode()) if free.is_set() else b"")
        async with server as endpoint:
            got: Got = {}
            calls = ask(endpoint, ["a", "b"], got)
            await until(lambda: len(server.asked[0]) == 3)
            calls[0].abort()
            assert len(endpoint.connections) == 1
            calls[1].abort()
            assert not endpoint.connections  # nobody waits for it any more
            await asyncio.sleep(0.05)
            assert not got
            free.set()
            calls = ask(endpoint, ["c"], got)  # a new connection
            await until(lambda: got == {"c": b"c"})
            calls = ask(endpoint, ["d", "e", "f"], got)
            calls[1].abort()  # before it left
            await until(lambda: len(got) == 3)
            assert got == {"c": b"c", "d": b"d", "f": b"f"}
            calls = ask(endpoint, ["g", "h"], got)
            calls[1].abort()
            await until(lambda: "g" in got)
            ask(endpoint, ["i"], got)
            await until(lambda: "i" in got)
            assert "h" not in got

    run(case())


def test_more_answers_than_questions_close_the_connection() -> None:
    async def case() -> None:
        server = Server(
            lambda _, names: plain(b"a") if names[-1] == "a" else plain(b"b") + plain(b"nobody's")
        )
        async with server as endpoint:
            got: Got = {}
            ask(endpoint, ["a", "b"], got)
            await until(lambda: len(got) == 2)
            assert got["a"] == b"a"
            assert got["b"] == b"b" or "its length" in str(got["b"])  # as it arrived
            await until(lambda: not endpoint.connections)

    run(case())
