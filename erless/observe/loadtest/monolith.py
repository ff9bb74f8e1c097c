"""The monolith behind the same wire, for a comparison: one process that holds the whole model."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from erless.errors import LoadTestError
from erless.observe.loadtest.sampler import FunctionSample

__all__ = ["MonolithServer"]

READY_S = 120.0
STOP_S = 10.0


class MonolithServer:
    """Serves the bundle while its block runs; `url` is where.

    Args:
        bundle: its folder.

    Raises:
        LoadTestError: it did not get ready (its own reason).
    """

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        self.url = ""
        self._log = tempfile.NamedTemporaryFile(prefix="erless-monolith-", suffix=".log")  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MonolithServer:
        command = [
            sys.executable,
            "-m",
            "erless.serve.process.monolith",
            "--model",
            str(self.bundle),
            "--port",
            "0",
        ]
        self._process = subprocess.Popen(command, stderr=self._log, start_new_session=True)
        end = time.monotonic() + READY_S
        port = None
        while time.monotonic() < end:
            for line in self._lines():
                port = line.get("port", port)
                if line.get("message") == "ready":
                    self.url = f"http://127.0.0.1:{port}"
                    return self
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        reason = (
            Path(self._log.name)
            .read_text(encoding="utf-8", errors="replace")
            .strip()
            .splitlines()[-1:]
        )
        self.__exit__()
        raise LoadTestError(f"the monolith did not get ready: {' '.join(reason) or 'no reason'}")

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._log.close()

    def _lines(self) -> list[dict[str, object]]:
        documents = []
        for line in Path(self._log.name).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                documents.append(json.loads(line))
            except ValueError:
                continue  # half a line, or a warning of a library
        return documents

    @property
    def pid(self) -> int:
        """Of the serving process."""
        if self._process is None:
            raise LoadTestError("the monolith does not run")
        return self._process.pid

    def probe(self) -> tuple[list[FunctionSample], int]:
        """What runs: one replica, its proportional set size."""
        try:
            memory = int(psutil.Process(self.pid).memory_full_info().pss)
        except psutil.Error as error:
            raise LoadTestError(f"the monolith is gone ({error})") from error
        sample = FunctionSample("monolith", "gateway", "", 1, 1, 0.0, None, memory)
        return [sample], memory
