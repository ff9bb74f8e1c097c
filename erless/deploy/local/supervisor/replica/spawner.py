"""Start a function's process: forked from the zygote where that serves, else from scratch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from erless.deploy.local.supervisor.folder.events import log_event
from erless.deploy.local.supervisor.python_path import python_path
from erless.deploy.local.supervisor.replica.orphans import STATE_MARK
from erless.deploy.local.supervisor.zygote import receive, send

__all__ = ["Child", "Spawner"]

PR_SET_CHILD_SUBREAPER = 36
ANSWER_S = 30.0  # the zygote's, while it imports on a busy machine
SINGLE = ("", "1")  # torch's and numpy's threads are counted before numpy is imported


class Child(Protocol):
    """A process that is a child of this one."""

    @property
    def pid(self) -> int:
        """Its id, valid until `wait` returned."""

    def wait(self) -> int:
        """Its exit code, negative for a signal; waits until it ends."""


@dataclass(frozen=True, slots=True)
class _Forked:
    pid: int

    def wait(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


class Spawner:
    """Starts processes in the state folder `state`."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._zygote: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._warmed = False
        self._adopts = ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0

    @property
    def zygote_pid(self) -> int | None:
        """The pid of the zygote; None where none lives."""
        return self._zygote.pid if self._zygote is not None else None

    def spawn(
        self,
        command: Sequence[str],
        env: dict[str, str],
        fds: dict[str, int],
        log: int,
        record: Path,
    ) -> Child:
        """Run `python -m command` in a session of its own.

        Args:
            command: the module to run, and its arguments.
            env: its environment, but for `fds`.
            fds: variable → descriptor that it inherits, and whose number the variable gets.
            log: descriptor of its stdout and stderr.
            record: a file that will hold its pid, where its environment does not identify it.

        Raises:
            OSError: the system refused.
        """
        if self._adopts and env.get("ERLESS_THREADS", "") in SINGLE:
            try:
                return self._fork(command, env, fds, log, record)
            except (OSError, EOFError, ValueError) as error:
                log_event("zygote failed", reason=repr(error))
                self.close()  # the next spawn starts another
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            env={
                **env,
                **{name: str(descriptor) for name, descriptor in fds.items()},
                "PYTHONPATH": python_path(),
            },
            cwd=self._state,
            pass_fds=tuple(fds.values()),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def _fork(
        self,
        command: Sequence[str],
        env: dict[str, str],
        fds: dict[str, int],
        log: int,
        record: Path,
    ) -> Child:
        channel = self.warm()
        if not self._warmed:
            receive(channel)  # it has imported everything
            self._warmed = True
        request = {
            "command": list(command),
            "env": env,
            "fds": list(fds),
            "cwd": str(self._state),
            "record": str(record),
        }
        send(channel, request, [log, *fds.values()])
        answer, _ = receive(channel)
        return _Forked(int(answer["pid"]))

    def warm(self) -> socket.socket:
        """Start the zygote, if there is none, without waiting until it has imported everything.

        Raises:
            OSError: the system refused.
        """
        if self._channel is not None:
            return self._channel
        ours, theirs = socket.socketpair()
        ours.settimeout(ANSWER_S)
        with theirs:
            self._zygote = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "erless.deploy.local.supervisor.zygote",
                    str(theirs.fileno()),
                ],
                env={
                    **os.environ,
                    STATE_MARK: str(self._state),
                    "PYTHONPATH": python_path(),
                    "OPENBLAS_NUM_THREADS": "1",
                },
                cwd=self._state,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._channel, self._warmed = ours, False
        return ours

    def close(self) -> None:
        """End the zygote; what it forked lives on."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._zygote is not None:
            with contextlib.suppress(ProcessLookupError):
                self._zygote.kill()
            self._zygote.wait()
            self._zygote = None
