"""A forwarding HTTP proxy on loopback that demands a user and a password, and counts who came."""

from __future__ import annotations

import base64
import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

USER, PASSWORD = "me", "p@ss"


class ProxyServer(ThreadingHTTPServer):
    """`seen` holds the URLs that were forwarded; `refused` those without credentials."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.seen: list[str] = []
        self.refused: list[str] = []

    @property
    def url(self) -> str:
        return f"http://{USER}:p%40ss@127.0.0.1:{self.server_port}"


class _Forward(BaseHTTPRequestHandler):
    server: ProxyServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _forward(self) -> None:
        pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.headers.get("Proxy-Authorization") != f"Basic {pair}":
            self.server.refused.append(self.path)
            self.send_response(407)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.server.seen.append(self.path)
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        upstream = http.client.HTTPConnection("127.0.0.1", url.port or 80, timeout=10)
        path = f"{url.path}?{url.query}" if url.query else url.path
        headers = {
            name: value for name, value in self.headers.items() if "proxy" not in name.lower()
        }
        upstream.request(self.command, path, body, headers)
        answer = upstream.getresponse()
        data = answer.read()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type", "text/plain"))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        upstream.close()

    do_GET = do_PATCH = do_POST = do_PUT = do_DELETE = do_HEAD = _forward  # noqa: N815


@contextmanager
def proxy_server() -> Iterator[ProxyServer]:
    """A proxy that forwards everything to loopback, whatever host was named."""
    server = ProxyServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
