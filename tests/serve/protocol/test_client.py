"""The blocking client, before a server that ends connections, keeps silent, or is not there."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from erless.dlrm.queries import Query
from erless.errors import ServeError
from erless.serve.protocol.client import QueryClient

QUERY = Query(np.zeros((1, 2), np.float32), np.array([3]), np.array([[1]], np.int32))
PATHS = json.dumps({"paths": {"/v2/models/m/infer": {}}}).encode()
HEAD = json.dumps({"parameters": {"release": "abc", "fan_out": 2}}).encode()
SCORES = np.array([0.25], np.float32)


class Server:
    """Answers each request and ends the connection `answers` requests later, without a word."""

    def __init__(self, answers: int) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._answers = answers
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                for _ in range(self._answers):
                    if not (line := stream.readline()):
                        break
                    self._answer(connection, stream, line.decode().split()[1])

    def _answer(self, connection: socket.socket, stream: object, path: str) -> None:
        length = 0
        while header := stream.readline().strip():  # type: ignore[attr-defined]
            name, _, value = header.decode().partition(":")
            length = int(value) if name.lower() == "content-length" else length
        stream.read(length)  # type: ignore[attr-defined]
        self.requests.append(path)
        infers = path.endswith("/infer")
        body = HEAD + SCORES.tobytes() if infers else PATHS
        more = f"Inference-Header-Content-Length: {len(HEAD)}\r\n" if infers else ""
        head = f"HTTP/1.1 200 OK\r\n{more}Content-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)

    def close(self) -> None:
        self._listening.close()


@pytest.fixture
def ending() -> Iterator[Server]:
    server = Server(answers=1)
    yield server
    server.close()


def test_a_connection_that_ended_is_replaced(ending: Server) -> None:
    with QueryClient(ending.url, timeout_s=10) as client:
        for _ in range(3):
            answer = client.predict(QUERY)
            assert answer.predictions.tolist() == [0.25]
            assert (answer.release, answer.fan_out) == ("abc", 2)
    assert ending.requests == ["/openapi.json", *["/v2/models/m/infer"] * 3]


def test_nobody_and_silence_are_told_as_such() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with QueryClient(url, timeout_s=0.2) as client:
            with pytest.raises(ServeError, match=f"{url} does not answer: .*timed out") as error:
                client.predict(QUERY)
        assert error.value.status == 502
        with silent.accept()[0] as connection:
            assert connection.recv(1 << 16).startswith(b"GET /openapi.json")
        silent.settimeout(0)
        with pytest.raises(BlockingIOError):  # it is asked once: a query may be costly
            silent.accept()
    with QueryClient(url) as client, pytest.raises(ServeError, match="does not answer"):
        client.predict(QUERY)
