"""A live page of what runs, on loopback, read-only: `erless open` serves it.

The page is one document without any network but this server; it asks `/status.json` every second.
However many pages are open, the target is asked at most once in `EVERY_S`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from erless.errors import ErlessError
from erless.pages.live import live_page

__all__ = ["LivePage"]

EVERY_S = 1.0
LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}
TIMEOUT_S = 10.0  # of one exchange
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:"
)

Ask = Callable[[], Mapping[str, Any]]


class LivePage:
    """The server, while its block runs; `url` is where.

    Args:
        ask: what runs now, as JSON; it may raise ErlessError, which the page then shows.
        title: of the page.
        plan: what the page says of the plan, as JSON; None where it is not known.
        port: on loopback; 0: any free one.
        every_s: how old an answer of `ask` may be.
    """

    def __init__(
        self,
        ask: Ask,
        title: str,
        plan: Mapping[str, Any] | None = None,
        port: int = 0,
        every_s: float = EVERY_S,
    ) -> None:
        page = live_page(title, plan).encode()
        cached = _Cached(ask, every_s)

        class Handler(BaseHTTPRequestHandler):
            timeout = TIMEOUT_S
            protocol_version = "HTTP/1.1"
            server_version, sys_version = "erless", ""

            def do_GET(self) -> None:
                host = (urlsplit(f"//{self.headers.get('Host', '')}").netloc or "").rpartition(":")
                if (host[0] or host[2]) not in LOOPBACK:  # another name led a browser here
                    self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"only by 127.0.0.1\n")
                elif self.path == "/":
                    self._answer(HTTPStatus.OK, "text/html; charset=utf-8", page)
                elif self.path == "/status.json":
                    self._answer(HTTPStatus.OK, "application/json", cached.body())
                else:
                    self._answer(
                        HTTPStatus.NOT_FOUND, "text/plain", b"there is / and /status.json\n"
                    )

            def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
                self.send_response(status)
                for name, value in (
                    ("Content-Type", kind),
                    ("Content-Length", str(len(body))),
                    ("Cache-Control", "no-store"),
                    ("Content-Security-Policy", POLICY),
                    ("X-Content-Type-Options", "nosniff"),
                ):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nobody reads a log of these."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="live-page", daemon=True
        )

    def __enter__(self) -> LivePage:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Cached:
    """The last answer of `ask`, asked again when it is `every_s` old."""

    def __init__(self, ask: Ask, every_s: float) -> None:
        self._ask, self._every_s, self._lock = ask, every_s, threading.Lock()
        self._at_s, self._body = 0.0, b""

    def body(self) -> bytes:
        with self._lock:
            if not self._body or time.monotonic() - self._at_s >= self._every_s:
                try:
                    document = dict(self._ask())
                except ErlessError as error:
                    document = {"error": str(error)}
                self._body = json.dumps(document, allow_nan=False).encode()
                self._at_s = time.monotonic()
            return self._body
