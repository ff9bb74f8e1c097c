"""Talk to the supervisor of a state folder; start it where none lives."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from erless import errors
from erless.deploy.local.supervisor.folder.state_folder import CONTROL, StateFolder
from erless.deploy.local.supervisor.python_path import python_path
from erless.errors import DeployError, SupervisorEndedError

__all__ = ["call", "command", "ensure"]

START_S = 30.0
AGAIN_S = 3.0  # a supervisor that holds no lock after so long has ended
UNDO_S = 60.0  # an interrupted verb waits so long for what it began to be undone
QUESTIONS = ("ping", "status", "replicas", "add")  # they are answered at once, or not at all
PASSED_ON = ("AWS_", "ERLESS_LOG")  # the functions' credentials are those of who deploys


def ensure(folder: StateFolder) -> bool:
    """Start a supervisor where none lives; True where one was started.

    Raises:
        DeployError: it did not come up.
        StorageError: the disk refused.
    """
    started_s = -math.inf
    deadline_s = time.monotonic() + START_S
    last_words, log_start = "", 0
    while (opened := _connect(folder)) is None:
        now_s = time.monotonic()
        if now_s > deadline_s:
            reason = last_words or "no reason given"
            raise DeployError(f"the supervisor of {folder.path} does not answer: {reason}")
        if folder.supervisor_pid() is None and now_s - started_s > AGAIN_S:
            if started_s > 0 and (last_words := _last_words(folder, log_start)):
                raise DeployError(f"the supervisor did not start: {last_words}")
            log_start = _start(folder)
            started_s = time.monotonic()
        time.sleep(0.02)
    opened.close()
    return started_s > 0


def _start(folder: StateFolder) -> int:
    """Start a supervisor; one that finds another alive ends at once. Returns where its log begins.

    A full disk is no reason not to: then it starts without a log.
    """
    folder.make()
    with _log_or_nothing(folder).open("ab") as file:
        log_start = file.tell()
        subprocess.run(
            [sys.executable, "-m", "erless.deploy.local.supervisor", str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            close_fds=True,
            check=True,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the verb, not for what it starts
            timeout=START_S,
            env={**os.environ, "PYTHONPATH": python_path()},
        )
    return log_start


def _log(folder: StateFolder) -> Path:
    return folder.logs / "supervisor.0.log"


def _log_or_nothing(folder: StateFolder) -> Path:
    try:
        _log(folder).open("ab").close()
    except OSError:
        return Path(os.devnull)
    return _log(folder)


def _last_words(folder: StateFolder, log_start: int) -> str:
    """What a supervisor that has ended said last, where that is no line of its usual log."""
    with contextlib.suppress(OSError), _log(folder).open("rb") as file:
        file.seek(log_start)
        words = file.read().decode("utf-8", "replace").strip().splitlines()
        return words[-1] if words and not words[-1].startswith("{") else ""
    return ""


def command(
    folder: StateFolder,
    request: dict[str, Any],
    timeout_s: float,
    progress: Callable[[str, int, int], None] | None = None,
) -> Any:
    """`call`, by a supervisor that is started where none lives.

    One that has nothing deployed ends by itself, as does one whose deployment is destroyed: a
    request that meets it then is sent to the next.

    Raises:
        DeployError: as `call`.
    """
    ensure(folder)
    try:
        return call(folder, request, timeout_s, progress)
    except SupervisorEndedError:
        deadline = time.monotonic() + START_S
        while folder.supervisor_pid() is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        ensure(folder)
        return call(folder, request, timeout_s, progress)


def call(
    folder: StateFolder,
    request: dict[str, Any],
    timeout_s: float,
    progress: Callable[[str, int, int], None] | None = None,
) -> Any:
    """Send `request` to the live supervisor and return its result.

    If this process is interrupted meanwhile (Ctrl-C, SIGTERM), the supervisor is informed, and has
    undone what it had begun, or completed what cannot be undone, before the interruption goes on.

    Raises:
        SupervisorEndedError: no supervisor listens, or it ended before it answered.
        DeployError: no answer in time, or the error that it reports.
    """
    opened = _connect(folder)
    if opened is None:
        raise SupervisorEndedError(f"no supervisor listens in {folder.path}")
    environment = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    request = {**request, "timeout_s": timeout_s, "environment": environment}
    with opened:
        opened.settimeout(timeout_s if request["do"] in QUESTIONS else timeout_s + START_S)
        try:
            opened.sendall(json.dumps(request).encode() + b"\n")
            return _answer(opened, progress)
        except TimeoutError:
            raise DeployError(f"the supervisor gave no answer in {timeout_s:g} s") from None
        except ConnectionError as error:
            message = f"the supervisor ended while it worked: {error.strerror}"
            raise SupervisorEndedError(message) from error
        except (KeyboardInterrupt, SystemExit):
            _await_undone(opened)
            raise


def _answer(opened: socket.socket, progress: Callable[[str, int, int], None] | None) -> Any:
    """The result in the supervisor's lines; what it reports on the way goes to `progress`."""
    with opened.makefile("rb") as lines:
        for line in lines:
            document = json.loads(line)
            if "progress" in document:
                if progress is not None:
                    progress(*document["progress"])
            elif "error" in document:
                raise _error(document["error"])
            else:
                return document["result"]
    raise SupervisorEndedError("the supervisor ended while it worked")


def _await_undone(opened: socket.socket) -> None:
    """Say that nobody waits for the result, then wait until the supervisor is done with it."""
    with contextlib.suppress(OSError):
        opened.settimeout(UNDO_S)
        opened.shutdown(socket.SHUT_WR)
        while opened.recv(1 << 16):
            pass


def _error(document: dict[str, str]) -> errors.ErlessError:
    kind = getattr(errors, document["type"], DeployError)
    error: errors.ErlessError = kind(document["message"])
    return error


def _connect(folder: StateFolder) -> socket.socket | None:
    """A connection, or None where nobody listens."""
    if not folder.run.is_dir():
        return None
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        opened.connect(folder.socket_path(CONTROL))
    except OSError:
        opened.close()
        return None
    except BaseException:
        opened.close()
        raise
    return opened
