"""A server that answers every query at once with the same prediction: what a generator can offer.

python loadtests/sink.py --tables 10 --batch 32      prints its URL, serves until stopped
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
from typing import cast

__all__ = ["Sink", "serve"]

METADATA = {"name": "sink", "extensions": ["binary_tensor_data"], "models": ["sink"]}


class Sink(asyncio.Protocol):
    """Reads requests by their content length and writes one fixed answer each."""

    def __init__(self, pages: dict[bytes, bytes], answer: bytes) -> None:
        self._pages, self._answer = pages, answer
        self._need = 0
        self._head = bytearray()
        self._path = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the client to answer."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """Skip bodies, answer when one is complete."""
        view = memoryview(data)
        while view:
            if self._need == 0:
                self._head += view
                end = self._head.find(b"\r\n\r\n")
                if end < 0:
                    return
                head, rest = bytes(self._head[:end]), bytes(self._head[end + 4 :])
                self._head.clear()
                self._path = head.split(b" ", 2)[1]
                self._need = _content_length(head)
                view = memoryview(rest)
            skipped = min(self._need, len(view))
            self._need -= skipped
            view = view[skipped:]
            if self._need == 0:
                self.reply(self._path)

    def reply(self, path: bytes) -> None:
        """Answer one request."""
        self.transport.write(self._pages.get(path, self._answer))


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


def _response(body: bytes, extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), extra, body)


async def serve(
    tables: int,
    rows: int,
    dense: int,
    pooling: int,
    batch: int,
    protocol: type[Sink] = Sink,
    tls: ssl.SSLContext | None = None,
) -> asyncio.Server:
    """Listen on a free port of loopback, by HTTPS where there is `tls`."""
    document = {
        "model_name": "sink",
        "outputs": [
            {
                "name": "prediction",
                "datatype": "FP32",
                "shape": [batch],
                "parameters": {"binary_data_size": 4 * batch},
            }
        ],
    }
    head = json.dumps(document).encode()
    mark = b"Inference-Header-Content-Length: %d\r\n" % len(head)
    answer = _response(head + bytes(4 * batch), mark)
    model = {
        "name": "sink",
        "versions": ["1"],
        "inputs": [{"name": "dense", "datatype": "FP32", "shape": [-1, dense]}],
        "parameters": {
            "batch": batch,
            "tables": [
                {"name": f"table_{index}", "rows": rows, "pooling_factor": pooling}
                for index in range(tables)
            ],
        },
    }
    pages = {
        b"/v2": _response(json.dumps(METADATA).encode()),
        b"/v2/models/sink": _response(json.dumps(model).encode()),
    }
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: protocol(pages, answer), "127.0.0.1", 0, ssl=tls)


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("tables", 10),
        ("rows", 200_000),
        ("dense", 256),
        ("pooling", 128),
        ("batch", 32),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    server = await serve(**vars(parser.parse_args()))
    port = server.sockets[0].getsockname()[1]
    print(f"http://127.0.0.1:{port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import contextlib

    import uvloop

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_main())
