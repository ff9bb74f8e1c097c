"""A proxy that fails on request, in front of a real S3 API: what a network does to a client.

with FaultyProxy(upstream_url) as proxy:
    proxy.fail(Fault(status=503), times=2, method="PUT")
    client = boto3.client("s3", endpoint_url=proxy.url)
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

__all__ = ["Fault", "FaultyProxy"]

HOP = {"connection", "transfer-encoding", "content-length", "keep-alive", "expect"}


@dataclass(frozen=True)
class Fault:
    """What happens to one request. Several may be combined.

    status: answered instead of passing the request on, with `code` as S3's error code.
    drop_after: bytes of the answer's body, then the connection is cut.
    drop_request: the connection is cut after reading the request, before any answer.
    flip: the byte of the answer's body at this offset is altered.
    stall_s: silence before the answer.
    """

    status: int = 0
    code: str = "InternalError"
    drop_after: int | None = None
    drop_request: bool = False
    flip: int | None = None
    stall_s: float = 0.0


@dataclass
class _Rule:
    fault: Fault
    times: int
    applies: Callable[[str, str], bool]


@dataclass
class FaultyProxy:
    """Pass requests on to `upstream`; `seen` lists (method, path) of all of them."""

    upstream: str
    seen: list[tuple[str, str]] = field(default_factory=list)
    _rules: list[_Rule] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(
        self, fault: Fault, *, times: int = 1, method: str = "", part: str = ""
    ) -> FaultyProxy:
        """Let `fault` happen to the next `times` requests of `method` whose path holds `part`."""
        with self._lock:
            self._rules.append(_Rule(fault, times, lambda m, p: method in ("", m) and part in p))
        return self

    def clear(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._rules.clear()

    def take(self, method: str, path: str) -> Fault:
        """The fault that this request gets."""
        with self._lock:
            self.seen.append((method, path))
            for rule in self._rules:
                if rule.times and rule.applies(method, path):
                    rule.times -= 1
                    return rule.fault
        return Fault()

    def __enter__(self) -> Self:
        proxy = self
        host, port = urlsplit(self.upstream).hostname, urlsplit(self.upstream).port

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:  # the client gave up, as it may
                    self.close_connection = True

            def _any(self) -> None:
                fault = proxy.take(self.command, self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                time.sleep(fault.stall_s)
                if fault.drop_request:
                    self._cut()
                elif fault.status:
                    self._refuse(fault)
                else:
                    self._pass(body, fault)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any  # noqa: N815

            def _cut(self) -> None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def _refuse(self, fault: Fault) -> None:
                text = (
                    f"<?xml version='1.0'?><Error><Code>{fault.code}</Code>"
                    f"<Message>made up</Message></Error>"
                ).encode()
                self.send_response(fault.status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(text)

            def _pass(self, body: bytes, fault: Fault) -> None:
                server = http.client.HTTPConnection(host or "", port, timeout=60)
                try:
                    headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP}
                    server.request(self.command, self.path, body, headers)
                    answer = server.getresponse()
                    data = bytearray(answer.read())
                    self.send_response(answer.status)
                    for name, value in answer.getheaders():
                        if name.lower() not in HOP:
                            self.send_header(name, value)
                    size = answer.headers["Content-Length"] if self.command == "HEAD" else len(data)
                    self.send_header("Content-Length", str(size))
                    self.end_headers()
                finally:
                    server.close()
                if fault.flip is not None and fault.flip < len(data):
                    data[fault.flip] ^= 1
                if self.command != "HEAD":
                    self.wfile.write(data[: fault.drop_after])
                if fault.drop_after is not None:
                    self._cut()

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a cut connection, by us or by the client

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
