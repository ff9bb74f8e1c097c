"""Connections that share one buffer do not see each other's bytes."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket

import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from erless.http.client.endpoint import CallError, Endpoint, Reply
from erless.http.messages import Request, Response
from erless.http.receive import BUFFER_BYTES, Receiving, shared_buffer
from erless.http.server.server import HttpServer


def fill(connection: Receiving, data: bytes) -> None:
    connection.view[connection.tail : connection.tail + len(data)] = data
    connection.tail += len(data)


def test_what_waits_is_kept_and_given_back() -> None:
    shared = shared_buffer()
    one, other = Receiving(shared), Receiving(shared)
    fill(one, b"..half")
    one.start = 2
    one.settle()
    fill(other, b"whole!")
    other.start = 6
    other.settle()
    fill(one, b"+rest")
    assert bytes(one.buffer[one.start : one.tail]) == b"half+rest"
    one.start = one.tail
    one.settle()
    assert one.view is other.view is shared
    assert (one.start, one.tail) == (0, 0)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(0, 3 * BUFFER_BYTES), st.lists(st.integers(1, 400_000), max_size=4)),
        min_size=2,
        max_size=5,
    )
)
def test_messages_in_pieces_from_several_connections(plans: list[tuple[int, list[int]]]) -> None:
    """Each client sends its message cut anywhere, in turns with the others, and gets it back."""

    async def run() -> None:
        server = HttpServer(echo)
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server.listen(listener)

        async def client(number: int, size: int, cuts: list[int]) -> None:
            body = bytes([65 + number]) * size
            message = b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n%b" % (size, body)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            edges = sorted({0, len(message), *(cut % len(message) for cut in cuts)})
            for begin, end in itertools.pairwise(edges):
                writer.write(message[begin:end])
                await asyncio.sleep(0.002)
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"content-length: %d\r\n" % size in head
            assert await reader.readexactly(size) == body
            writer.close()

        await asyncio.wait_for(
            asyncio.gather(*(client(i, *plan) for i, plan in enumerate(plans))), 60
        )
        endpoint = Endpoint(f"http://127.0.0.1:{port}", 60, lambda: None)
        answers: list[asyncio.Future[bytes]] = []
        for number, (size, _) in enumerate(plans):
            body = bytes([97 + number]) * size
            answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

            def take(result: Reply | CallError, answered: asyncio.Future[bytes] = answered) -> None:
                assert isinstance(result, Reply)
                answered.set_result(bytes(result.body))

            endpoint.send(
                [b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % size, body], take
            )
            answers.append(answered)
        got = await asyncio.wait_for(asyncio.gather(*answers), 60)
        assert got == [bytes([97 + i]) * size for i, (size, _) in enumerate(plans)]
        endpoint.close()
        listener.close()

    uvloop.run(run())


def echo(request: Request) -> Response:
    return Response(200, (bytes(request.body),), b"text/plain")


def test_json_is_echoed_unharmed() -> None:
    """The handler's own view of a small body is valid while it runs."""

    async def run() -> bytes:
        server = HttpServer(
            lambda request: Response(200, (json.dumps(json.loads(bytes(request.body))).encode(),))
        )
        server.allow_shortcuts(None, answers_synchronously=True)
        listener = socket.create_server(("127.0.0.1", 0))
        server.listen(listener)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        body = json.dumps(list(range(1000))).encode()
        writer.write(
            b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        size = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        answer = await asyncio.wait_for(reader.readexactly(size), 60)
        writer.close()
        listener.close()
        return answer

    assert json.loads(uvloop.run(run())) == list(range(1000))
