"""Break a local deployment on purpose: signals to its replicas, and one more of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from erless.deploy.local.supervisor.client import call
from erless.deploy.local.supervisor.folder.state_folder import StateFolder
from erless.deploy.local.supervisor.replica.admin import get_admin, parse_counters
from erless.errors import DeployError, ServeError
from erless.specs.churn import FaultKind, LiveReplica
from erless.specs.functions import FunctionKind

__all__ = ["LocalFaults", "LocalReplica"]

ANSWER_S = 5.0
ADDED_S = 10.0  # that an added replica stays
SIGNALS = {
    FaultKind.KILL: signal.SIGKILL,
    FaultKind.GATEWAY: signal.SIGKILL,
    FaultKind.HANG: signal.SIGSTOP,
    FaultKind.DRAIN: signal.SIGTERM,
}


@dataclass(frozen=True, slots=True)
class LocalReplica:
    """A process. See `erless.specs.churn.LiveReplica`; `admin` names its admin socket."""

    function: str
    kind: FunctionKind
    name: str
    ready: bool
    age_s: float
    pid: int
    admin: str


class LocalFaults:
    """Faults of the deployment whose state folder this is."""

    kinds = frozenset(FaultKind)
    shared = False

    def __init__(self, folder: StateFolder) -> None:
        self._folder = folder
        self._stopped: list[int] = []  # pidfds

    def replicas(self) -> Sequence[LocalReplica]:
        """See `FaultSite.replicas`. Never starts a supervisor."""
        functions = call(self._folder, {"do": "replicas"}, ANSWER_S)
        return [
            LocalReplica(
                function["name"],
                function["kind"],
                str(replica["pid"]),
                replica["phase"] == "ready",
                replica["age_s"],
                replica["pid"],
                f"{function['key']}.{replica['slot']}",
            )
            for function in functions
            for replica in function["replicas"]
        ]

    def inject(self, kind: FaultKind, victim: LiveReplica) -> None:
        """See `FaultSite.inject`."""
        if kind is FaultKind.ADD:
            request = {"do": "add", "function": victim.function, "seconds": ADDED_S}
            call(self._folder, request, ANSWER_S)
            return
        try:
            pidfd = os.pidfd_open(int(victim.name))
            signal.pidfd_send_signal(pidfd, SIGNALS[kind])
        except ProcessLookupError:
            raise DeployError(f"process {victim.name} of {victim.function} is gone") from None
        if kind is FaultKind.HANG:
            self._stopped.append(pidfd)
        else:
            os.close(pidfd)

    def answered(self, replica: LiveReplica) -> int:
        """See `FaultSite.answered`."""
        assert isinstance(replica, LocalReplica)  # noqa: S101 - one that `replicas` gave
        path = self._folder.socket_path(replica.admin)
        try:
            status, text = asyncio.run(get_admin(path, "/metrics", ANSWER_S))
        except ServeError:
            return 0
        return int(parse_counters(text).requests) if status == 200 else 0

    def undo(self) -> None:
        """See `FaultSite.undo`."""
        while self._stopped:
            pidfd = self._stopped.pop()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            os.close(pidfd)
