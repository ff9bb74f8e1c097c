"""Servers for load tests: the sink, and one that misbehaves in every way."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadtests.sink import Sink, serve
from tests.authority import Authority, private_authority

ROOT = Path(__file__).parents[2]
Locust = Callable[..., "subprocess.CompletedProcess[str]"]


class _Background:
    """An asyncio server in a thread of its own."""

    def __init__(self, protocol: type[Sink] = Sink, tls: ssl.SSLContext | None = None) -> None:
        self._protocol, self._tls = protocol, tls
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(
            serve(3, 1000, 8, 4, 16, protocol=self._protocol, tls=self._tls)
        )
        self._ready.set()
        self._loop.run_forever()
        self._server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def __enter__(self) -> str:
        self._thread.start()
        assert self._ready.wait(30)
        scheme = "https" if self._tls else "http"
        return f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)


class _Faulty(Sink):
    """Of ten queries: a 503, one that is garbage, one cut off, one never answered, six good."""

    count = 0

    def reply(self, path: bytes) -> None:
        if not path.endswith(b"/infer"):
            super().reply(path)
            return
        place = _Faulty.count % 10
        _Faulty.count += 1
        if place == 2:
            body = b'{"error": "overload"}'
            self.transport.write(
                b"HTTP/1.1 503 Busy\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
        elif place == 4:
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\ngarbage")
        elif place == 6:
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhal")
            self.transport.close()
        elif place != 8:  # 8: never answered
            super().reply(path)


class _Ingress(Sink):
    """Knows one host, as a cluster's ingress does; others get 404."""

    def data_received(self, data: bytes) -> None:
        head = data.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
        if head[0].startswith((b"get ", b"post ")) and b"host: erless.invalid" not in head:
            self.transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        super().data_received(data)


@pytest.fixture
def ingress() -> Iterator[str]:
    with _Background(_Ingress) as url:
        yield url.removeprefix("http://")


@pytest.fixture
def sink() -> Iterator[str]:
    with _Background() as url:
        yield url


@pytest.fixture
def faulty() -> Iterator[str]:
    _Faulty.count = 0
    with _Background(_Faulty) as url:
        yield url


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return private_authority(tmp_path)


@pytest.fixture
def https_sink(authority: Authority) -> Iterator[str]:
    with _Background(tls=authority.context()) as url:
        yield url


@pytest.fixture
def locust() -> Locust:
    """Run Locust on the locustfile, headless."""

    def run(*options: object) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "locust",
            "-f",
            "loadtests/locustfile.py",
            "--headless",
            "--only-summary",
            *map(str, options),
        ]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )

    return run
