"""The supervisor's process: it locks the folder, restores what ran, serves requests, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import traceback
from pathlib import Path

from erless.deploy.local.supervisor.control import Control
from erless.deploy.local.supervisor.fleet import LocalFleet
from erless.deploy.local.supervisor.folder.logs import log_file
from erless.deploy.local.supervisor.folder.state_folder import CONTROL, StateFolder
from erless.deploy.local.supervisor.replica.orphans import end_all
from erless.errors import ErlessError

__all__ = ["run"]


def run(state: str) -> None:
    """Supervise the state folder `state`; returns when it is destroyed, or at SIGTERM.

    Exits 0 at once where another supervisor holds the folder.
    """
    folder = StateFolder(Path(state))
    folder.make()
    if not folder.lock():
        return
    folder.make()  # the one before us may have removed it as its last act
    _log_to(log_file(folder.logs, "supervisor", 0))
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_supervise(folder))
    except ErlessError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    except Exception:
        traceback.print_exc(file=sys.stderr)
        sys.exit(1)


def _log_to(file: Path) -> None:
    """Write stdout and stderr to `file`, whoever started this process; a full disk is no reason."""
    with contextlib.suppress(OSError), file.open("ab") as opened:
        for descriptor in (1, 2):
            os.dup2(opened.fileno(), descriptor)


def _gathers(fleet: LocalFleet) -> dict[tuple[str, int], float]:
    """Rows that each replica of each function has gathered, as of its last poll."""
    return {
        (key, replica.pid): replica.counters.gathers
        for key, function in fleet.functions.items()
        for replica in function.replicas
    }


async def _supervise(folder: StateFolder) -> None:
    """SIGTERM (the machine shuts down) drains all functions, and keeps the state.

    A destroyed deployment leaves nothing: this process removes its folder as its last act.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSTARTUP"}
    fleet = LocalFleet(folder, environment)
    alerts = asyncio.get_running_loop().create_task(fleet.alerts.run(lambda: _gathers(fleet)))
    control = Control(fleet)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, control.done.set)
    await fleet.restore()
    ticking = loop.create_task(fleet.run())
    serving = loop.create_task(control.serve())
    await asyncio.wait({ticking, serving}, return_when=asyncio.FIRST_COMPLETED)
    if not ticking.done() and folder.owned:
        fleet.guardian.end()  # asked to end: nobody shall bring us back
    ticking.cancel()
    await fleet.stop()
    alerts.cancel()
    folder.forget(CONTROL)
    if ticking.done() and not ticking.cancelled():
        ticking.result()  # it never returns: this raises what broke it
    await serving
    if fleet.destroyed:
        await asyncio.to_thread(end_all, folder.path, 0.0)
        folder.remove()
