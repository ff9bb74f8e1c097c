"""HTTP/1.1 between gateway, shards and clients: what both sides pass around."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = [
    "ALIGNMENT_BYTES",
    "DEADLINE",
    "JSON_LENGTH",
    "JSON_TYPE",
    "OUR_ANSWER",
    "OUR_HEADERS",
    "UP",
    "Buffer",
    "Handler",
    "Request",
    "Response",
    "ServerLimits",
    "aligned",
    "body_offset",
    "problem",
]

ALIGNMENT_BYTES = 16
DEADLINE = b"erless-deadline-ms"
JSON_LENGTH = b"inference-header-content-length"
UP = b"erless-up-ms"  # how long a replica has been ready: younger than the call, it was cold
JSON_TYPE = b"application/json"
# How our server writes an answer; a proxy adds headers, or writes them in another case or order.
OUR_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: "
OUR_HEADERS = {b"content-type", b"content-length", b"date", JSON_LENGTH, UP}

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a client may take of us."""

    head_bytes: int = 16 << 10
    body_bytes: int = 64 << 20
    head_s: float = 10.0
    body_s: float = 30.0
    body_rate: int = 64 << 10  # bytes/s: so much longer may a body take that keeps coming
    idle_s: float = 120.0
    first_s: float = 2.0  # from being accepted to the first request, where the server drains
    read_s: float = 30.0  # for an answer that the client does not read
    connections: int = 4096  # idle ones give way to new ones, the oldest first
    client_connections: int = 3072  # of one address; a proxy is one client
    private_connections: int = 64  # of the socket that only the owner of the process can reach
    age_s: float = math.inf  # ± a fifth; a connection closes with its next answer after so long


@dataclass(slots=True)
class Request:
    """One request. Header names are in lower case; `body` starts so that, behind an inference
    header of the announced length, it is aligned to 16 bytes."""

    method: bytes
    path: bytes
    headers: dict[bytes, bytes]
    body: memoryview
    arrived: float  # loop time of the head
    private: bool = False  # it came by a socket that only the owner of the process can reach
    peer: str = ""  # address of the client; empty where it has none
    stranger: bool = False  # it came without the certificate that is wanted of those who ask


@dataclass(slots=True)
class Response:
    """One answer; the body may come in pieces, which are not copied. Trailers: HTTP/2 only."""

    status: int
    body: Sequence[Buffer] = ()
    content_type: bytes = JSON_TYPE
    headers: Sequence[tuple[bytes, bytes]] = ()
    close: bool = False
    trailers: Sequence[tuple[bytes, bytes]] = ()
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = sum(map(len, self.body))


Handler = Callable[[Request], Response | Awaitable[Response]]


def problem(
    status: int, message: str, *, headers: Sequence[tuple[bytes, bytes]] = (), **more: Any
) -> Response:
    """`{"error": message}`."""
    text = json.dumps({"error": message, **more}).encode()
    return Response(status, (text,), headers=headers)


def aligned(size: int, offset: int = 0) -> memoryview:
    """`size` writable bytes of which those from `offset` on are aligned to 16 bytes."""
    pad = -offset % ALIGNMENT_BYTES
    return np.empty(pad + size, np.uint8).data[pad:]


def body_offset(headers: dict[bytes, bytes]) -> int:
    """Where the tensors of a body begin, as its head announces; 0 where it does not."""
    text = headers.get(JSON_LENGTH, b"0")
    return int(text) if text.isdigit() and len(text) < 10 else 0
