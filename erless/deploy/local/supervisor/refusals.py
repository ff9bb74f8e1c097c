"""Answering for a function that cannot start: 503 with the reason, at once, instead of silence.

The supervisor holds the function's public socket, so connections wait in it until a replica is
ready. Where none becomes ready (the store is gone, a file is damaged), they would wait for their
whole deadline; a gateway that reads `"state": "failed"` fails the query with the reason instead.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import cast

from erless.deploy.local.supervisor.folder.events import log_event
from erless.http.tls import TlsIdentity

__all__ = ["Refusals"]

UNASKED_S = 5.0  # a connection that sends nothing is closed after so long
LINGER_S = 1.0  # what a client still sends is read so long, for a reset would take the answer away


class Refusals:
    """Refuses the connections of one function, from `refuse(True)` to `refuse(False)`.

    Args:
        opened: the public socket, which stays open when refusing ends.
        reason: why the function cannot start, asked for at each request.
        identity: folder of the function's certificate, where it speaks mutual TLS.
    """

    def __init__(
        self, opened: socket.socket, reason: Callable[[], str], identity: Path | None = None
    ) -> None:
        self._socket, self._reason, self._identity = opened, reason, identity
        self._server: asyncio.Server | None = None
        self._wanted = False
        self._change: asyncio.Task[None] | None = None

    @property
    def refusing(self) -> bool:
        """Whether connections are refused, or are about to be."""
        return self._wanted

    def refuse(self, wanted: bool) -> None:
        """Begin to refuse connections, or leave them to the replicas again."""
        self._wanted = wanted
        if not wanted and self._server is not None:
            self._server.close()
            self._server = None
        if wanted and self._server is None and self._change is None:
            self._change = asyncio.get_running_loop().create_task(self._begin())

    async def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            tls = TlsIdentity(self._identity, log_event).server() if self._identity else None
            server = await loop.create_server(
                lambda: _Refusal(self._reason()), sock=self._socket.dup(), ssl=tls
            )
        finally:
            self._change = None
        if self._wanted:
            self._server = server
        else:
            server.close()


class _Refusal(asyncio.Protocol):
    """One connection: its first bytes are answered, then it is closed."""

    def __init__(self, reason: str) -> None:
        self._reason = reason
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(UNASKED_S, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return
        self._answered = True
        body = json.dumps({"error": self._reason, "state": "failed"}).encode()
        self._transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\nretry-after: 1\r\nconnection: close\r\n\r\n" % len(body) + body
        )
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
