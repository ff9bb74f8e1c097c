"""Who connects to a port of this machine, as far as the system tells."""

from __future__ import annotations

import asyncio

from erless.deploy.local.supervisor.sockets import LOOPBACK
from erless.deploy.local.supervisor.spec import FunctionSpec
from erless.specs.alerts import Alert, utc_now

__all__ = ["connection_alert"]

LOOK_S = 0.5  # for the process: an alert does not wait longer


async def connection_alert(spec: FunctionSpec, port: int) -> Alert:
    """The alert of a connection to the decoy `spec`, of which nothing has been read yet.

    Its source is loopback: the socket listens nowhere else.
    """
    time, process = utc_now(), ""
    try:
        async with asyncio.timeout(LOOK_S):
            process = await asyncio.to_thread(_processes, port)
    except TimeoutError:
        pass
    return Alert(
        time=time,
        kind="decoy",
        function=spec.name,
        digest=spec.digest,
        source=LOOPBACK,
        process=process,
    )


def _processes(port: int) -> str:
    """Names and ids of processes with a connection to `port`: not their arguments."""
    import psutil

    try:
        connections = psutil.net_connections("tcp4")
    except psutil.Error:
        return ""
    callers = set()
    for connection in connections:
        peer = connection.raddr
        if connection.pid is None or not peer or (peer.ip, peer.port) != (LOOPBACK, port):
            continue
        try:
            callers.add(f"{psutil.Process(connection.pid).name()} {connection.pid}")
        except psutil.Error:  # it has ended
            continue
    return ", ".join(sorted(callers))
