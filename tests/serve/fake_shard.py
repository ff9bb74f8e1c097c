"""A shard that misbehaves as told, in front of a real one.

with FakeShard(real_port) as fake:
    fake.behaviour = "hang"         # or any other of Behaviour; "good" passes everything on
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from typing import Self

import numpy as np

__all__ = ["BROKEN", "FakeShard"]

# what it does to an infer call → the status that the gateway's client gets
BROKEN = {
    "hang": 504,
    "close within the answer": 502,
    "always close": 502,
    "garbage": 502,
    "not HTTP after a good head": 502,
    "another protocol": 502,
    "another digest": 502,
    "another size": 502,
    "another JSON": 502,
    "error 500": 502,
    "error 503": 503,
    "endless head": 502,
}


class FakeShard:
    """One listening socket; a thread per connection."""

    def __init__(self, real_port: int) -> None:
        self.behaviour = "good"
        self.hanging = 0  # calls that it has not answered so far
        self.slow_once = threading.Event()
        self.close_once = threading.Event()
        self.hang_once = threading.Event()
        self.half_once = threading.Event()  # hang within the answer
        self.unreached: list[int] = []  # a proxy's next answers: that it reaches no container
        self._real = real_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(client)
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), client:
            stream = client.makefile("rb")
            while line := stream.readline():
                headers = http.client.parse_headers(stream)
                body = stream.read(int(headers.get("content-length", "0")))
                if not self._answer(client, line.split()[1].decode(), dict(headers.items()), body):
                    return

    def _ask(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._real, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST" if body else "GET", path, body or None, headers)
            response = connection.getresponse()
            size = response.headers.get("inference-header-content-length", "0")
            return response.status, size, response.read()

    def _answer(
        self, client: socket.socket, path: str, headers: dict[str, str], body: bytes
    ) -> bool:
        """Answer one request; False: close."""
        status, size, answer = self._ask(path, headers, body)
        behaviour = self.behaviour if body else "good"
        if self.hang_once.is_set() and body:
            self.hang_once.clear()
            self._stopped.wait(60)
            return False
        if self.half_once.is_set() and body:
            self.half_once.clear()
            message = self._message(status, size, answer)
            client.sendall(message[: len(message) // 2])
            self._stopped.wait(60)
            return False
        if self.close_once.is_set() and body:
            self.close_once.clear()
            return False
        if self.unreached and body:
            client.sendall(
                b"HTTP/1.1 %d X\r\ncontent-type: text/plain\r\ncontent-length: 26\r\n\r\n"
                b"dial tcp: connect: refused" % self.unreached.pop()
            )
            return True
        if self.slow_once.is_set() and body:
            self.slow_once.clear()
            self._stopped.wait(5)
        text = answer[: int(size)]
        match behaviour:
            case "hang":
                self.hanging += 1
                self._stopped.wait(60)
                return False
            case "always close":
                return False
            case "garbage":
                client.sendall(np.random.default_rng(0).bytes(400) + b"\r\n\r\n")
                return False
            case "another protocol":
                client.sendall(b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")
                return False
            case "endless head":
                client.sendall(b"HTTP/1.1 200 OK\r\n" + b"x-y: z\r\n" * 9000)
                return False
            case "close within the answer":
                client.sendall(self._message(status, size, answer)[:-7])
                return False
            case "not HTTP after a good head":
                answer = b"\x00" * len(answer)
            case "another digest":
                answer = answer.replace(text[text.index(b'"digest":"') + 10 :][:64], b"0" * 64)
            case "another size":
                answer = answer[:-4]
            case "another JSON":
                answer = text.replace(b'"partial"', b'"private"') + answer[int(size) :]
            case "error 500":
                status, size, answer = 500, "0", b'{"error": "broken on purpose"}'
            case "cannot start":
                text = b'{"error": "its file is damaged", "state": "failed"}'
                status, size, answer = 503, "0", text
            case "error 503":
                status, size, answer = 503, "0", b'{"error": "busy on purpose"}'
        client.sendall(self._message(status, size, answer))
        return True

    @staticmethod
    def _message(status: int, size: str, answer: bytes) -> bytes:
        kind = "application/octet-stream" if size != "0" else "application/json"
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(answer)}\r\n"
        more = f"inference-header-content-length: {size}\r\n" if size != "0" else ""
        return f"{head}{more}\r\n".encode() + answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
