"""Function processes for benchmarks: started, their CPU and memory read from /proc, stopped."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from erless.observe.loadtest.encoded_queries import Body
from erless.specs.release import ReleaseManifest

START_S = 120.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Process:
    """One function, its log in a file."""

    def __init__(self, name: str, command: list[str], env: Mapping[str, str], folder: Path) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command], stdout=log, stderr=log, env={**os.environ, **env}
            )

    def event(self, message: str) -> dict[str, Any]:
        """Wait until it logs `message`."""
        until = time.monotonic() + START_S
        while time.monotonic() < until and self.process.poll() is None:
            whole, _, _ = self.log.read_text().rpartition("\n")  # the last line may still grow
            for line in whole.splitlines():
                event = json.loads(line) if line.startswith("{") else {}
                if event.get("message") == message:
                    return event
            time.sleep(0.01)
        raise SystemExit(f"{self.name} did not get {message}:\n{self.log.read_text()}")

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.event("listening")["port"])

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def cpu_s(self) -> float:
        """CPU seconds so far, of all threads, to the nanosecond where the kernel tells."""
        total = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def memory_mb(self) -> dict[str, float]:
        """Resident, proportional and private memory."""
        megabytes = {}
        for line in Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in {"Rss", "Pss", "Private_Dirty", "Anonymous"}:
                megabytes[name.lower()] = int(rest.split()[0]) / 1024
        return megabytes

    def stop(self) -> None:
        """Terminate and wait."""
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Fleet:
    """The functions of a release, or (`model`) a monolith."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[Process] = []

    def monolith(self, model: Path, name: str = "monolith") -> Process:
        """Start the monolith's server."""
        command = ["-m", "erless.serve.process.monolith", "--model", str(model), "--port", "0"]
        return self.start(name, [*command, "--log", "info"], {})

    def shards(self, store: str, release: ReleaseManifest, **env: str) -> dict[str, Process]:
        """Start a sparse function per remote shard: digest → process."""
        more = {"ERLESS_STORE": store, "PORT": "0", **env}
        return {
            shard.digest: self.start(
                shard.name, ["-m", "erless.serve", "sparse"], {**more, "ERLESS_SHARD": shard.digest}
            )
            for shard in release.remote
        }

    def gateway(
        self, store: str, release: ReleaseManifest, shards: Mapping[str, Process], **env: str
    ) -> Process:
        """Start the gateway."""
        urls = json.dumps({digest: shard.url for digest, shard in shards.items()})
        more = {"ERLESS_STORE": store, "PORT": "0", "ERLESS_RELEASE": release.digest, **env}
        name = f"gateway{len(self.processes)}"
        return self.start(
            name, ["-m", "erless.serve", "gateway"], {**more, "ERLESS_SHARD_URLS": urls}
        )

    def start(self, name: str, command: list[str], env: Mapping[str, str]) -> Process:
        """Start a process; it is stopped with the others."""
        started = Process(name, command, env, self.folder)
        self.processes.append(started)
        return started

    def ready(self) -> None:
        """Wait until all are."""
        for process in self.processes:
            process.event("ready")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            process.stop()


@contextlib.contextmanager
def fleet() -> Iterator[Fleet]:
    """A fleet whose logs go away with it."""
    with tempfile.TemporaryDirectory(prefix="erless-bench-") as folder, Fleet(Path(folder)) as made:
        yield made


class Client:
    """One connection to a gateway or monolith."""

    def __init__(self, port: int, model: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.path = f"/v2/models/{model}/infer"

    def infer(self, query: Body) -> np.ndarray:
        """Predictions of one query."""
        return self.infer_named(query)[0]

    def infer_named(self, query: Body) -> tuple[np.ndarray, dict[str, Any]]:
        """Predictions of one query, and the parameters of the answer."""
        length = {"inference-header-content-length": str(query.json_length)}
        self._connection.request("POST", self.path, query.data, length)
        response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise SystemExit(f"{response.status}: {body[:300]!r}")
        size = int(response.headers["inference-header-content-length"])
        parameters: dict[str, Any] = json.loads(body[:size])["parameters"]
        return np.frombuffer(body, np.float32, offset=size), parameters

    def get(self, path: str) -> dict[str, Any]:
        """The JSON document at `path`."""
        self._connection.request("GET", path)
        document: dict[str, Any] = json.loads(self._connection.getresponse().read())
        return document
