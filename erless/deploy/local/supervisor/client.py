"""Talk to the supervisor of a state folder; start it where none lives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from erless import errors
from erless.deploy.local.supervisor.folder.state_folder import CONTROL, StateFolder
from erless.errors import DeployError

__all__ = ["call", "command", "ensure"]

START_S = 30.0
PASSED_ON = ("AWS_", "ERLESS_LOG")  # the functions' credentials are those of who deploys


def ensure(folder: StateFolder) -> bool:
    """Start a supervisor where none lives; True where one was started.

    Raises:
        DeployError: it did not come up.
        StorageError: the disk refused.
    """
    if _connect(folder, "ensure") is not None:
        return False
    folder.make()
    log = folder.logs / "supervisor.0.log"
    with log.open("ab") as file:
        start = file.tell()
        subprocess.run(
            [sys.executable, "-m", "erless.deploy.local.supervisor", str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            close_fds=True,
            check=True,
            cwd="/",
            timeout=START_S,
            env={**os.environ, "PYTHONPATH": _path()},
        )
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if _connect(folder, "ensure") is not None:
            return True
        time.sleep(0.02)
    with log.open("rb") as file:
        file.seek(start)
        words = file.read().decode("utf-8", "replace").strip().splitlines()
    raise DeployError(f"the supervisor did not start: {words[-1] if words else 'no reason given'}")


class _EndedError(DeployError):
    """The supervisor ended before it answered."""


def command(
    folder: StateFolder,
    request: dict[str, Any],
    timeout_s: float,
    progress: Callable[[str, int, int], None] | None = None,
) -> Any:
    """`call`, by a supervisor that is started where none lives.

    One that has nothing deployed ends by itself: a request that meets it then is sent to the next.

    Raises:
        DeployError: as `call`.
    """
    ensure(folder)
    try:
        return call(folder, request, timeout_s, progress)
    except _EndedError:
        deadline = time.monotonic() + START_S
        while folder.supervisor_pid() is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        ensure(folder)
        return call(folder, request, timeout_s, progress)


def _path() -> str:
    """`python -m erless...` must find this erless, wherever the caller stands."""
    root = os.path.dirname(os.path.dirname(errors.__file__))  # noqa: PTH120
    return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))


def call(
    folder: StateFolder,
    request: dict[str, Any],
    timeout_s: float,
    progress: Callable[[str, int, int], None] | None = None,
) -> Any:
    """Send `request` to the live supervisor and return its result.

    Raises:
        DeployError: no supervisor, no answer in time, or the error that it reports.
    """
    opened = _connect(folder, "call")
    if opened is None:
        raise _EndedError(f"no supervisor listens in {folder.path}")
    environment = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    request = {**request, "timeout_s": timeout_s, "environment": environment}
    with opened, opened.makefile("rb") as lines:
        opened.settimeout(timeout_s + START_S)
        try:
            opened.sendall(json.dumps(request).encode() + b"\n")
            for line in lines:
                document = json.loads(line)
                if "progress" in document:
                    if progress is not None:
                        progress(*document["progress"])
                elif "error" in document:
                    raise _error(document["error"])
                else:
                    return document["result"]
        except TimeoutError:
            raise DeployError(f"the supervisor gave no answer in {timeout_s:g} s") from None
        except ConnectionError as error:
            message = f"the supervisor ended while it worked: {error.strerror}"
            raise _EndedError(message) from error
    raise _EndedError("the supervisor ended while it worked")


def _error(document: dict[str, str]) -> errors.ErlessError:
    kind = getattr(errors, document["type"], DeployError)
    error: errors.ErlessError = kind(document["message"])
    return error


def _connect(folder: StateFolder, purpose: str) -> socket.socket | None:
    """A connection, or None where nobody listens; `ensure` only tries."""
    if not folder.run.is_dir():
        return None
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        opened.connect(folder.socket_path(CONTROL))
    except OSError:
        opened.close()
        return None
    if purpose == "ensure":
        opened.close()
    return opened
