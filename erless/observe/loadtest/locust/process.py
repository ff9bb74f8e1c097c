"""Locust as a process of its own: started, watched, stopped."""

from __future__ import annotations

import importlib.util
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from erless.errors import LoadTestError
from erless.storage.atomic import os_errors

__all__ = ["RECORD", "Load", "run_locust"]

RECORD = "queries.tsv"  # see `erless.observe.loadtest.record`
STOP_S = 10.0  # from Ctrl-C to kill
SLACK_S = 60.0  # beyond its own run time, Locust is stuck
LOCUSTFILE = Path(__file__).with_name("locustfile.py")


@dataclass(frozen=True)
class Load:
    """One run of Locust.

    Args:
        host: the gateway's URL.
        traffic: shape or trace, for an open loop; None: `users` closed loops.
        duration_s: how long.
        users: connections.
        options: further options of the locustfile, such as `--queries`.
        processes: of Locust; one offers some 3,000 queries/s of RM1.
        connect: HOST:PORT to connect to, where the URL's own host is not known here.
        authorities: PEM file of those that sign an https gateway's certificate; default: those
            that this machine trusts.
    """

    host: str
    duration_s: float
    traffic: str | None = None
    users: int = 64
    options: tuple[str, ...] = ()
    processes: int = 1
    connect: str = ""
    authorities: str = ""

    def command(self, record: Path) -> list[str]:
        """The command line."""
        shape = ["--run-time", f"{math.ceil(self.duration_s)}s"]  # Locust takes whole seconds
        if self.traffic is not None:
            shape = ["--traffic", self.traffic, "--duration", f"{self.duration_s:g}"]
        connect = ["--connect", self.connect] if self.connect else []
        trust = ["--ca", self.authorities] if self.authorities else []
        many = ["--processes", str(self.processes)] if self.processes > 1 else []
        return [
            sys.executable,
            "-m",
            "locust",
            "-f",
            str(LOCUSTFILE),
            "--headless",
            "--only-summary",
            "--host",
            self.host,
            "--users",
            str(self.users),
            "--spawn-rate",
            str(self.users),
            "--record",
            str(record),
            "--loglevel",
            "WARNING",
            *shape,
            *connect,
            *trust,
            *many,
            *self.options,
        ]


def run_locust(load: Load, folder: Path) -> tuple[Path, bool]:
    """Run Locust until its traffic ends; returns its record and whether it was interrupted.

    Ctrl-C stops Locust and keeps the record.

    Args:
        load: what to send.
        folder: the record and Locust's output go here.

    Raises:
        LoadTestError: Locust is not installed, could not start (its reason), or got stuck.
    """
    if importlib.util.find_spec("locust") is None:
        raise LoadTestError("Locust is not installed: pip install 'erless[loadtest]'")
    record, output = folder / RECORD, folder / "locust.log"
    interrupted = False
    with os_errors(output), output.open("w") as sink:
        process = subprocess.Popen(
            load.command(record), stdout=sink, stderr=sink, start_new_session=True
        )
    try:
        process.wait(timeout=load.duration_s + SLACK_S)
    except subprocess.TimeoutExpired:
        raise LoadTestError(f"Locust did not end within {load.duration_s + SLACK_S:g} s") from None
    except (KeyboardInterrupt, SystemExit):
        interrupted = True
    finally:
        _stop(process)
    if not record.is_file():
        if interrupted:
            raise KeyboardInterrupt
        raise LoadTestError(_reason(output))
    return record, interrupted


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGINT, so that the record is flushed; then SIGKILL to the whole session."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        end = time.monotonic() + STOP_S
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _reason(output: Path) -> str:
    """The first error in Locust's output, or the end of that output."""
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.partition("error: ")[2] for line in lines if "error: " in line]
    return errors[0] if errors else f"Locust sent nothing: {' '.join(lines[-3:])[-300:]}"
