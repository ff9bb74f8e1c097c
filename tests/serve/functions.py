"""Real function processes for tests: started, watched, stopped.

with Fleet(made) as fleet:              # sparse functions, gateway (and dense)
    fleet.gateway.port
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from erless.dlrm.queries import Query
from tests.releases import Made

__all__ = ["Fleet", "Function", "body_of", "predict", "request_of", "start_fleet"]

ROOT = Path(__file__).parents[2]
START_S = 60.0


class Function:
    """One function process; its log is a file, so that nothing blocks on a pipe."""

    started: ClassVar[list[Function]] = []  # all of this test run; conftest.py ends them

    def __init__(self, kind: str, folder: Path, command: list[str] | None = None, /, **env: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"{kind}-{time.monotonic_ns()}.log"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("ERLESS_")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command or [sys.executable, "-m", "erless.serve", kind],
                stderr=log,
                stdout=log,
                cwd=ROOT,
                env={**inherited, "PYTHONPATH": str(ROOT), "PORT": "0", **env},
                pass_fds=[int(env[name]) for name in env if name.endswith("_FD")],
            )

        Function.started.append(self)

    @property
    def events(self) -> list[dict[str, Any]]:
        """What it logged."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def event(self, message: str) -> dict[str, Any]:
        """Wait until it logs `message`."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            for event in self.events:
                if event["message"] == message:
                    return event
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"no event {message!r} in:\n{self.log.read_text()}")

    @property
    def port(self) -> int:
        return int(self.event("listening")["port"])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> Self:
        self.event("ready")
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(60)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("POST", path, body, names)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def metric(self, name: str) -> float:
        """The sum of all samples of one metric."""
        lines = self.get("/metrics")[1].decode().splitlines()
        samples = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in samples)


class Fleet:
    """All functions of one release."""

    def __init__(
        self,
        made: Made,
        folder: Path,
        *,
        dense: bool = False,
        every: dict[str, str] | None = None,
        **env: str,
    ) -> None:
        """`every` is for all functions, `env` for the gateway."""
        self.made, self._folder, self._every = made, folder, every or {}
        self._started: list[Function] = []
        try:
            self._start(dense, env)
        except BaseException:
            self.close()
            raise

    def _start(self, dense: bool, env: dict[str, str]) -> None:
        made = self.made
        self.shards = {shard.name: self.start_shard(shard.name) for shard in made.release.remote}
        self.dense = (
            self._function("dense", ERLESS_STORE=made.store, ERLESS_RELEASE=made.release.digest)
            if dense
            else None
        )
        self.urls = {shard.digest: self.shards[shard.name].url for shard in made.release.remote}
        self.gateway = self.start_gateway(**env)
        for function in self.functions:
            function.ready()

    @property
    def functions(self) -> list[Function]:
        functions = [*self.shards.values(), self.gateway]
        return functions if self.dense is None else [*functions, self.dense]

    def _function(self, kind: str, **env: str) -> Function:
        started = Function(kind, self._folder, **{**self._every, **env})
        self._started.append(started)
        return started

    def start_shard(self, name: str, **env: str) -> Function:
        digest = self.made.release.shard(name).digest
        return self._function("sparse", ERLESS_STORE=self.made.store, ERLESS_SHARD=digest, **env)

    def start_gateway(self, urls: dict[str, str] | None = None, /, **env: str) -> Function:
        more = {"ERLESS_DENSE_URL": self.dense.url} if self.dense else {}
        return self._function(
            "gateway",
            ERLESS_STORE=self.made.store,
            ERLESS_RELEASE=self.made.release.digest,
            ERLESS_SHARD_URLS=json.dumps(urls or self.urls),
            **more,
            **env,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill whatever was started and still runs."""
        for function in self._started:
            if function.process.poll() is None:
                function.process.kill()
            function.process.wait()


@contextlib.contextmanager
def start_fleet(made: Made, folder: Path, **more: Any) -> Iterator[Fleet]:
    """A fleet that is gone afterwards."""
    with Fleet(made, folder, **more) as fleet:
        yield fleet


def request_of(query: Query, **more: Any) -> dict[str, Any]:
    """`query` as a JSON request."""
    tensors = [
        ("values", "INT64", query.values),
        ("lengths", "INT32", query.lengths),
        ("dense", "FP32", query.dense),
    ]
    if query.weights is not None:
        tensors.append(("weights", "FP32", query.weights))
    return {
        "inputs": [
            {"name": n, "datatype": d, "shape": list(a.shape), "data": a.tolist()}
            for n, d, a in tensors
        ],
        **more,
    }


def body_of(query: Query, **more: Any) -> bytes:
    """`query` as the bytes of a JSON request."""
    return json.dumps(request_of(query, **more)).encode()


def predict(gateway: Function, made: Made, query: Query) -> np.ndarray:
    """Predictions over HTTP, JSON tensors."""
    status, answer = gateway.post(f"/v2/models/{made.model.name}/infer", body_of(query))
    assert status == 200, answer
    return np.array(answer["outputs"][0]["data"], np.float32)
