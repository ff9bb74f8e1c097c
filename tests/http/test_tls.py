"""TLS between functions: what a handshake takes, and how often there is one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path

import pytest
import uvloop

from erless.deploy.local.supervisor.folder.identities import Identities
from erless.http.client import endpoint as client
from erless.http.client.endpoint import CallError, Endpoint, PeerTls, Reply
from erless.http.messages import Response
from erless.http.server.server import HttpServer
from erless.http.tls import TlsIdentity, peer_identity

PREFIX = "spiffe://erless/test/"


@pytest.fixture
def identities(tmp_path: Path) -> tuple[TlsIdentity, TlsIdentity]:
    """A shard's and a gateway's."""
    Identities(tmp_path).keep({name: PREFIX + name for name in ("shard", "gateway")}, 3600.0)
    shard, gateway = (TlsIdentity(tmp_path / name, pytest.fail) for name in ("shard", "gateway"))
    return shard, gateway


def handshake(
    server: ssl.SSLContext, client: ssl.SSLContext
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a connection, without one: the server's and the client's."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for end in (*ends, *ends):
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    with contextlib.suppress(ssl.SSLWantReadError):
        ends[0].read(1)  # what the server sends behind the handshake
    return ends[1], ends[0]


def test_both_ends_know_each_other_and_no_ticket_is_made(
    identities: tuple[TlsIdentity, TlsIdentity],
) -> None:
    """A ticket costs the server as much as a certificate, and nobody comes back with one."""
    shard, gateway = identities
    server, client = handshake(shard.server(), gateway.client())
    assert peer_identity(server) == f"{PREFIX}gateway"
    assert peer_identity(client) == f"{PREFIX}shard"
    assert client.session is None or not client.session.has_ticket


def test_a_connection_is_renewed_after_so_many_calls(
    identities: tuple[TlsIdentity, TlsIdentity], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handshake costs as much as many calls: with TLS it takes more of them."""
    shard, gateway = identities
    monkeypatch.setattr(client, "RENEW_S", 0.0)
    monkeypatch.setattr(client, "RENEW_CALLS", 2)
    monkeypatch.setattr(client, "TLS_RENEW_CALLS", 10)

    async def connections(calls: int, secure: bool) -> int:
        """How many connections `calls` calls take, one after the other."""
        listener = socket.create_server(("127.0.0.1", 0))
        server = HttpServer(lambda request: Response(200, (b"answer",)))
        accepted = list[str]()

        def admits(transport: asyncio.BaseTransport) -> bool:
            accepted.append(peer_identity(transport.get_extra_info("ssl_object")))
            return True

        server.state.admits = admits
        if secure:
            server.secure(shard.server, admits)
        server.listen(listener)
        tls = PeerTls(gateway.client, f"{PREFIX}shard") if secure else None
        scheme, port = "https" if secure else "http", listener.getsockname()[1]
        endpoint = Endpoint(f"{scheme}://127.0.0.1:{port}", 60, lambda: None, tls=tls)
        loop = asyncio.get_running_loop()
        for _ in range(calls):
            answered: asyncio.Future[Reply | CallError] = loop.create_future()
            endpoint.send([b"GET / HTTP/1.1\r\nhost: h\r\n\r\n"], answered.set_result)
            reply = await asyncio.wait_for(answered, 60)
            assert isinstance(reply, Reply) and reply.status == 200
            while endpoint._replacing:
                await asyncio.sleep(0)
        endpoint.close()
        await server.drain(0.0, 10.0)
        assert set(accepted) == {f"{PREFIX}gateway" if secure else ""}
        return len(accepted)

    assert uvloop.run(connections(20, secure=False)) > 3
    assert uvloop.run(connections(9, secure=True)) == 1
    assert uvloop.run(connections(20, secure=True)) in {2, 3}
