"""Connections of a function that cannot start are answered; those after it can are left alone."""

from __future__ import annotations

import asyncio
import json
import socket

from erless.deploy.local.supervisor.refusals import Refusals

REQUEST = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n"


def test_a_refused_client_reads_the_whole_reason_though_it_is_still_sending() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as opened:
            opened.setblocking(False)
            refusals = Refusals(opened, lambda: "a file is damaged")
            refusals.refuse(True)
            reader, writer = await asyncio.open_connection(*opened.getsockname())
            writer.write(REQUEST + bytes(200_000))
            head, _, body = (await asyncio.wait_for(reader.read(), 30)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert json.loads(body) == {"error": "a file is damaged", "state": "failed"}
            writer.close()
            refusals.refuse(False)

    asyncio.run(scenario())


def test_after_refusing_connections_wait_for_whoever_accepts_next() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as opened:
            opened.setblocking(False)
            refusals = Refusals(opened, lambda: "not yet")
            for wanted in (True, False, True, False):
                refusals.refuse(wanted)
                await asyncio.sleep(0)
            await asyncio.sleep(0.05)  # a server that was being made is closed by now
            with socket.create_connection(opened.getsockname(), timeout=30) as client:
                client.sendall(REQUEST)
                accepted, _ = await asyncio.wait_for(
                    asyncio.get_running_loop().sock_accept(opened), 30
                )
                with accepted:
                    assert accepted.recv(10) == REQUEST[:10]

    asyncio.run(scenario())
